"""What a data handler is, and the checks that its samples must pass.

No error here tells a sample's value: errors travel, samples do not.
"""

import operator
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from fedray.data.text import Documents, documents_of, is_documents
from fedray.errors import DataError
from fedray.weights import npz

KINDS = "fiub"  # float, signed, unsigned, bool: what a model can learn from
MAX_BYTES = 16 << 30  # of one file, once inflated
MAX_INFLATION = 200  # times; deflate reaches 1,032 on zeros, real data about 20
FREE_BYTES = 64 << 20  # below this no inflation hurts: labels all alike reach 800
MAX_SAMPLES = 1 << 53  # the last count that a float64 holds exactly
PAIRS = "((x_train, y_train), (x_test, y_test)) of arrays"

Pair = tuple[np.ndarray, np.ndarray]


class Handler(Protocol):
    """Reads one party's data, on the party's own node."""

    def __init__(self, path: str): ...

    def get_data(self) -> tuple[Pair, Pair]:
        """Give ``(x_train, y_train), (x_test, y_test)``; a text handler, documents."""

    def get_train_counts(self) -> int:
        """Training samples that weigh this party's update.

        A custom class may leave it out: then all of `x_train` count.
        """


@dataclass(frozen=True, eq=False)
class Samples:
    """One party's data; `n_train` weighs its update."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    n_train: int
    is_text = False

    @property
    def n_test(self) -> int:
        """Test samples, which weigh this party's loss and accuracy."""
        return len(self.x_test)

    def take(self, train_idx: np.ndarray, test_idx: np.ndarray) -> "Samples":
        """Copy the samples at these places."""
        return Samples(
            self.x_train[train_idx],
            self.y_train[train_idx],
            self.x_test[test_idx],
            self.y_test[test_idx],
            len(train_idx),
        )


def samples_of(handler: Handler, source: str) -> Samples | Documents:
    """Ask a handler for its samples and check all that it may get wrong.

    Parameters
    ----------
    source : str
        What an error names: the path that the handler was made with.

    Raises
    ------
    DataError
        If there is no training sample, or what came is not finite numbers in arrays
        that fit each other. What the handler itself raises is left as it is.
    """
    pairs = handler.get_data()
    if is_documents(pairs):
        documents = documents_of(pairs, source)
        n_train = _train_count(handler, documents.n_train, source)
        return replace(documents, n_train=n_train)
    if not _is_pair(pairs) or not all(_is_pair(pair) for pair in pairs):
        got = f"get_data() that gives a {type(pairs).__name__} of another form"
        raise DataError(source, got, PAIRS)
    (x_train, y_train), (x_test, y_test) = pairs
    x_train, y_train = _pair(x_train, y_train, "train", source)
    x_test, y_test = _pair(x_test, y_test, "test", source)
    if not len(x_train):
        needed = "at least one: look at the path, or leave this party out"
        raise DataError(source, "no training samples", needed)
    for name, train, test in (("x", x_train, x_test), ("y", y_train, y_test)):
        if len(test) and train.shape[1:] != test.shape[1:]:
            got = f"{name}_train {_form(train)} and {name}_test {_form(test)}"
            raise DataError(source, got, "samples of one shape in both")
    n_train = _train_count(handler, len(x_train), source)
    return Samples(x_train, y_train, x_test, y_test, n_train)


def read_npz(path: str | Path, keys: Iterable[str]) -> dict[str, np.ndarray]:
    """Read arrays of numbers from an npz, trusting nothing that it declares.

    Names, sizes and dtypes are checked before memory is taken; pickles are refused,
    checksums verified. Arrays under other keys are not read.

    Raises
    ------
    DataError
        If the file is missing, is not an npz, is truncated or corrupt, declares too
        much, or lacks a key.
    """
    path = Path(path)
    if not path.is_file():
        needed = "an npz file that exists on the party's own node"
        raise DataError(str(path), "no file there", needed)
    try:
        with open(path, "rb") as file:
            return _read_members(file, str(path), list(keys))
    except DataError:
        raise
    except Exception as error:
        # hostile bytes break zipfile and numpy in too many ways to list them all
        kind = type(error).__name__
        raise DataError(
            str(path), f"a file that cannot be read ({kind})", _NPZ
        ) from None


