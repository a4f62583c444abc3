"""Data handlers image_folder, npz, text_lines; options of one's own handlers."""

import json
import os
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.comparison import assert_close
from support.local_rounds import HERE, federation, fedray_rounds

from fedray.data import ImageFolder, Npz, Origin, TextLines, load, named, problems
from fedray.data.options import CsvOptions
from fedray.errors import DataError
from fedray.party import probe_party
from fedray.survey import DataSurvey

SECRET = "4711"


def png(height, width, data):
    """A PNG file that says to have some size."""

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", checksum)
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


@pytest.fixture
def pictures(tmp_path):
    """Class folders: cat has a grey picture, dog two in colour, emu none."""
    image = pytest.importorskip("PIL.Image")
    for label, values in {"cat": [51], "dog": [102, 204], "emu": []}.items():
        (tmp_path / "pets" / label / "more").mkdir(parents=True)
        for i, value in enumerate(values):
            mode = "L" if label == "cat" else "RGB"
            colour = value if mode == "L" else (value, 0, 255)
            file = tmp_path / "pets" / label / "more" / f"{i}.png"
            image.new(mode, (3, 2), colour).save(file)
    return tmp_path / "pets"


def test_pictures_of_class_folders_are_floats_from_0_to_1(pictures):
    (x, y), (x_test, _) = ImageFolder(str(pictures), test=0).get_data()
    assert (x.dtype, x.shape, len(x_test)) == (np.float32, (3, 3, 2, 3), 0)
    assert x[:, :, 0, 0].tolist() == [
        [np.float32(0.2)] * 3, [np.float32(0.4), 0, 1], [np.float32(0.8), 0, 1],
    ]  # fmt: skip
    assert (y.dtype, y.tolist()) == (np.int64, [0, 1, 1])
    grey = ImageFolder(str(pictures), test=0, channels=1, size=[4, 6])
    assert grey.get_data()[0][0].shape == (3, 1, 4, 6)
    for options in ({"origin": Origin(channels_last=True)}, {"channels_last": True}):
        last = ImageFolder(str(pictures), test=0, **options)
        assert np.array_equal(last.get_data()[0][0], x.transpose(0, 2, 3, 1))


def test_names_of_empty_folders_are_classes_too(pictures, tmp_path):
    (tmp_path / "other" / "ant").mkdir(parents=True)
    os.link(pictures / "dog/more/0.png", tmp_path / "other" / "ant" / "0.png")
    handlers = [ImageFolder(str(f), test=0) for f in (pictures, tmp_path / "other")]
    survey = DataSurvey.merge([handler.get_survey() for handler in handlers])
    assert survey.codes().labels == ("ant", "cat", "dog", "emu")
    assert survey.labels.counts["emu"] == 0
    for handler, labels in zip(handlers, ([1, 2, 2], [0]), strict=True):
        handler.use_codes(survey.codes())
        assert handler.get_data()[0][1].tolist() == labels


def test_train_and_test_folders_are_the_two_parts(pictures, tmp_path):
    for part, label in (("train", "cat"), ("train", "dog"), ("test", "dog")):
        folder = tmp_path / "both" / part / label
        folder.mkdir(parents=True)
        os.link(pictures / "dog/more/0.png", folder / "a.png")
    (x, y), (_, y_test) = ImageFolder(str(tmp_path / "both")).get_data()
    assert (len(x), y.tolist(), y_test.tolist()) == (2, [0, 1], [1])
    other = ImageFolder(str(pictures), test=str(tmp_path / "both" / "test"))
    assert other.get_data()[1][1].tolist() == [1]
    (x, _), (x_test, _) = ImageFolder(str(pictures), test=0.4).get_data()
    assert (len(x), len(x_test)) == (2, 1)


