"""doc2vec model file: an npz of arrays and text, checked when it is read."""

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedray.config import Doc2VecSpec, keys_of
from fedray.errors import ConfigError, ModelFileError
from fedray.file_kinds import kind_of_start, read_start
from fedray.untrusted_text import is_word

if TYPE_CHECKING:
    from gensim.models import Doc2Vec

FORMAT = "fedray doc2vec 1"
MEMBERS = ("header", "words", "counts", "wv", "syn1neg")
MAX_BYTES = 16 << 30
MAX_HEADER_BYTES = 1 << 16
MAX_WORD = 100  # letters


@dataclass(frozen=True)
class StoredModel:
    """What a model file holds.

    words, counts : (V,) in the order of the rows, counts over all parties.
    arrays : wv (word vectors) and syn1neg (output weights), float32 (V, size).
    passes : over a new document.
    run : name of the run that made it.
    """

    words: tuple[str, ...]
    counts: tuple[int, ...]
    arrays: dict[str, np.ndarray]
    spec: Doc2VecSpec
    seed: int
    learning_rate: float
    passes: int
    run: str


def write(stored: StoredModel, path: Path) -> None:
    """Write an npz: header (JSON) and words as UTF-8 bytes, the rest as arrays."""
    header = {
        "format": FORMAT,
        "spec": stored.spec.model_dump(),
        "seed": stored.seed,
        "learning_rate": stored.learning_rate,
        "passes": stored.passes,
        "run": stored.run,
    }
    members: dict[str, Any] = {
        "header": _to_bytes(json.dumps(header)),
        "words": _to_bytes("\n".join(stored.words)),
        "counts": np.array(stored.counts, np.int64),
        **stored.arrays,
    }
    np.savez(path, **members)


def _to_bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def read(path: Path) -> StoredModel:
    """Read what `write` wrote; sizes are checked before memory is allocated.

    Raises
    ------
    ModelFileError
        If the file is missing, is no such npz, is truncated, or declares more than it
        holds. No pickle is ever read.
    """
    try:
        _check_kind(path)
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            members = _check_members(archive, path)
            arrays = {name: _read_array(archive, members[name]) for name in MEMBERS}
        return _check_model(arrays)
    except ModelFileError:
        raise
    except FileNotFoundError:
        raise ModelFileError(str(path), "there is no such file") from None
    except Exception as error:
        # hostile bytes break zipfile, numpy and json in too many ways to list them all
        is_ours = isinstance(error, InvalidModel)
        detail = str(error) if is_ours else type(error).__name__
        reason = f"cannot be read as a doc2vec npz ({detail})"
        raise ModelFileError(str(path), reason) from None


def _check_kind(path: Path) -> None:
    """Refuse files of kinds that are known, and that are no npz."""
    start = read_start(path)
    if not start.startswith(b"PK") and (kind := kind_of_start(start, path.suffix)):
        advice = "give the global_model.npz of an earlier run, or leave model_file out"
        raise ModelFileError(str(path), f"is {kind.what}: {advice}")


class InvalidModel(ValueError):
    """Why a file is no doc2vec model, in a text that may be quote."""


def _check_members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    members = archive.infolist()
    names = sorted(member.filename for member in members)
    if names != sorted(f"{name}.npy" for name in MEMBERS):
        raise ModelFileError(str(path), f"must hold exactly {', '.join(MEMBERS)}")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise InvalidModel("members must be stored, not compressed")
        if member.file_size != member.compress_size or member.file_size > MAX_BYTES:
            raise InvalidModel("a member of another size than it declares")
    return {member.filename.removesuffix(".npy"): member for member in members}


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    data = archive.read(member)  # stored, so no more than the file is long
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)


def _check_model(arrays: dict[str, np.ndarray]) -> StoredModel:
    header = _check_header(_to_text(arrays["header"], MAX_HEADER_BYTES))
    words = tuple(_to_text(arrays["words"], MAX_BYTES).split("\n"))
    for word in words:
        if not 0 < len(word) <= MAX_WORD or not is_word(word):
            raise InvalidModel("a word that no text can have")
    if len(set(words)) < len(words):
        raise InvalidModel("a word that is there twice")
    counts = arrays["counts"]
    if counts.shape != (len(words),) or counts.dtype != np.int64 or counts.min() < 1:
        raise InvalidModel(
            "counts that are not whole numbers above 0, one for each word"
        )
    if counts.max() > 1 << 53:
        raise InvalidModel("counts past 2**53")
    shape = len(words), header["spec"].vector_size
    for name in ("wv", "syn1neg"):
        array = arrays[name]
        if array.shape != shape or array.dtype != np.float32:
            raise InvalidModel(f"{name} must be float32 {list(shape)}")
        if not np.isfinite(array).all():
            raise InvalidModel(f"{name} is not finite")
    tensors = {name: np.ascontiguousarray(arrays[name]) for name in ("wv", "syn1neg")}
    return StoredModel(words, tuple(counts.tolist()), tensors, **header)


def _to_text(array: np.ndarray, most: int) -> str:
    if array.ndim != 1 or array.dtype != np.uint8 or len(array) > most:
        raise InvalidModel("text that is not UTF-8 bytes within bounds")
    return array.tobytes().decode()


def _check_header(text: str) -> dict[str, Any]:
    header = json.loads(text)
    fields = {"seed": int, "learning_rate": float, "passes": int, "run": str}
    if header.pop("format", None) != FORMAT or set(header) != {"spec", *fields}:
        raise InvalidModel(f"a header that is not of {FORMAT!r}")
    _check_spec_types(header["spec"])
    problems: list[str] = []
    try:
        header["spec"] = Doc2VecSpec(**header["spec"])
    except ConfigError as error:
        problems += error.problems
    problems += [key for key, kind in fields.items() if type(header[key]) is not kind]
    problems += [] if 0 < header["learning_rate"] < 1e6 else ["learning_rate"]
    problems += [] if 1 <= header["passes"] <= 10_000 else ["passes"]
    if problems:
        listed = ", ".join(problems)
        raise InvalidModel(f"a header whose values are out of bounds: {listed}")
    return header


def _check_spec_types(spec: dict[str, Any]) -> None:
    types = {name: key.type for name, key in keys_of(Doc2VecSpec).items()}
    if set(spec) != set(types) or any(type(spec[k]) is not t for k, t in types.items()):
        raise InvalidModel("a spec of other keys or kinds")


def to_gensim(path: str | Path) -> "Doc2Vec":
    """Convert a model file to a plain gensim model.

    It has the words and infers vectors of new documents. It has no document vectors:
    those never left their parties. Two models made of one file infer the same bits
    (gensim starts a vector from Python's `hash` of the text, so across processes only
    under the same PYTHONHASHSEED).

    Raises
    ------
    ModelFileError
        If the file cannot be read, or is not safe to read.
    """
    from fedray.models.doc2vec.training import make_gensim

    stored = read(Path(path))
    model = make_gensim(stored)
    model.wv.vectors[:] = stored.arrays["wv"]
    model.syn1neg[:] = stored.arrays["syn1neg"]
    return model
