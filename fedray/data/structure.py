"""The structure of what a handler returns: training and test part, inputs and targets.

A part is a pair (x, y) of nested arrays, or a dataset. Lists and tuples of samples, as
numpy makes one array of, are told from tuples of several inputs by their lengths.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fedray import datasets
from fedray.data.arrays import Inputs, describe, to_arrays
from fedray.datasets import DatasetPart
from fedray.errors import DataError
from fedray.nested import Arrays, Nested, arrays

FORMS = (
    "((x_train, y_train), (x_test, y_test)) of arrays, or of tuples or dicts of arrays "
    "for several inputs; or (train, test) of datasets or DataLoaders. None stands for "
    "y or tests that are not there: ((x, y), None)"
)
TEST_NAMES = ("test", "validation")
NO_SAMPLES = Arrays(np.zeros((0, 1), np.float32), np.zeros(0, np.int64))


class Reading(NamedTuple):
    """How a party's data are read.

    source : what errors name.
    allows_missing : whether NaN in x may stand for a value that is missing.
    """

    source: str
    allows_missing: bool = False


class RawParts(NamedTuple):
    """Training and test part as the handler gave them; no tests are None."""

    train: Any
    test: Any


def split_parts(data: Any, source: str) -> RawParts:
    """Training and test part of what `get_data()` returned.

    Raises
    ------
    DataError
        If it has none of `FORMS`; says what it has.
    """
    if data is None:
        got = "get_data() that gives nothing (None)"
        raise DataError(source, f"{got}, as without a return", FORMS)
    if datasets.is_hugging_face_dict(data) or _is_dict_of_parts(data):
        tests = [data[name] for name in TEST_NAMES if name in data]
        if "train" in data:
            return RawParts(data["train"], tests[0] if tests else None)
        raise DataError(source, f"parts named {sorted(data)}", "one named 'train'")
    if datasets.is_dataset(data):
        return RawParts(data, None)
    if not is_pair(data):
        raise DataError(source, f"get_data() that gives {_describe(data)}", FORMS)
    parts = RawParts(*data)
    for part in parts:
        if not _is_part(part) and not (part is None and part is parts.test):
            raise DataError(source, f"get_data() that gives {_describe(data)}", FORMS)
    return parts


def to_part(
    raw: Any,
    name: str,
    reading: Reading,
    n_samples: int | None = None,
    like: Arrays | DatasetPart | None = None,
) -> Arrays | DatasetPart:
    """A checked part of arrays, or a dataset that is not read yet.

    Parameters
    ----------
    name : "train" or "test".
    n_samples : of a stream's pass, where the handler says it.
    like : the training part, whose tuples of inputs a test part has as well.

    Raises
    ------
    DataError
        If arrays do not fit each other, or the number of samples cannot be told.
    """
    if raw is None:
        return NO_SAMPLES
    if is_pair(raw) and raw[1] is None and datasets.is_dataset(raw[0]):
        raw = raw[0]
    if not datasets.is_dataset(raw):
        if isinstance(like, Arrays):
            raw = [_as_in(own, part) for own, part in zip(like, raw, strict=True)]
        return _to_arrays(raw[0], raw[1], name, reading)
    try:
        return datasets.wrap(raw, n_samples)
    except TypeError:
        got = f"a {name} stream ({type(raw).__name__}) that has no len()"
        method = f"get_{name}_counts()"
        needed = f"a data handler with {method}: the number of samples of one pass"
        raise DataError(reading.source, got, needed) from None


def _as_in(train: Nested, value: Any) -> Any:
    """A test part's tuple as several inputs where the training part has as many."""
    is_alike = isinstance(train, tuple) and isinstance(value, tuple | list)
    return Inputs(value) if is_alike and len(train) == len(value) else value


def is_pair(value: Any) -> bool:
    """Whether it is a tuple or list of two."""
    return isinstance(value, tuple | list) and len(value) == 2


def _is_dict_of_parts(data: Any) -> bool:
    """Whether it is a dict of training and test part, not of inputs."""
    names = {"train", *TEST_NAMES}
    return isinstance(data, dict) and bool(data) and set(data) <= names


def _is_part(value: Any) -> bool:
    return datasets.is_dataset(value) or is_pair(value)