@pytest.mark.parametrize(
    ("folders", "counts"),
    [
        ("train/cat train/dog val/dog", (2, 1)),
        ("train/cat train/dog validation/cat val/dog", (2, 1)),
        ("train/cat train/dog train/emu", (2, 1)),  # without tests: a share
        ("train/old car/new", (1, 1)),  # a class of trains
        ("train val", (1, 1)),  # pictures beside each other: classes
    ],
)
def test_a_train_folder_is_a_part_unless_it_is_a_class(
    pictures, tmp_path, folders, counts
):
    for folder in folders.split():
        (tmp_path / "all" / folder).mkdir(parents=True)
        os.link(pictures / "dog/more/0.png", tmp_path / "all" / folder / "a.png")
    handler = ImageFolder(str(tmp_path / "all"), test=0.4)
    (x, _), (x_test, _) = handler.get_data()
    assert (len(x), len(x_test)) == counts
    is_class = "train" in handler.get_survey().labels.counts
    assert is_class == (counts == (1, 1))


def test_deep_pictures_are_scaled_by_16_bits(pictures):
    image = pytest.importorskip("PIL.Image")
    deep = np.full((2, 3), 13107, np.uint16)  # a fifth of 65535
    image.fromarray(deep).save(pictures / "emu" / "deep.png")
    (x, _), _ = ImageFolder(str(pictures), test=0).get_data()
    assert np.allclose(x[3], 0.2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "'emu/bad.png', no picture that Pillow knows"),
        (b"<html>" * 99, "'emu/bad.png', no picture that Pillow knows"),
        (png(2, 3, b"\0" * 8)[:45], "'emu/bad.png', a broken picture"),
        (png(90_000, 90_000, b"\0" * 99), "'emu/bad.png', more pixels than Pillow"),
        (png(3, 3, b"\0" * 12), "'emu/bad.png' of 3×3 pixels; needed all 2×3, or data"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 3 2\n", "no picture that"),
    ],
    ids=range(6),
)  # fmt: skip
def test_a_broken_picture_is_named(pictures, content, words):
    (pictures / "emu" / "bad.png").write_bytes(content)
    with pytest.raises(DataError) as error:
        ImageFolder(str(pictures), test=0).get_data()
    assert words in str(error.value)


def test_folders_without_classes_or_out_of_the_root_are_refused(pictures, tmp_path):
    cases = {"none": "no folder there", "pets/emu": "no pictures",
             "pets/dog/more": "pictures that lie in no class folder"}  # fmt: skip
    for path, words in cases.items():
        with pytest.raises(DataError, match=words):
            ImageFolder(str(tmp_path / path)).get_data()
    outside = tmp_path / "outside.png"
    (pictures / "dog/more/0.png").rename(outside)
    (pictures / "dog/more/0.png").symlink_to(outside)
    with pytest.raises(DataError, match="leads out of the data root"):
        ImageFolder(str(pictures), origin=Origin(root=str(pictures))).get_data()


