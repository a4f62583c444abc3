"""Data of any form, for model types that take what a handler gives as it is."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedray.data.base import Handler, train_count
from fedray.errors import DataError
from fedray.nested import Anything

UNCOMPARED = "data of another form than arrays"  # its digest


@dataclass(frozen=True, eq=False)
class AnyData:
    """One party's data as its handler gave it, in a training and a test part.

    n_train : number of training samples that weighs the party's update.
    """

    train: Anything
    test: Anything
    n_train: int
    kind = "anything"

    @property
    def n_rows(self) -> int:
        """Number of training samples; 1 where they cannot be counted."""
        return 1 if self.train.n_samples is None else self.train.n_samples

    @property
    def n_test(self) -> int:
        """Number of test samples; 1 where only the model can tell."""
        return 1 if self.test.n_samples is None else self.test.n_samples

    def digest(self) -> str:
        """sha256 of all arrays, in hex; one text for all data of another form."""
        sha = hashlib.sha256(str(self.n_train).encode())
        try:
            for array in _arrays((self.train.data, self.test.data)):
                sha.update(f"{array.dtype.str}{array.shape}".encode())
                sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        except TypeError:
            return UNCOMPARED
        return sha.hexdigest()


def load_anything(handler: Handler, source: str) -> AnyData:
    """Get what a handler gives, in its parts, and count it.

    source : what an error names: the path that the handler was made with.

    Raises
    ------
    DataError
        If there is nothing, or its samples cannot be counted.
    """
    train, test = (
        Anything(part, count_samples(part))
        for part in split_parts(handler.get_data(), source)
    )
    has_count = hasattr(handler, "get_train_counts")
    if train.n_samples is None and not has_count:
        got = f"training data without a length, a {type(train.data).__name__}"
        needed = "get_train_counts() of the handler, which weighs this party's update"
        raise DataError(source, got, needed)
    if train.n_samples == 0:
        needed = "at least one: look at the path, or leave this party out"
        raise DataError(source, "no training samples", needed)
    n_train = train_count(handler, train.n_samples or 0, source)
    return AnyData(train, test, n_train)


def split_parts(data: Any, source: str) -> tuple[Any, Any]:
    """The training and the test part of what a handler gave.

    A pair is both, and so is a dict with ``train``; anything else serves for both.

    Raises
    ------
    DataError
        If there is nothing, or a pair of samples and targets.
    """
    if data is None:
        needed = "a pair (train, test), or data for both"
        raise DataError(source, "get_data() that gives None", needed)
    if isinstance(data, Mapping) and "train" in data:
        return data["train"], data.get("test")
    if isinstance(data, tuple | list) and len(data) == 2:
        train, test = map(_read_all, data)
        if _are_samples_and_targets(train, test):
            shapes = f"{list(train.shape)} and {list(test.shape)}"
            got = f"get_data() that gives two arrays, {shapes}"
            needed = "a pair (train, test): ((x, y), None) where there are no tests"
            raise DataError(source, got, needed)
        return train, test
    data = _read_all(data)
    return data, data


def count_samples(part: Any) -> int | None:
    """Number of samples in a part; None where it has no length.

    Of a tuple or dict that of its first array, of a loader that of its data set.
    """
    if part is None:
        return 0
    if isinstance(part, Mapping):
        return count_samples(next(iter(part.values()), None))
    is_pair = isinstance(part, list) and len(part) == 2 and _have_one_length(part)
    if is_pair or (isinstance(part, tuple) and part):
        return count_samples(part[0])
    if hasattr(part, "dataset") and hasattr(part, "batch_size"):
        return count_samples(part.dataset)
    try:
        shape = getattr(part, "shape", None)
        return int(shape[0]) if shape else len(part)
    except (TypeError, IndexError, ValueError, NotImplementedError):
        return None


def _read_all(part: Any) -> Any:
    """A list of what an iterator gives, which could be read once only."""
    return list(part) if isinstance(part, Iterator) else part


def _have_one_length(parts: Any) -> bool:
    shapes = [getattr(part, "shape", None) for part in parts]
    return all(shapes) and len({shape[0] for shape in shapes if shape}) == 1


def _are_samples_and_targets(first: Any, second: Any) -> bool:
    """Whether two arrays are as many, of unlike samples: x and y, not two parts."""
    if not _have_one_length((first, second)):
        return False
    return tuple(first.shape[1:]) != tuple(second.shape[1:])


def _arrays(nested: Any) -> Iterator[np.ndarray]:
    """All arrays of nested tuples, lists and dicts; TypeError if there is else."""
    if nested is None:
        return
    if isinstance(nested, Mapping):
        nested = [nested[key] for key in nested]
    if isinstance(nested, tuple | list):
        for part in nested:
            yield from _arrays(part)
    elif isinstance(nested, np.ndarray) and nested.dtype != object:
        yield nested
    else:
        raise TypeError("no array")
