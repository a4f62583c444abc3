"""Data handler interface, and checks of the samples that a handler returns.

No error here contains a sample's value: errors leave the party, samples do not.
"""

import hashlib
import operator
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from fedray import limits
from fedray.data.arrays import NOT_NUMBERS, describe, to_array
from fedray.data.text import Document, Documents, are_documents, check_documents
from fedray.errors import DataError
from fedray.file_kinds import START_BYTES, kind_of_start
from fedray.nested import Arrays
from fedray.weights import npz

MAX_BYTES = 16 << 30  # of one file, decompressed
MAX_SAMPLES = 1 << 53  # the last count that a float64 holds exactly
PAIRS = "((x_train, y_train), (x_test, y_test)) of arrays"
NPZ = "a whole npz file of numbers, as np.savez writes it"

Pair = tuple[np.ndarray, np.ndarray]
Keys = Iterable[str] | Callable[[list[str]], Iterable[str]]


class Handler(Protocol):
    """Reads one party's data, on the party's own node.

    A handler may also have ``get_train_counts() -> int``, the number of training
    samples that weighs this party's update; without it all of `x_train` count. And
    ``get_column(name) -> (train, test)``, the values (N,) of a column that the parties
    of a partition go by (`partition.by`).
    """

    def __init__(self, path: str): ...

    def get_data(self) -> tuple[Pair, Pair] | Iterable[Document]:
        """Return ``(x_train, y_train), (x_test, y_test)``; of text, documents."""


@dataclass(frozen=True, eq=False)
class Samples:
    """One party's arrays, checked.

    x_train, x_test : (N, *shape)
    y_train, y_test : (N, ...)
    n_train : number of training samples that weighs the party's update.
    column : values (N,) of training and test samples that parties are told apart by.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    n_train: int
    column: tuple[np.ndarray, np.ndarray] | None = None
    kind = "samples"

    @property
    def train(self) -> Arrays:
        """The training samples and their targets."""
        return Arrays(self.x_train, self.y_train)

    @property
    def test(self) -> Arrays:
        """The test samples and their targets."""
        return Arrays(self.x_test, self.y_test)

    @property
    def n_test(self) -> int:
        """Number of test samples, which weighs this party's loss and accuracy."""
        return len(self.x_test)

    def digest(self) -> str:
        """sha256 of all arrays, in hex; about a second for a gigabyte."""
        sha = hashlib.sha256(str(self.n_train).encode())
        for array in (self.x_train, self.y_train, self.x_test, self.y_test):
            sha.update(f"{array.dtype.str}{array.shape}".encode())
            sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return sha.hexdigest()

    def take(self, train_idx: np.ndarray, test_idx: np.ndarray) -> "Samples":
        """Copy the samples at these indices."""
        return Samples(
            self.x_train[train_idx],
            self.y_train[train_idx],
            self.x_test[test_idx],
            self.y_test[test_idx],
            len(train_idx),
        )


def load_samples(
    handler: Handler, source: str, allows_missing: bool = False
) -> Samples | Documents:
    """Get a handler's samples or documents, and check everything about them.

    Parameters
    ----------
    source : str
        What an error names: the path that the handler was made with.
    allows_missing : bool
        Whether inputs may have NaN, for a value that is missing.

    Raises
    ------
    DataError
        If there is no training sample, or the data are not finite numbers in arrays
        that fit each other. What the handler itself raises is not caught.
    """
    data: Any = handler.get_data()  # a custom class may return anything
    if are_documents(data):
        documents = check_documents(data, source)
        n_train = train_count(handler, documents.n_train, source)
        return replace(documents, n_train=n_train)
    if not _is_pair(data) or not all(_is_pair(pair) for pair in data):
        got = f"get_data() that gives a {type(data).__name__} of another form"
        raise DataError(source, got, PAIRS)
    (x_train, y_train), (x_test, y_test) = data
    x_train, y_train = _check_pair(x_train, y_train, "train", source, allows_missing)
    x_test, y_test = _check_pair(x_test, y_test, "test", source, allows_missing)
    if not len(x_train):
        needed = "at least one: look at the path, or leave this party out"
        raise DataError(source, "no training samples", needed)
    for name, train, test in (("x", x_train, x_test), ("y", y_train, y_test)):
        if len(test) and train.shape[1:] != test.shape[1:]:
            got = f"{name}_train {describe(train)} and {name}_test {describe(test)}"
            raise DataError(source, got, "samples of one shape in both")
    n_train = train_count(handler, len(x_train), source)
    return Samples(x_train, y_train, x_test, y_test, n_train)


