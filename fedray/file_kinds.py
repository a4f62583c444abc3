"""Kinds of files told by their first bytes, for the error that names what was given."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

START_BYTES = 1024  # of a file, which `kind_of_start` looks at
PICKLE = "which is code, and code in a file is never run"
INDEX = ".safetensors.index.json"  # ends the name of a file that lists shards
UNPACK = "unpack it and give the file inside"
SAVE_AGAIN = "save the model with torch.save or, of Keras, model.save"


class FileKind(NamedTuple):
    """What a file is, and what to do where a model is needed."""

    what: str
    advice: str


TORCH = FileKind("a PyTorch file", "set model_type: pytorch")
KERAS = FileKind("a Keras model", "set model_type: keras")
HDF5 = FileKind("an HDF5 file, such as Keras's .h5", "set model_type: keras")
SAFETENSORS = FileKind(
    "a .safetensors file", "set model_type: pytorch, and architecture for its layers"
)
NPZ = FileKind("an npz of numpy's arrays", SAVE_AGAIN)
GENSIM = FileKind(
    f"a gensim model, a pickle, {PICKLE}",
    "set model_type: doc2vec and leave model_file out",
)
PICKLED = FileKind(
    f"a bare pickle, {PICKLE}",
    "save the model with torch.save of torch 1.6 or newer",
)
WEB_PAGE = FileKind(
    "a web page, so the download gave an error or a login instead of the file",
    "download it again",
)
LFS_POINTER = FileKind(
    "a pointer of git-lfs, not the file itself", "run git lfs pull where it was cloned"
)
ONNX = FileKind(
    "an ONNX graph, which cannot be trained",
    "give the PyTorch or Keras model that it was exported from",
)
CODE = FileKind("Python code", "give architecture: file.py:function instead")
TEXT = FileKind("a text file", SAVE_AGAIN)

MAGIC = {  # first bytes
    b"\x89HDF\r\n\x1a\n": HDF5,
    b"\x93NUMPY": FileKind("one array of numpy (.npy)", SAVE_AGAIN),
    b"\x1f\x8b": FileKind("compressed with gzip", UNPACK),
    b"BZh": FileKind("compressed with bzip2", UNPACK),
    b"\xfd7zXZ\x00": FileKind("compressed with xz", UNPACK),
    b"\x28\xb5\x2f\xfd": FileKind("compressed with zstd", UNPACK),
    b"7z\xbc\xaf\x27\x1c": FileKind("a 7z archive", UNPACK),
    b"Rar!": FileKind("a rar archive", UNPACK),
    b"\x78\x9c": FileKind("compressed with zlib, as joblib does", UNPACK),
    b"GGUF": FileKind("a GGUF model, whose weights are quantized", SAVE_AGAIN),
    b"PAR1": FileKind("a Parquet table", SAVE_AGAIN),
    b"SQLite format 3": FileKind("an SQLite database", SAVE_AGAIN),
    b"%PDF": FileKind("a PDF", SAVE_AGAIN),
    b"\x00\x00\x08": FileKind("an IDX file, as MNIST is published in", SAVE_AGAIN),
    b"MATLAB 5.0": FileKind("a MATLAB file", SAVE_AGAIN),
    b"\x89PNG": FileKind("a PNG picture", SAVE_AGAIN),
    b"\xff\xd8\xff": FileKind("a JPEG picture", SAVE_AGAIN),
}
TEXTS = {  # how a text begins, in lower case
    "<!doctype html": WEB_PAGE,
    "<html": WEB_PAGE,
    "version https://git-lfs": LFS_POINTER,
    "<?xml": FileKind("an XML text, such as a storage's error", "download it again"),
    "{": FileKind("a JSON text, such as a server's error", "download it again"),
}
OLD_PICKLE = re.compile(rb"\(?c[\w.]+\n\w+\n")  # of protocol 0, whose bytes are text
PICKLED_BY = {  # names that a pickle's start holds
    b"gensim": GENSIM,
    b"sklearn": FileKind(
        f"a scikit-learn model, a pickle, {PICKLE}",
        "fedray trains models of PyTorch, Keras and doc2vec",
    ),
}


def read_start(path: Path) -> bytes:
    """The first bytes of a file, for `kind_of_start`."""
    with path.open("rb") as file:
        return file.read(START_BYTES)


def kind_of_start(start: bytes, suffix: str = "") -> FileKind | None:
    """The kind of a file that is no zip, by its first `START_BYTES`; None: not known.

    suffix : of its name, such as ``.onnx``, where bytes do not tell.
    """
    for magic, kind in MAGIC.items():
        if start.startswith(magic):
            return kind
    if start[257:262] == b"ustar":
        return FileKind("a tar archive", UNPACK)
    if start[4:8] == b"TFL3":
        return FileKind("a TensorFlow Lite model, which cannot be trained", SAVE_AGAIN)
    is_pickle = start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"
    if is_pickle or OLD_PICKLE.match(start):
        kinds = (kind for name, kind in PICKLED_BY.items() if name in start)
        return next(kinds, PICKLED)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32:
        return SAFETENSORS
    if suffix.lower() == ".onnx" or (start[:1] == b"\x08" and b"onnx" in start[:200]):
        return ONNX
    return _kind_of_text(start, suffix)


def _kind_of_text(start: bytes, suffix: str) -> FileKind | None:
    text = start.decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n")
    for beginning, kind in TEXTS.items():
        if text.lower().startswith(beginning):
            return kind
    n_odd = sum(not (letter.isprintable() or letter in "\t\r\n") for letter in text)
    if len(text) < 8 or n_odd or "\ufffd" in text[:-4]:
        return None
    return CODE if suffix == ".py" else TEXT


def kind_of_members(names: Iterable[str]) -> FileKind | None:
    """The kind of a zip by the names in it; None: not known."""
    names = list(names)
    if {"config.json", "model.weights.h5"} <= set(names):
        return KERAS
    if any(name.count("/") == 1 and name.endswith("/data.pkl") for name in names):
        return TORCH
    if names and all(name.endswith(".npy") for name in names):
        return NPZ
    if "[Content_Types].xml" in names:
        return FileKind("an Office document", SAVE_AGAIN)
    return None


def list_shards(index: Path) -> dict[str, list[str]]:
    """Files beside an index that a model's tensors are spread over, and their names.

    Raises
    ------
    OSError, ValueError
        If it cannot be read, or is no such index.
    """
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        shards: dict[str, list[str]] = {}
        for name, file in weight_map.items():
            if type(file) is not str or Path(file).name != file:
                raise ValueError("it names files outside its folder")
            shards.setdefault(file, []).append(name)
        return dict(sorted(shards.items()))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("it has no weight_map of names and files") from error


def files_of_model(path: Path) -> list[Path]:
    """The files that a model file consists of: itself, and an index's shards.

    Raises
    ------
    OSError, ValueError
        If an index cannot be read.
    """
    if not path.name.endswith(INDEX):
        return [path]
    return [path, *(path.parent / file for file in list_shards(path))]