_NPZ = "a whole npz file of numbers, as np.savez writes it"


def _read_members(file: IO[bytes], path: str, keys: list[str]) -> dict[str, np.ndarray]:
    if file.read(4) not in (b"PK\x03\x04", b"PK\x05\x06"):
        raise DataError(path, "a file that is not an npz", _NPZ)
    with zipfile.ZipFile(npz.Bounded(file)) as archive:
        members = archive.infolist()
        names = [member.filename.removesuffix(".npy") for member in members]
        missing = [key for key in keys if key not in names]
        if missing:
            there = ", ".join(repr(name[:40]) for name in names[:20]) or "nothing"
            raise DataError(path, f"the keys {there}", f"also {', '.join(missing)}")
        if len(set(names)) < len(names):
            raise DataError(path, "two arrays of one name", "one array per key")
        _check_sizes(members, path)
        by_name = dict(zip(names, members, strict=True))
        return {key: _read_array(archive, by_name[key], path) for key in keys}


def _check_sizes(members: list[zipfile.ZipInfo], path: str) -> None:
    if sum(member.file_size for member in members) > MAX_BYTES:
        needed = f"at most {MAX_BYTES >> 30} GiB"
        raise DataError(path, "a file that inflates past its bounds", needed)
    for member in members:
        where = f"an array {member.filename[:40]!r}"
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(path, f"{where} compressed in another way", _NPZ)
        bound = max(FREE_BYTES, MAX_INFLATION * member.compress_size)
        if member.file_size > bound:
            times = member.file_size // max(1, member.compress_size)
            needed = f"at most {MAX_INFLATION} times, or write it with np.savez"
            raise DataError(path, f"{where} that inflates {times} times", needed)


def _read_array(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: str
) -> np.ndarray:
    where = f"an array {member.filename[:40]!r}"
    with archive.open(member) as file:
        try:
            dtype = npz.check_header(file, member.file_size)
        except ValueError as error:
            told = " ".join(str(error).split())[:100]
            raise DataError(path, f"{where} of {told}", _NPZ) from None
        if dtype.kind not in KINDS:
            raise DataError(path, f"{where} of dtype {dtype}"[:200], "numbers")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2


def _pair(x: Any, y: Any, part: str, source: str) -> Pair:
    x, y = _array(x, f"x_{part}", source), _array(y, f"y_{part}", source)
    if len(x) != len(y):
        got = f"{len(x)} x_{part} and {len(y)} y_{part}"
        raise DataError(source, got, "one y for each x")
    return x, y


def _array(value: Any, name: str, source: str) -> np.ndarray:
    needed = "an array of finite numbers, samples along its first axis"
    try:
        array = np.asarray(value)  # lists, tensors, whatever has __array__
    except Exception:
        got = f"{name} of type {type(value).__name__}, which is no array"
        raise DataError(source, got, needed) from None
    numbers = array.dtype.kind in KINDS and array.dtype.itemsize <= 8
    if not numbers or array.ndim == 0:
        raise DataError(source, f"{name} {_form(array)}", needed)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(source, f"NaN or infinity in {name}", needed)
    # torch takes neither foreign byte orders nor negative strides
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _form(array: np.ndarray) -> str:
    return f"{array.dtype.name}{list(array.shape)}"


def _train_count(handler: Handler, n_samples: int, source: str) -> int:
    count = getattr(handler, "get_train_counts", None)
    n_train = n_samples if count is None else count()
    needed = "a whole number above 0, the samples that weigh this party's update"
    got = f"get_train_counts() of type {type(n_train).__name__}"
    try:
        if isinstance(n_train, bool):
            raise DataError(source, got, needed)
        n_train = operator.index(n_train)
    except TypeError:
        raise DataError(source, got, needed) from None
    if not 1 <= n_train <= MAX_SAMPLES:
        raise DataError(source, "get_train_counts() out of bounds", needed)
    return n_train