def read_npz(
    path: str | Path, keys: Keys, may_be_text: bool = False
) -> dict[str, np.ndarray]:
    """Read arrays of numbers from an untrusted npz file.

    Names, sizes and dtypes are checked before memory is allocated; pickles are refused,
    checksums verified. Arrays under other keys are not read.

    keys : or a function that chooses among those that the file has.
    may_be_text : whether arrays of texts are read too.

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
            return _read_members(file, str(path), keys, may_be_text)
    except DataError:
        raise
    except Exception as error:
        # hostile bytes break zipfile and numpy in too many ways to list them all
        got = f"a file that cannot be read ({type(error).__name__})"
        raise DataError(str(path), got, NPZ) from None


def _read_members(
    file: BinaryIO, path: str, keys: Keys, may_be_text: bool
) -> dict[str, np.ndarray]:
    start = file.read(START_BYTES)
    if start[:4] not in (b"PK\x03\x04", b"PK\x05\x06"):
        kind = kind_of_start(start, Path(path).suffix)
        what = f", but {kind.what}" if kind else ""
        raise DataError(path, f"a file that is not an npz{what}", NPZ)
    with zipfile.ZipFile(npz.BoundedReader(file)) as archive:
        members = archive.infolist()
        names = [member.filename.removesuffix(".npy") for member in members]
        keys = list(keys(names) if callable(keys) else keys)
        missing = [key for key in keys if key not in names]
        if missing:
            existing = ", ".join(repr(name[:40]) for name in names[:20]) or "nothing"
            raise DataError(path, f"the keys {existing}", f"also {', '.join(missing)}")
        if len(set(names)) < len(names):
            raise DataError(path, "two arrays of one name", "one array per key")
        _check_sizes(members, path)
        by_name = dict(zip(names, members, strict=True))
        return {
            key: _read_array(archive, by_name[key], path, may_be_text) for key in keys
        }


def _check_sizes(members: list[zipfile.ZipInfo], path: str) -> None:
    if sum(member.file_size for member in members) > MAX_BYTES:
        needed = f"at most {MAX_BYTES >> 30} GiB"
        raise DataError(path, "a file that inflates past its bounds", needed)
    for member in members:
        array = f"an array {member.filename[:40]!r}"
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(path, f"{array} compressed in another way", NPZ)
        most = limits.max_inflated_bytes(member.compress_size, MAX_BYTES)
        if member.file_size > most:
            times = member.file_size // max(1, member.compress_size)
            needed = f"at most {limits.MAX_INFLATION} times, or write it with np.savez"
            raise DataError(path, f"{array} that inflates {times} times", needed)


def _read_array(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: str, may_be_text: bool
) -> np.ndarray:
    name = f"an array {member.filename[:40]!r}"
    with archive.open(member) as file:
        try:
            dtype = npz.check_header(file, member.file_size)
        except ValueError as error:
            reason = " ".join(str(error).split())[:100]
            raise DataError(path, f"{name} of {reason}", NPZ) from None
        if dtype.kind in NOT_NUMBERS and not (may_be_text and dtype.kind in "US"):
            holds, needed = NOT_NUMBERS[dtype.kind]
            raise DataError(path, f"{name} that holds {holds}", needed)
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2


def _check_pair(x: Any, y: Any, part: str, source: str, allows_missing: bool) -> Pair:
    x = to_array(x, f"x_{part}", source, allows_missing)
    y = to_array(y, f"y_{part}", source)
    if len(x) != len(y):
        got = f"{len(x)} x_{part} and {len(y)} y_{part}"
        raise DataError(source, got, "one y for each x")
    return x, y


def train_count(handler: Handler, n_samples: int, source: str) -> int:
    """What `get_train_counts` returns, checked; without it `n_samples`."""
    get_count = getattr(handler, "get_train_counts", None)
    n_train = n_samples if get_count is None else get_count()
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


NEEDED_PATH = "a path within the operator's data root, on the party's own node"


def resolve_in_root(path: str, root: str) -> str:
    """The absolute path of data in `root`, with links resolved before the check.

    Raises
    ------
    DataError
        If it leads out of `root`, or does not exist. The error names the path within
        `root` only.
    """
    try:
        folder = Path(root).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        needed = "the operator's data root on every node that holds data"
        raise DataError("root", "no such folder on this node", needed) from None
    source = path.removeprefix(str(root)).lstrip("/")[:200]
    try:
        resolved = (folder / path).resolve()
        resolved.relative_to(folder)
    except (OSError, ValueError, RuntimeError):
        raise DataError(source, "a path that leads elsewhere", NEEDED_PATH) from None
    if not resolved.exists():
        raise DataError(source, "nothing there on this node", NEEDED_PATH)
    return str(resolved)
