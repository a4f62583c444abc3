"""Handlers and their files: what is read, what is refused, and that no sample leaks."""

import io
import pickle
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from fedray import data
from fedray.config import PartitionSpec
from fedray.data import HandlerSource, MnistPytorch, load, named, problems, read_npz
from fedray.data.split import split
from fedray.errors import ConfigError, DataError

KEYS = ("x_train", "y_train", "x_test", "y_test")
CUSTOM = """
import dataclasses
import numpy as np

@dataclasses.dataclass
class Note:
    text: str

class Mine:
    def __init__(self, path):
        self.path = path

    def get_data(self):
        return (np.ones((4, 2)), [0, 1, 2, 3]), (np.ones((0, 2)), [])
"""


def digits(**changes):
    arrays = {
        "x_train": np.full((6, 28, 28), 51, np.uint8),
        "y_train": np.array([0, 1, 2, 9, 9, 9]),
        "x_test": np.full((2, 28, 28), 255, np.uint8),
        "y_test": np.array([0, 9]),
    }
    return arrays | changes


def saved(folder, **changes):
    np.savez(folder / "digits.npz", **digits(**changes))
    return str(folder / "digits.npz")


def samples_of(get_data, **methods):
    handler = SimpleNamespace(get_data=get_data, **methods)
    return data.samples_of(handler, "a.npz")


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zipped(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


class TestShippedDigits:
    def test_are_float_images_within_0_and_1_and_int64_labels(self):
        got = load(named("mnist_pytorch"), "mnist")
        assert got.x_train.shape == (4000, 1, 28, 28)
        assert (got.x_train.dtype, got.y_train.dtype) == (np.float32, np.int64)
        assert (got.x_train.min(), got.x_train.max()) == (0, 1)
        assert (got.n_train, got.n_test) == (4000, 1000)
        both = np.concatenate([got.y_train, got.y_test])
        assert np.bincount(both).tolist() == [500] * 10


class TestMnistPytorch:
    @pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28), (28, 28, 1), (784,)])
    def test_every_usual_shape_becomes_one_channel_images(self, tmp_path, shape):
        image = np.arange(784, dtype=np.int64) % 256
        x = np.stack([image, image]).reshape(2, *shape)
        (train, _), _ = MnistPytorch(saved(tmp_path, x_test=x)).get_data()
        _, (test, _) = MnistPytorch(saved(tmp_path, x_test=x)).get_data()
        assert test.shape == (2, 1, 28, 28)
        assert test[1, 0, 27, 27] == np.float32(15 / 255)  # 783 % 256
        assert train[0, 0, 0, 0] == np.float32(0.2)  # 51 / 255

    def test_a_dark_part_is_scaled_like_the_rest_of_its_file(self, tmp_path):
        dark = np.ones((2, 28, 28), np.uint8)  # alone it would look scaled already
        _, (test, _) = MnistPytorch(saved(tmp_path, x_test=dark)).get_data()
        assert test.max() == np.float32(1 / 255)

    def test_scaled_images_are_left_as_they_are(self, tmp_path):
        x = {
            key: np.full((n, 28, 28), 0.5) for key, n in [("x_train", 6), ("x_test", 2)]
        }
        (train, _), _ = MnistPytorch(saved(tmp_path, **x)).get_data()
        assert set(train.ravel()) == {0.5}

    def test_no_test_images_are_fine(self, tmp_path):
        none = {"x_test": np.empty((0, 28, 28), np.uint8), "y_test": np.empty(0)}
        got = load(named("mnist_pytorch"), saved(tmp_path, **none))
        assert (got.n_test, got.n_train) == (0, 6)

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"x_test": np.full((2, 28, 28), -0.1)}, "below 0"),
            ({"x_test": np.full((2, 28, 28), 255.5)}, "above 255"),
            ({"x_test": np.full((2, 28, 28), np.nan)}, "not finite"),
            ({"x_test": np.full((2, 28, 28), 1e300)}, "above 255"),
            (
                {"x_test": np.zeros((2, 28, 27))},
                r"x_test of shape \[2, 28, 27\].*N×784",
            ),
            ({"x_test": np.array(3)}, r"x_test of shape \[\]"),
            ({"y_test": np.array([0, 10])}, r"y_test within 0\.\.10.*0\.\.9"),
            ({"y_test": np.array([-1, 4])}, r"y_test within -1\.\.4"),
            ({"y_test": np.array([0, 0.5])}, "between whole numbers"),
            ({"y_test": np.array([0, np.nan])}, "between whole numbers"),
            ({"y_test": np.eye(10)[:2]}, r"y_test of shape \[2, 10\]"),
            ({"y_test": np.array([1, 2, 3])}, "2 x_test and 3 y_test"),
        ],
    )
    def test_what_is_no_digit_is_refused_by_name(self, tmp_path, changes, told):
        with pytest.raises(DataError, match=told):
            load(named("mnist_pytorch"), saved(tmp_path, **changes))


