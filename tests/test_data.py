"""Data handlers and their files: what is read and refused; errors show no sample."""

import io
import pickle
import sys
import zipfile
from contextlib import nullcontext, suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from fedray import data, limits
from fedray.data import base, load, named, problems, read_npz
from fedray.errors import ConfigError, DataError

CUSTOM = """
import dataclasses, numpy
@dataclasses.dataclass
class Note:
    text: str
class Mine:
    def __init__(self, path): self.note = Note(path)
    def get_data(self): return (numpy.ones((4, 2)), [0, 1, 2, 3]), ([], [])
"""
IMAGE = np.full((1, 28, 28), 51, np.uint8)
ONE_ROW = {"x_train": IMAGE, "y_train": [9], "x_test": IMAGE, "y_test": [0]}


def digits(folder, **changes):
    np.savez(folder / "digits.npz", **ONE_ROW | changes)
    return load(named("mnist_pytorch"), str(folder / "digits.npz"))


def samples_of(train, test, **methods):
    handler = SimpleNamespace(get_data=lambda: (train, test), **methods)
    return data.load_samples(handler, "a.npz")


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zipped(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_shipped_digits_are_float_images_within_0_and_1_and_int64_labels():
    got = load(named("mnist_pytorch"), "mnist")
    assert got.x_train.shape == (4000, 1, 28, 28)
    assert (got.x_train.dtype, got.y_train.dtype) == (np.float32, np.int64)
    assert (got.x_train.min(), got.x_train.max(), got.n_test) == (0, 1, 1000)
    assert set(np.bincount([*got.y_train, *got.y_test])) == {500}


@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28), (28, 28, 1), (784,)])
def test_every_usual_shape_becomes_scaled_one_channel_images(tmp_path, shape):
    image = np.arange(784).reshape(1, *shape) % 256
    got = digits(tmp_path, x_test=image)
    assert got.x_test.shape == (1, 1, 28, 28)
    assert got.x_test[0, 0, 27, 27] == np.float32(15 / 255)  # 783 % 256
    assert got.x_train[0, 0, 0, 0] == np.float32(0.2)  # 51 / 255


def test_a_file_is_scaled_as_a_whole_or_not_at_all(tmp_path):
    dark = digits(tmp_path, x_test=IMAGE // 51)  # alone it would look scaled already
    assert dark.x_test.max() == np.float32(1 / 255)
    scaled = digits(tmp_path, x_train=IMAGE / 255, x_test=IMAGE / 51)
    assert (scaled.x_train.max(), scaled.x_test.max()) == (np.float32(0.2), 1)
    assert digits(tmp_path, x_test=IMAGE[:0], y_test=[]).n_test == 0


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("x_test", IMAGE - 51.1, "below 0"),
        ("x_test", IMAGE + 204.1, "above 255"),
        ("x_test", IMAGE * np.nan, "not finite"),
        ("x_test", IMAGE[:, 1:], r"x_test of shape \[1, 27, 28\].*N×784"),
        ("x_test", 3, r"x_test of shape \[\]"),
        ("y_test", [10], r"y_test within 10\.\.10.*0\.\.9"),
        ("y_test", [0.5], "between whole numbers"),
        ("y_test", np.eye(9)[:1], r"y_test of shape \[1, 9\]"),
        ("y_test", np.ones((1, 10)), r"y_test with rows that are not one-hot"),
        ("y_test", [1, 2], "1 x_test and 2 y_test"),
    ],
)
def test_arrays_that_are_no_digits_are_refused_by_name(tmp_path, key, value, message):
    with pytest.raises(DataError, match=message):
        digits(tmp_path, **{key: value})


@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28), (28, 28, 1), (784,)])
def test_digits_for_keras_have_their_channel_last_and_one_hot_labels(tmp_path, shape):
    image = np.arange(784).reshape(1, *shape) % 256
    np.savez(tmp_path / "digits.npz", **ONE_ROW | {"x_test": image, "y_test": [3]})
    got = load(named("mnist_keras"), str(tmp_path / "digits.npz"))
    assert (got.x_test.shape, got.x_test.dtype) == ((1, 28, 28, 1), np.float32)
    assert got.x_test[0, 27, 27, 0] == np.float32(15 / 255)  # 783 % 256
    assert (got.y_train.dtype, got.y_train.tolist()) == (np.float32, [[0] * 9 + [1]])
    assert got.y_test.tolist() == [[0, 0, 0, 1, 0, 0, 0, 0, 0, 0]]