PETS = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(8, 3))
"""


def test_pictures_that_stay_in_their_files_train_the_same_bits(pictures, tmp_path):
    image = pytest.importorskip("PIL.Image")
    draw = np.random.default_rng(0)
    for i in range(30):
        pixels = draw.integers(0, 256, (2, 3, 3), np.uint8)
        image.fromarray(pixels).save(pictures / ("cat", "dog")[i % 2] / f"{i}.png")
    (tmp_path / "pets.py").write_text(PETS)
    settings = {
        "architecture": f"{tmp_path}/pets.py:net", "data_handler": "image_folder",
        "parties": [{"name": "a", "data": str(pictures)}], "batch_size": 4,
        "rounds": 2, "epochs": 2, "learning_rate": 0.1,
    }  # fmt: skip
    memory = fedray_rounds(settings)
    settings["data_args"] = {"in_memory": False}
    assert_close(fedray_rounds(settings), memory, 0)
    _, parties, _ = federation(settings)
    group = parties["a"]
    keras = group.plan.config.with_changes(model_type="keras")
    assert replace(group.plan, config=keras).origin == Origin("a", channels_last=True)
    found = probe_party(group.plan, lambda: HERE)
    assert (found.n_train, found.n_test) == (26, 7)
    assert found.samples == "float32[3, 2, 3]"
    assert load(named("image_folder"), str(pictures), settings["data_args"]).test


def test_a_broken_picture_that_is_read_later_is_named_too(pictures, tmp_path):
    (pictures / "emu" / "bad.png").write_bytes(b"")
    handler = ImageFolder(str(pictures), test=0, in_memory=False)
    train, test = handler.get_data()
    assert (len(train), test, train[0][1]) == (4, None, 0)
    with pytest.raises(DataError, match=r"'emu/bad\.png', no picture that Pillow"):
        train[3]


X, Y = np.arange(20.0).reshape(10, 2), np.arange(10)


def npz(folder, **arrays):
    np.savez(folder / "a.npz", **arrays)
    return str(folder / "a.npz")


def test_arrays_of_an_npz_under_any_names(tmp_path):
    path = npz(tmp_path, ids=X, mask=X > 3, label=Y, x=X, y=Y)
    (x, y), (x_test, y_test) = Npz(path).get_data()
    assert (len(x), len(x_test)) == (8, 2)
    assert sorted([*y, *y_test]) == Y.tolist()
    assert (x[:, 0] / 2 == y).all()  # samples stay whole
    (x, y), _ = Npz(path, test=0, x={"i": "ids", "m": "mask"}, y="label").get_data()
    assert (list(x), x["m"].dtype, y.tolist()) == (["i", "m"], bool, Y.tolist())
    (x, y), _ = Npz(path, test=0, x=["ids", "mask"], y=[]).get_data()
    assert (type(x), len(x), y) == (tuple, 2, None)
    four = npz(tmp_path, x_train=X, y_train=Y, x_test=X[:3], y_test=Y[:3])
    assert load("npz", four).n_test == 3


def test_texts_as_targets_of_an_npz_are_classes(tmp_path):
    for names in (np.array(["b", "a"] * 5), np.array([b"b", b"a"] * 5)):
        handler = Npz(npz(tmp_path, x=X, y=names), test=0)
        assert handler.get_survey().codes().labels == ("a", "b")
        assert handler.get_data()[0][1].tolist() == [1, 0] * 5


def test_an_array_may_hold_the_party_of_each_sample(tmp_path):
    sites = np.array(["north", "south"] * 5)
    path = npz(tmp_path, x=X, y=Y, site=sites)
    handler = Npz(path, origin=Origin(by="site"))
    (_, y), (_, y_test) = handler.get_data()
    for labels, names in zip((y, y_test), handler.get_column("site"), strict=True):
        assert (sites[labels] == names).all()
    assert handler.get_column("site")[1].tolist() in (["north", "south"],
                                                      ["south", "north"])  # fmt: skip
    assert handler.get_values("site") == ["north", "south"]


@pytest.mark.parametrize(
    ("arrays", "options", "words"),
    [
        ({"f": X, "t": Y}, {}, r"no array x_train or x, but \['f', 't'\]; needed data"),
        ({"x": X, "t": Y}, {}, r"no array y_train or y, but .* or y: \[\] for none"),
        ({"x": X, "y": Y}, {"x": "z"}, "the keys 'x', 'y'; needed also z"),
        ({"x": X, "y": Y[:4]}, {}, "10 'x', 4 'y'; needed arrays of one length"),
        ({"x_train": X, "y_train": Y, "x_test": X}, {}, "tests of x without tests of"),
        ({"x": np.float64(1), "y": Y}, {}, "an array 'x' that is a single number"),
        ({"x": np.array([{}] * 10), "y": Y}, {}, "Python objects; needed numbers"),
    ],
)  # fmt: skip
def test_what_an_npz_cannot_be(tmp_path, arrays, options, words):
    with pytest.raises(DataError, match=words):
        Npz(npz(tmp_path, **arrays), **options).get_data()


def lines(folder, *values):
    text = "\n".join(v if isinstance(v, str) else json.dumps(v) for v in values)
    (folder / "a.jsonl").write_text(text)
    return str(folder / "a.jsonl")


def test_texts_become_padded_tokens_and_labels_codes(tmp_path):
    path = lines(
        tmp_path, {"text": "ab", "label": "no"}, {"text": "abcd", "label": "a"}
    )
    (x, y), _ = TextLines(path, test=0, max_length=3).get_data()
    assert x["input_ids"].tolist() == [[98, 99, 0], [98, 99, 100]]  # byte + 1; 0 pads
    assert x["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert (x["input_ids"].dtype, y.tolist()) == (np.int64, [1, 0])
    (x, y), _ = TextLines(path, test=0, max_length=3, label="tokens").get_data()
    assert y.tolist() == [[98, 99, -100], [98, 99, 100]]
    assert TextLines(path, test=0, label=[]).get_data()[0][1] is None
    numbers = lines(tmp_path, {"t": "a", "stars": 1}, {"t": "b", "stars": 2.5})
    (_, y), _ = TextLines(numbers, test=0, text="t", label="stars").get_data()
    assert (y.dtype, y.tolist()) == (np.float32, [1, 2.5])


def test_a_tokenizer_of_a_local_folder_gives_the_tokens(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[PAD]": 7, "[UNK]": 1, "hello": 2, "world": 3}
    model = tokenizers.models.WordLevel(words, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = lines(
        tmp_path, {"text": "hello big world", "label": 1}, {"text": "hello", "label": 0}
    )
    options = {"tokenizer": str(tmp_path), "max_length": 4}
    (x, _), _ = TextLines(path, test=0, **options).get_data()
    assert x["input_ids"].tolist() == [[2, 1, 3, 7], [2, 7, 7, 7]]
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="a tokenizer that cannot be read"):
        TextLines(path, **options).get_data()
    with pytest.raises(DataError, match="no folder there"):
        TextLines(path, tokenizer=str(tmp_path / "none")).get_data()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{4711", "line 2 that is not JSON"),
        ({"label": "a"}, "line 2: got no 'text' among its keys"),
        ({"text": 4711, "label": "a"}, "line 2: got a line with a text of type int"),
        ({"text": "4711"}, r"line 2: got no 'label'; needed .* \[\] is none"),
        ({"text": "a", "label": 4711}, "line 2: got a 'label' that is a number"),
        ({"text": "a", "label": ["4711"]}, "line 2: got a 'label' of type list"),
        ('{"text": "a", "label": NaN}', "line 2: got a 'label' of type float"),
    ],
)
def test_what_a_line_cannot_be(tmp_path, line, words):
    path = lines(tmp_path, {"text": "a", "label": "b"}, line)
    with pytest.raises(DataError, match=words) as error:
        TextLines(path).get_data()
    assert SECRET not in str(error.value)
    with pytest.raises(DataError, match="no lines"):
        TextLines(lines(tmp_path, "")).get_data()


OWN = """
import numpy

