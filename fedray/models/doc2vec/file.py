"""The model file: an npz of numbers and text, read without trusting what it says."""

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedray.config import Doc2VecSpec, keys_of
from fedray.errors import ConfigError, ModelFileError

if TYPE_CHECKING:
    from gensim.models import Doc2Vec

FORMAT = "fedray doc2vec 1"
MEMBERS = ("header", "words", "counts", "wv", "syn1neg")
MAX_BYTES = 16 << 30
MAX_HEADER = 1 << 16
MAX_WORD = 100  # letters


@dataclass(frozen=True)
class Stored:
    """What a model file holds; `arrays` are wv and syn1neg, float32 (V, size)."""

    words: tuple[str, ...]
    counts: tuple[int, ...]
    arrays: dict[str, np.ndarray]
    spec: Doc2VecSpec
    seed: int
    learning_rate: float
    passes: int
    run: str


def write(stored: Stored, path: Path) -> None:
    """Write header (JSON) and words as UTF-8 bytes, the rest as arrays; no objects."""
    header = {
        "format": FORMAT,
        "spec": stored.spec.model_dump(),
        "seed": stored.seed,
        "learning_rate": stored.learning_rate,
        "passes": stored.passes,
        "run": stored.run,
    }
    np.savez(
        path,
        header=_bytes(json.dumps(header)),
        words=_bytes("\n".join(stored.words)),
        counts=np.array(stored.counts, np.int64),
        **stored.arrays,
    )


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def read(path: Path) -> Stored:
    """Read what `write` wrote; sizes are checked before memory is taken.

    Raises
    ------
    ModelFileError
        If the file is missing, is no such npz, is truncated, or declares what it
        does not hold. No pickle is ever read.
    """
    try:
        with open(path, "rb") as opened, zipfile.ZipFile(opened) as archive:
            members = _members(archive, path)
            arrays = {name: _array(archive, members[name]) for name in MEMBERS}
        return _stored(arrays)
    except ModelFileError:
        raise
    except FileNotFoundError:
        raise ModelFileError(str(path), "there is no such file") from None
    except Exception as error:
        # hostile bytes break zipfile, numpy and json in too many ways to list them all
        kind = type(error).__name__
        told = f": {error}" if isinstance(error, _Wrong) else ""
        reason = f"cannot be read as a doc2vec npz ({kind}{told})"
        raise ModelFileError(str(path), reason) from None


class _Wrong(ValueError):
    """What is wrong, in words of ours."""


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    members = archive.infolist()
    names = sorted(member.filename for member in members)
    if names != sorted(f"{name}.npy" for name in MEMBERS):
        raise ModelFileError(str(path), f"must hold exactly {', '.join(MEMBERS)}")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise _Wrong("members must be stored, not compressed")
        if member.file_size != member.compress_size or member.file_size > MAX_BYTES:
            raise _Wrong("a member of another size than it declares")
    return {member.filename.removesuffix(".npy"): member for member in members}


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    data = archive.read(member)  # stored, so no more than the file is long
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)


def _stored(arrays: dict[str, np.ndarray]) -> Stored:
    head = _header(_text(arrays["header"], MAX_HEADER))
    words = tuple(_text(arrays["words"], MAX_BYTES).split("\n"))
    for word in words:
        if not 0 < len(word) <= MAX_WORD or not word.isprintable() or " " in word:
            raise _Wrong("a word that no text can have")
    if len(set(words)) < len(words):
        raise _Wrong("a word that is there twice")
    counts = arrays["counts"]
    if counts.shape != (len(words),) or counts.dtype != np.int64 or counts.min() < 1:
        raise _Wrong("counts that are not whole numbers above 0, one for each word")
    if counts.max() > 1 << 53:
        raise _Wrong("counts past 2**53")
    shape = len(words), head["spec"].vector_size
    for name in ("wv", "syn1neg"):
        array = arrays[name]
        if array.shape != shape or array.dtype != np.float32:
            raise _Wrong(f"{name} must be float32 {list(shape)}")
        if not np.isfinite(array).all():
            raise _Wrong(f"{name} is not finite")
    tensors = {name: np.ascontiguousarray(arrays[name]) for name in ("wv", "syn1neg")}
    return Stored(words, tuple(counts.tolist()), tensors, **head)


def _text(array: np.ndarray, most: int) -> str:
    if array.ndim != 1 or array.dtype != np.uint8 or len(array) > most:
        raise _Wrong("text that is not UTF-8 bytes within bounds")
    return array.tobytes().decode()


def _header(text: str) -> dict[str, Any]:
    given = json.loads(text)
    fields = {"seed": int, "learning_rate": float, "passes": int, "run": str}
    if given.pop("format", None) != FORMAT or set(given) != {"spec", *fields}:
        raise _Wrong(f"a header that is not of {FORMAT!r}")
    forms = {name: key.type for name, key in keys_of(Doc2VecSpec).items()}
    spec = given["spec"]
    if set(spec) != set(forms) or any(type(spec[k]) is not t for k, t in forms.items()):
        raise _Wrong("a spec of other keys or kinds")
    found = []
    try:
        given["spec"] = Doc2VecSpec(**spec)
    except ConfigError as error:
        found += error.problems
    found += [key for key, kind in fields.items() if type(given[key]) is not kind]
    found += [] if 0 < given["learning_rate"] < 1e6 else ["learning_rate"]
    found += [] if 1 <= given["passes"] <= 10_000 else ["passes"]
    if found:
        raise _Wrong(f"a header whose values are out of bounds: {', '.join(found)}")
    return given


def to_gensim(path: str | Path) -> "Doc2Vec":
    """The global model in plain gensim: its words, and vectors for new documents.

    It has no document vectors: those never left their parties. Two models made of one
    file infer the same bits (gensim starts a vector from Python's `hash` of the text,
    so across processes only under the same PYTHONHASHSEED).

    Raises
    ------
    ModelFileError
        If the file cannot be read, or is not safe to read.
    """
    from fedray.models.doc2vec.training import built

    stored = read(Path(path))
    model = built(stored)
    model.wv.vectors[:] = stored.arrays["wv"]
    model.syn1neg[:] = stored.arrays["syn1neg"]
    return model