def test_the_tutorials_arrays_serve_both_frameworks(tmp_path):
    """As it writes them: float32 N×1×28×28 within 0..1, int64 labels."""
    x, y = load(named("mnist_pytorch"), "mnist").x_train[:5], np.arange(5)
    np.savez(tmp_path / "p.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    torch, keras = (
        load(named(name), str(tmp_path / "p.npz"))
        for name in ("mnist_pytorch", "mnist_keras")
    )
    assert (torch.x_train == x).all()
    assert (keras.x_train[..., 0] == x[:, 0]).all()
    assert keras.y_train.argmax(1).tolist() == torch.y_train.tolist() == [0, 1, 2, 3, 4]


def test_one_hot_labels_serve_both_frameworks(tmp_path):
    assert digits(tmp_path, y_test=np.eye(10)[[7]]).y_test.tolist() == [7]
    path = str(tmp_path / "digits.npz")
    assert load(named("mnist_keras"), path).y_test.tolist() == np.eye(10)[[7]].tolist()


@pytest.fixture(scope="module")
def photos():
    """Ten patches of 32×32×3 out of scikit-image's photos: CIFAR-10's layout.

    No CIFAR-10 is to be had offline. Two patches of each of five photos.
    """
    from skimage import data as samples

    whole = [samples.astronaut(), samples.chelsea(), samples.coffee()]
    whole += [samples.rocket(), samples.cat()]
    return np.stack([p[i : i + 32, i : i + 32, :3] for p in whole for i in (64, 128)])


@pytest.mark.parametrize("form", ["pixels", "planes", "rows", "scaled"])
def test_photos_of_every_usual_layout_are_read_the_same(tmp_path, photos, form):
    planes = photos.transpose(0, 3, 1, 2)  # as CIFAR-10's own files have them
    rows = planes.reshape(10, 3072)
    forms = {"pixels": photos, "planes": planes, "rows": rows, "scaled": photos / 255}
    x, y = forms[form], np.arange(10)[:, None]  # N×1, as Keras's own loader gives them
    np.savez(
        tmp_path / "c.npz", x_train=x[:8], y_train=y[:8], x_test=x[8:], y_test=y[8:]
    )
    got = load(named("cifar10_keras"), str(tmp_path / "c.npz"))
    assert (got.x_train.shape, got.x_train.dtype) == ((8, 32, 32, 3), np.float32)
    assert (got.x_test == (photos[8:] / np.float32(255))).all()
    assert (got.y_train == np.eye(10)[:8]).all()
    assert (got.y_test.shape, got.n_train, got.n_test) == ((2, 10), 8, 2)


@pytest.mark.parametrize("handler", ["mnist_keras", "cifar10_keras"])
def test_handlers_for_keras_refuse_what_does_not_fit_by_name(tmp_path, handler):
    shape = (2, 28, 28) if handler == "cifar10_keras" else (2, 32, 32, 3)
    x, y = np.zeros(shape, np.uint8), [0, 1]
    np.savez(tmp_path / "x.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    with pytest.raises(DataError, match=rf"x_train of shape \[2, {shape[1]}.*needed N"):
        load(named(handler), str(tmp_path / "x.npz"))
    np.savez(tmp_path / "x.npz", x_train=np.array([len]), y_train=y, x_test=x, y_test=y)
    with pytest.raises(DataError, match=r"x_train.npy. that holds Python objects"):
        load(named(handler), str(tmp_path / "x.npz"))


def test_npz_of_any_compression_is_read_as_it_was_written(tmp_path):
    arrays = {"a": np.arange(6).reshape(2, 3), "b": np.array([True]), "c": np.ones(0)}
    arrays["d"] = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "n.npz", **arrays)
        got = read_npz(tmp_path / "n.npz", arrays)
        for key, array in arrays.items():
            assert got[key].dtype == array.dtype
            assert np.array_equal(got[key], array)


ONE = npy(np.ones(1))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"x.npy": ONE, "z": ONE}, "the keys 'x', 'z'; needed also a"),
        ({"a.npy": npy(np.array([len]))}, "holds Python objects"),
        ({"a.npy": npy(np.array(["text"]))}, "holds text; needed numbers"),
        ({"a.npy": ONE, "a": ONE}, "two arrays of one name"),
        ({"a.npy": ONE.replace(b"(1,)", b"(9999999999,)")}, "of another size"),
        ({"a.npy": ONE.replace(b"(1,)", b"(%d, 0)" % 10**30)}, "needed a whole npz"),
        ({"a.npy": ONE.replace(b"(1,)", b"(-1,)")}, "needed a whole npz"),
    ],
)
def test_false_declarations_of_an_npz_are_refused(tmp_path, members, message):
    with pytest.raises(DataError, match=message):
        read_npz(zipped(tmp_path / "n.npz", members), ["a"])