def _to_arrays(x: Any, y: Any, name: str, reading: Reading) -> Arrays:
    """Nested arrays of inputs and targets, all of as many samples."""
    source = reading.source
    if x is None:
        raise DataError(source, f"x_{name} that is None", FORMS)
    n_targets = _lengths(y)
    x = as_inputs(x, n_targets)
    y = as_inputs(y, _lengths(x) if isinstance(x, Inputs | Mapping) else {_len(x)})
    pair = Arrays(
        to_arrays(x, f"x_{name}", source, reading.allows_missing),
        None if y is None else to_arrays(y, f"y_{name}", source),
    )
    _check_lengths(pair, name, source)
    return pair


def as_inputs(value: Any, n_others: set[int]) -> Any:
    """A tuple or list of several arrays as `Inputs`; one of samples stays.

    n_others : numbers of samples that the targets (or inputs) beside it may have. Items
        are samples if there may be as many as of those: so it always was.
    """
    if not isinstance(value, tuple | list) or isinstance(value, Inputs):
        return value
    if not _are_arrays(value):
        has_parts = isinstance(value, tuple) and any(map(_is_nested, value))
        parts = (as_inputs(part, n_others) for part in value)
        return Inputs(parts) if has_parts else value
    lengths = {len(item) for item in value}
    is_tuple = isinstance(value, tuple)
    if not n_others:  # no targets: a list is of samples
        return Inputs(value) if is_tuple and value else value
    if len(value) in n_others and _can_stack(value):
        return value
    fits = len(lengths) == 1 and lengths <= n_others
    return Inputs(value) if fits or (is_tuple and value) else value


def _are_arrays(items: Any) -> bool:
    """Whether all have samples along a first axis."""
    return all(hasattr(item, "shape") and np.ndim(item) for item in items)


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping) and not hasattr(value, "dtype")


def _can_stack(items: Any) -> bool:
    return len({tuple(item.shape) for item in items}) == 1


def _lengths(value: Any) -> set[int]:
    """Numbers of samples that a value may have; none for no targets."""
    if value is None:
        return set()
    if _is_nested(value):
        return set().union(*map(_lengths, value.values()))
    own = {_len(value)}
    if isinstance(value, tuple | list):
        own |= {len(item) for item in value} if _are_arrays(value) else set()
    return own


def _len(value: Any) -> int:
    try:
        return len(value)
    except TypeError:  # a single number, which `to_array` tells
        return 0


def _check_lengths(pair: Arrays, name: str, source: str) -> None:
    counts = {f"x_{name}{w}": len(array) for w, array in arrays(pair.x).items()}
    counts |= {f"y_{name}{w}": len(array) for w, array in arrays(pair.y).items()}
    (first, n_first), *others = counts.items()
    for other, n_other in others:
        if n_other != n_first:
            is_y = first.startswith("x") and other.startswith("y")
            needed = "one y for each x" if is_y else "as many samples in each"
            raise DataError(source, f"{n_first} {first} and {n_other} {other}", needed)


def check_alike(train: Arrays, test: Arrays, source: str) -> None:
    """Raise DataError where samples of the two parts differ in structure or shape."""
    for name, own, other in (("x", train.x, test.x), ("y", train.y, test.y)):
        if (own is None) != (other is None):
            has = "no y_train, but y_test" if own is None else "y_train, but no y_test"
            raise DataError(source, has, "targets in both parts or in neither")
        ours, theirs = arrays(own), arrays(other)
        if ours.keys() != theirs.keys():
            got = f"{name}_train{_parts(ours)} and {name}_test{_parts(theirs)}"
            raise DataError(source, got, "the same parts in both")
        for where, array in ours.items():
            if array.shape[1:] != theirs[where].shape[1:]:
                got = (
                    f"{name}_train{where} {describe(array)} and "
                    f"{name}_test{where} {describe(theirs[where])}"
                )
                raise DataError(source, got, "samples of one shape in both")


def _parts(parts: Mapping[str, Nested]) -> str:
    return f" of {', '.join(parts)}" if list(parts) != [""] else " of one array"


def _describe(value: Any) -> str:
    """What was got instead, without a value of it."""
    if isinstance(value, tuple | list):
        kind = type(value).__name__
        parts = ", ".join(_describe_item(item) for item in value[:4])
        more = ", ..." if len(value) > 4 else ""
        return f"a {kind} of another form ({len(value)} items: {parts}{more})"
    return f"something else (of type {type(value).__name__})"


def _describe_item(item: Any) -> str:
    if isinstance(item, tuple | list):
        return f"{type(item).__name__} of {len(item)}"
    return type(item).__name__