class TestReadNpz:
    def test_reads_what_numpy_wrote_compressed_or_not(self, tmp_path):
        arrays = {
            "a": np.arange(6).reshape(2, 3),
            "b": np.array([True]),
            "c": np.ones(0),
        }
        arrays["d"] = np.asfortranarray(np.arange(6.0).reshape(2, 3))
        for write in (np.savez, np.savez_compressed):
            write(tmp_path / "n.npz", **arrays)
            got = read_npz(tmp_path / "n.npz", arrays)
            for key, array in arrays.items():
                assert got[key].dtype == array.dtype
                assert np.array_equal(got[key], array)

    def test_a_missing_file_must_be_on_the_partys_node(self, tmp_path):
        with pytest.raises(DataError, match="no file there.*party's own node"):
            read_npz(tmp_path / "none.npz", KEYS)
        with pytest.raises(DataError, match="no file there"):
            read_npz(tmp_path, KEYS)

    def test_missing_keys_are_told_beside_those_there(self, tmp_path):
        np.savez(tmp_path / "n.npz", x=np.ones(1), y_test=np.ones(1))
        with pytest.raises(DataError, match="'x', 'y_test'; needed also x_train, y_tr"):
            read_npz(tmp_path / "n.npz", KEYS)

    @pytest.mark.parametrize("content", [b"", b"hello", npy(np.ones(3))])
    def test_another_file_is_not_an_npz(self, tmp_path, content):
        (tmp_path / "n.npz").write_bytes(content)
        with pytest.raises(DataError, match="not an npz"):
            read_npz(tmp_path / "n.npz", KEYS)

    def test_objects_are_refused_and_never_unpickled(self, tmp_path):
        class Bomb:
            def __reduce__(self):
                return (pytest.fail, ("unpickled",))

        np.savez(tmp_path / "n.npz", a=np.array([Bomb()], object))
        with pytest.raises(DataError, match="dtype object"):
            read_npz(tmp_path / "n.npz", ["a"])
        np.savez(tmp_path / "n.npz", a=np.array(["text"]))
        with pytest.raises(DataError, match="dtype <U4"):
            read_npz(tmp_path / "n.npz", ["a"])

    def test_no_cut_or_flipped_byte_gets_another_error_or_other_numbers(self, tmp_path):
        array = np.random.default_rng(0).integers(0, 9, (5, 8))
        np.savez_compressed(tmp_path / "n.npz", a=array)
        whole = (tmp_path / "n.npz").read_bytes()
        broken = [whole[:i] for i in range(0, len(whole), 3)]
        for i in range(len(whole)):
            broken.append(whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :])
        for content in broken:
            (tmp_path / "n.npz").write_bytes(content)
            try:  # some bytes, as the date, mean nothing here
                assert np.array_equal(read_npz(tmp_path / "n.npz", ["a"])["a"], array)
            except DataError:
                pass

    def test_a_bomb_is_refused_before_it_inflates(self, tmp_path):
        zeros = npy(np.zeros(65 << 20, np.uint8))  # deflates a thousandfold
        with pytest.raises(DataError, match=r"inflates \d+ times"):
            read_npz(zipped(tmp_path / "n.npz", [("a.npy", zeros)]), ["a"])

    def test_labels_all_alike_are_no_bomb(self, tmp_path):
        np.savez_compressed(tmp_path / "n.npz", a=np.zeros(60_000, np.int64))
        assert len(read_npz(tmp_path / "n.npz", ["a"])["a"]) == 60_000

    def test_sizes_past_the_bound_are_refused_from_the_directory(self, tmp_path):
        path = zipped(tmp_path / "n.npz", [("a.npy", npy(np.ones(3)))], 0)
        content = bytearray(path.read_bytes())
        entry = content.rindex(b"PK\x01\x02")
        content[entry + 24 : entry + 28] = (0xFFFFFFF0).to_bytes(4, "little")
        path.write_bytes(content)
        with pytest.raises(DataError, match="inflates"):
            read_npz(path, ["a"])

    @pytest.mark.parametrize("shape", [(10**12,), (10**30, 0), (-1,), (4,)])
    def test_a_header_that_lies_about_its_size_takes_no_memory(self, tmp_path, shape):
        lie = npy(np.ones(3)).replace(b"(3,), }", f"{shape}, }}".encode())
        with pytest.raises(DataError, match="needed a whole npz"):
            read_npz(zipped(tmp_path / "n.npz", [("a.npy", lie)]), ["a"])

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_two_arrays_of_one_name_are_refused(self, tmp_path):
        members = [("a.npy", npy(np.ones(1))), ("a.npy", npy(np.zeros(1)))]
        with pytest.raises(DataError, match="two arrays of one name"):
            read_npz(zipped(tmp_path / "n.npz", members), ["a"])

    def test_slow_or_greedy_compressions_are_refused(self, tmp_path):
        members = [("a.npy", npy(np.ones(1)))]
        with pytest.raises(DataError, match="compressed in another way"):
            read_npz(zipped(tmp_path / "n.npz", members, zipfile.ZIP_LZMA), ["a"])