def test_an_npz_that_inflates_too_far_is_refused_by_its_directory(
    tmp_path, monkeypatch
):
    path = zipped(tmp_path / "n.npz", {"a.npy": npy(np.zeros(60_000))})
    assert len(read_npz(path, ["a"])["a"]) == 60_000  # small: no inflation hurts
    monkeypatch.setattr(limits, "FREE_BYTES", 1000)
    with pytest.raises(DataError, match=r"inflates \d+ times; needed at most 200"):
        read_npz(path, ["a"])
    monkeypatch.setattr(base, "MAX_BYTES", 480_000)  # and 128 of header
    with pytest.raises(DataError, match="inflates past its bounds"):
        read_npz(path, ["a"])


def test_other_files_and_compressions_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no file there.*party's own node"):
        read_npz(tmp_path, ["a"])
    with pytest.raises(DataError, match="compressed in another way"):
        read_npz(zipped(tmp_path / "n.npz", {"a": ONE}, zipfile.ZIP_LZMA), ["a"])
    for content in (b"", b"hello", ONE):
        (tmp_path / "n.npz").write_bytes(content)
        with pytest.raises(DataError, match="not an npz"):
            read_npz(tmp_path / "n.npz", ["a"])


def test_any_truncated_or_flipped_byte_is_an_error_or_harmless(tmp_path):
    array = np.random.default_rng(0).integers(0, 9, (5, 8))
    np.savez_compressed(tmp_path / "n.npz", a=array)
    whole = (tmp_path / "n.npz").read_bytes()
    flipped = np.frombuffer(whole, np.uint8) ^ np.diag([0xFF] * len(whole))
    broken = [whole[:i] for i in range(0, len(whole), 3)]
    for content in broken + [row.astype(np.uint8).tobytes() for row in flipped]:
        (tmp_path / "n.npz").write_bytes(content)
        with suppress(DataError):  # some bytes, as the date, mean nothing here
            assert np.array_equal(read_npz(tmp_path / "n.npz", ["a"])["a"], array)


def test_samples_may_be_anything_that_converts_to_an_array():
    class Tensor:
        def __array__(self, dtype=None, copy=None):
            return np.arange(6, dtype=">f4").reshape(2, 3)[:, ::-1]

    got = samples_of((Tensor(), [1, 0]), [np.zeros((0, 3)), ()])
    assert got.x_train.dtype == np.float32  # torch takes no foreign byte order
    assert got.x_train.strides == (12, 4)  # nor negative strides
    assert got.x_train[0].tolist() == [2, 1, 0]
    assert (got.n_train, got.n_test) == (2, 0)


@pytest.mark.parametrize(
    ("y", "dtype"),
    [
        (np.ma.array([1, 0]), "int64"),  # nothing is masked
        (np.array([1, 0], np.uint16), "int32"),
        (np.array([1, 0], np.uint64), "int64"),
        (np.array([1, 0], object), "int64"),
        (torch.tensor([1.0, 0.0], requires_grad=True), "float32"),
        (torch.tensor([1.0, 0.0], dtype=torch.bfloat16), "float32"),
    ],
)
def test_numbers_in_other_containers_keep_their_values(y, dtype):
    got = samples_of((np.zeros((2, 3)), y), [np.zeros((0, 3)), ()])
    assert (got.y_train.dtype, got.y_train.tolist()) == (dtype, [1, 0])


X, Y, NONE = np.full((2, 3), 77.0), np.array([77, 77]), (np.ones((0, 3)), np.ones(0))


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (X, NONE, "get_data.. that gives a tuple of another form"),
        ((X, Y), (X, None), "y_train, but no y_test"),
        ((X, ["77", "78"]), NONE, "y_train that holds text; needed class numbers"),
        ((np.array([["77"], ["7"]]), Y), NONE, "x_train that holds text; .*same one"),
        ((X, 77), NONE, "y_train that is a single number"),
        (
            (X, np.ma.array(Y, mask=[0, 1])),
            NONE,
            "y_train with 1 masked or missing v",
        ),
        ((X, [77, np.ma.masked]), NONE, "y_train with 1 masked or missing v"),
        ((X, [77, None]), NONE, "y_train with 1 masked or missing v"),
        ((csr_array(X), Y), NONE, "x_train that is a sparse matrix; .*toarray"),
        ((X + 1j, Y), NONE, "x_train that holds complex numbers"),
        ((X, Y.astype("datetime64[s]")), NONE, "y_train that holds dates"),
        ((X, np.array([(7, 7.0)] * 2, "i4,f8")), NONE, "y_train that holds records"),
        ((X, [{77}, {77}]), NONE, "y_train that holds Python objects"),
        ((X.astype(np.longdouble), Y), NONE, "at most 64 bits"),
        ((X, Y.astype(np.uint64) + 2**63), NONE, r"numbers of 2\*\*63 or more"),
        (([[77], [77, 77]], Y), NONE, "x_train of type list, which is no array"),
        ((X, Y[:1]), NONE, "2 x_train and 1 y_train; needed one y for each x"),
        ((X * np.nan, Y), NONE, "NaN or infinity in x_train"),
        ((X, Y), (X, [np.inf, 77]), "NaN or infinity in y_test"),
        (NONE, (X, Y), "no training samples; needed at least one"),
        ((X, Y), (X[:, :2], Y), r"x_train float64\[2, 3\] and x_test float64\[2, 2\]"),
        ((X, Y), (X, np.ones((2, 9))), "y_train .* samples of one shape"),
    ],
)
def test_errors_about_unusable_samples_contain_no_value(train, test, message):
    with pytest.raises(DataError, match=message) as caught:
        samples_of(train, test)
    assert "77" not in str(caught.value)


