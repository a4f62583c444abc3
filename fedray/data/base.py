"""Data handler interface, and checks of the samples that a handler returns.

No error here contains a sample's value: errors leave the party, samples do not.
"""

import contextlib
import hashlib
import operator
import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from fedray import datasets, limits, nested
from fedray.data.arrays import NOT_NUMBERS
from fedray.data.structure import Reading, check_alike, split_parts, to_part
from fedray.data.text import Documents, are_documents, check_documents
from fedray.datasets import DatasetPart
from fedray.errors import DataError
from fedray.file_kinds import START_BYTES, kind_of_start
from fedray.nested import Arrays, Nested
from fedray.weights import npz

MAX_BYTES = 16 << 30  # of one file, decompressed
MAX_SAMPLES = 1 << 53  # the last count that a float64 holds exactly
NPZ = "a whole npz file of numbers, as np.savez writes it"

Keys = Iterable[str] | Callable[[list[str]], Iterable[str]]


class Handler(Protocol):
    """Reads one party's data, on the party's own node.

    A handler may also have ``get_train_counts() -> int``, the number of training
    samples that weighs this party's update; without it all of `x_train` count. A
    stream, such as torch's IterableDataset, needs it: a pass ends after so many; of a
    stream of tests ``get_test_counts()`` may say the number. And
    ``get_column(name) -> (train, test)``, the values (N,) of a column that the parties
    of a partition go by (`partition.by`).
    """

    def __init__(self, path: str): ...

    def get_data(self) -> Any:
        """Return ``(x_train, y_train), (x_test, y_test)``.

        x and y are arrays, or tuples or dicts of arrays; y may be None. In place of a
        pair may stand a dataset of torch or Hugging Face or a DataLoader, in place of
        the tests None. Of text: documents.
        """


@dataclass(frozen=True, eq=False)
class Samples:
    """One party's arrays, checked.

    x_train, x_test : nested arrays (N, ...): an array, or a tuple or dict of arrays.
    y_train, y_test : nested arrays (N, ...), or None for no targets.
    n_train : number of training samples that weighs the party's update.
    column : values (N,) of training and test samples that parties are told apart by.
    """

    x_train: Nested
    y_train: Nested
    x_test: Nested
    y_test: Nested
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
        return nested.length(self.x_test)

    def digest(self) -> str:
        """sha256 of all arrays, in hex; about a second for a gigabyte."""
        sha = hashlib.sha256(str(self.n_train).encode())
        for part in (self.x_train, self.y_train, self.x_test, self.y_test):
            for where, array in sorted(nested.arrays(part).items()):
                sha.update(f"{where}{array.dtype.str}{array.shape}".encode())
                for block in nested.blocks(array):
                    whole = np.ascontiguousarray(block).reshape(-1)
                    sha.update(whole.view(np.uint8).data)
        return sha.hexdigest()

    def take(self, train_idx: np.ndarray, test_idx: np.ndarray) -> "Samples":
        """Copy the samples at these indices; those in files stay there."""
        return Samples(
            nested.select(self.x_train, train_idx),
            nested.select(self.y_train, train_idx),
            nested.select(self.x_test, test_idx),
            nested.select(self.y_test, test_idx),
            len(train_idx),
        )


@dataclass(frozen=True, eq=False)
class LazySamples:
    """One party's datasets, which are read when they are trained on; not checked here.

    train, test : one of them may be of arrays.
    n_train : number of training samples that weighs the party's update.
    """

    train: Arrays | DatasetPart
    test: Arrays | DatasetPart
    n_train: int
    kind = "samples"

    @property
    def n_test(self) -> int:
        """Number of test samples, which weighs this party's loss and accuracy."""
        return self.test.n_samples

    @property
    def y_train(self) -> np.ndarray:
        """A label of each training sample where the dataset has them, else NaN."""
        if isinstance(self.train, Arrays):
            return self.train.y
        return datasets.labels_of(self.train.dataset, self.train.n_samples)

    def digest(self) -> str:
        """sha256 of what datasets are and how many samples they have, in hex.

        Their contents are not read for it: that would take as long as a pass, and what
        augments samples at random gives others each time.
        """
        sha = hashlib.sha256(str(self.n_train).encode())
        for part in (self.train, self.test):
            if isinstance(part, DatasetPart):
                text = datasets.describe_kind(part)
            else:
                text = nested.describe(part.x)
            sha.update(f"{text} {part.n_samples}\n".encode())
        return sha.hexdigest()

    def take(self, train_idx: np.ndarray, test_idx: np.ndarray) -> "LazySamples":
        """The samples at these places, unread.

        Raises
        ------
        DataError
            If they only come in a stream, or by a sampler.
        """
        train, test = self.train.take(train_idx), self.test.take(test_idx)
        return LazySamples(train, test, len(train_idx))


def load_samples(
    handler: Handler, source: str, allows_missing: bool = False
) -> Samples | LazySamples | Documents:
    """Get a handler's samples or documents, and check everything about them.

    Datasets are not read: they are checked batch by batch when a model is there.

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
    raw = split_parts(data, source)
    reading = Reading(source, allows_missing)
    n_own, n_test = (_pass_count(handler, name, source) for name in raw._fields)
    train = to_part(raw.train, "train", reading, n_own)
    test = to_part(raw.test, "test", reading, n_test, train)
    if not train.n_samples:
        needed = "at least one: look at the path, or leave this party out"
        raise DataError(source, "no training samples", needed)
    n_train = train.n_samples if n_own is None else n_own
    if isinstance(train, DatasetPart) or isinstance(test, DatasetPart):
        return LazySamples(train, test, n_train)
    if test.n_samples:
        check_alike(train, test, source)
    return Samples(train.x, train.y, test.x, test.y, n_train)


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


def train_count(handler: Handler, n_samples: int, source: str) -> int:
    """What `get_train_counts` returns, checked; without it `n_samples`."""
    get_count = getattr(handler, "get_train_counts", None)
    n_train: Any = n_samples if get_count is None else get_count()
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


def _pass_count(handler: Handler, name: str, source: str) -> int | None:
    """Samples of a stream's pass, where the handler says it; None where it does not."""
    method = f"get_{name}_counts"
    if not hasattr(handler, method):
        return None
    if name == "train":
        return train_count(handler, 0, source)
    try:
        return max(0, operator.index(getattr(handler, method)()))
    except TypeError:
        got = f"{method}() that is no whole number"
        raise DataError(source, got, "the number of test samples") from None


NEEDED_PATH = "a path within the operator's data root, on the party's own node"


def _unreadable(path: Path) -> str:
    """Why data cannot be read from a path; empty if they can."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "nothing there on this node"
    except OSError as error:
        return f"a path that cannot be read on this node: {error.strerror}"
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return "neither a file nor a folder"  # reading a pipe would wait, for ever
    rights = os.R_OK if stat.S_ISREG(mode) else os.R_OK | os.X_OK
    return "" if os.access(path, rights) else "what fedray may not read on this node"


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
    if got := _unreadable(resolved):
        raise DataError(source, got, NEEDED_PATH)
    return str(resolved)


@contextlib.contextmanager
def unmoved_in_root(path: str, root: str) -> Iterator[str]:
    """`resolve_in_root` while data is read: raises if it leads elsewhere at the end.

    A link may be another one between the check and the reading.
    """
    resolved = resolve_in_root(path, root)
    yield resolved
    if resolve_in_root(path, root) != resolved:
        got = "a link that was changed while it was read"
        raise DataError(
            path.removeprefix(str(root)).lstrip("/")[:200], got, NEEDED_PATH
        )