class Base:
    def __init__(self, path, n=3, *, scale=1.0):
        self.n, self.scale = n, scale

    def get_data(self):
        x = numpy.full((self.n, 2), self.scale)
        return (x, [0] * self.n), (x[:0], [])

class Mine(Base):
    pass

class Open(Base):
    def __init__(self, path, **options):
        super().__init__(path, **options)
"""


def test_options_reach_ones_own_handler_by_name_where_they_are_given(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    for name in ("Mine", "Base", "Open"):
        handler = f"{tmp_path}/mine.py:{name}"
        assert problems(handler, "pytorch", {"n": 2, "scale": 2.0}) == []
        samples = load(named(handler), "data", {"n": 2, "scale": 2.0})
        assert samples.x_train.tolist() == [[2, 2], [2, 2]]
        assert len(load(named(handler), "data").x_train) == 3
    for name in ("Mine", "Base"):
        handler = f"{tmp_path}/mine.py:{name}"
        (problem,) = problems(handler, "pytorch", {"m": 2, "n": 3})
        assert (
            problem == f"data_args: {name} of data_handler {handler[:-5]} takes no 'm'"
        )
        with pytest.raises(DataError, match=r"data_args\.m, which it does not take"):
            load(named(handler), "data", {"m": 2})


def test_the_page_has_a_row_for_every_option():
    page = Path(__file__).parent.parent / "docs" / "data.md"
    sections = page.read_text(encoding="utf-8").split("\n## ")[1:]
    headings = {
        "Tables": {*CsvOptions.model_fields},
        "Images": {*ImageFolder.options_class.model_fields},
        "Arrays": {*Npz.options_class.model_fields},
        "Texts": {*TextLines.options_class.model_fields},
    }
    for section in sections:
        rows = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        assert {*rows} == headings.get(re.split(r"\W", section)[0], set())