@pytest.mark.parametrize("count", [0, -1, 2.0, True, np.nan, None, "2", 10**400])
def test_a_train_count_that_is_no_positive_whole_number_is_refused(count):
    with pytest.raises(DataError, match="get_train_counts"):
        samples_of((X, Y), NONE, get_train_counts=lambda: count)
    assert samples_of((X, Y), NONE, get_train_counts=lambda: np.int32(9)).n_train == 9


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        (CUSTOM, "Mine", None),
        ("class A(Other): pass", "A", None),  # who knows what Other brings
        ("class A:\n get_data = None\nclass B(A): pass", "B", None),
        (CUSTOM, "Yours", "no 'Yours' in .*: it has .'Mine', 'Note'."),
        (CUSTOM, "Note", "class Note of .* has no get_data"),
        ("class A(B): pass\nclass B(A): pass", "A", "has no get_data"),
        ("x = 1\ny = (", "A", "h.py line 2: "),
        ("(" * 5000, "A", "h.py"),
        ("\xff\xfe", "A", "not UTF-8"),
        ("#" * (1 << 20) + "#", "A", "larger than 1048576 bytes"),
    ],
)
def test_a_custom_file_is_checked_without_running_it(tmp_path, code, name, message):
    file = tmp_path / "h.py"
    file.write_bytes(code.encode("latin-1"))
    assert bool(problems(f"{file}:{name}", "pytorch")) == bool(message)
    with pytest.raises(ConfigError, match=message) if message else nullcontext():
        assert named(f"{file}:{name}").text == code


def test_handler_names_and_files_are_distinguished():
    assert problems("mnist_pytorch", "pytorch") == []
    assert "did you mean 'mnist_pytorch'?" in problems("mnist_pytorc", "pytorch")[0]
    assert "no file there" in problems("gone.py", "pytorch")[0]
    with pytest.raises(ConfigError, match="unknown data_handler"):
        load("gone", "mnist")


def test_custom_handler_code_runs_in_the_party_and_never_before(tmp_path):
    file = tmp_path / "h.py"
    file.write_text(CUSTOM)
    source = pickle.loads(pickle.dumps(named(f"{file}:Mine")))
    file.unlink()  # it exists on the driver only
    got = load(source, "some/where")
    assert (got.n_train, got.n_test) == (4, 0)
    assert got.x_train.tolist() == [[1, 1]] * 4
    before = set(sys.modules)
    with pytest.raises(ZeroDivisionError):
        load(replace(source, text="1 / 0"), "some/where")
    assert set(sys.modules) == before
    with pytest.raises(DataError):
        load(replace(source, text="Mine = 3"), "some/where")


def test_a_data_path_that_leads_out_of_its_root_is_refused(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "secret.npz"
    root.mkdir()
    for file in (root / "a.npz", outside):
        file.write_bytes(b"x")
    (root / "b.npz").symlink_to(root / "a.npz")
    (root / "c.npz").symlink_to(outside)
    (root / "d").symlink_to(tmp_path)
    (tmp_path / "alias").symlink_to(root)
    for path in ("a.npz", "b.npz", str(root / "a.npz"), "./a.npz"):
        assert data.resolve_in_root(path, str(root)) == str(root / "a.npz")
    alias = tmp_path / "alias"
    assert data.resolve_in_root(str(alias / "a.npz"), str(alias)) == str(root / "a.npz")
    for path in ("../secret.npz", str(outside), "c.npz", "d/secret.npz", "..", "x\0"):
        with pytest.raises(DataError, match="elsewhere"):
            data.resolve_in_root(path, str(root))
    with pytest.raises(DataError, match="nothing there"):
        data.resolve_in_root("e.npz", str(root))
    with pytest.raises(DataError, match="no such folder"):
        data.resolve_in_root("a.npz", str(tmp_path / "gone"))
