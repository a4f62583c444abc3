"""Nested arrays: one array, or a tuple or dict of them, as inputs and targets are.

A model is called ``model(x)``, ``model(*x)`` or ``model(**x)``. All functions take
numpy arrays and tensors alike; samples lie along the first axis of every array.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

BLOCK_BYTES = 16 << 20  # that are read at a time of an array in a file

Nested = Any  # an array, a tuple or a dict of arrays; or None for no targets


class Arrays(NamedTuple):
    """Samples and their targets in memory, as many of each.

    x : nested arrays (N, ...).
    y : nested arrays (N, ...); None: there are no targets.
    """

    x: Nested
    y: Nested

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return length(self.x)

    def take(self, rows: np.ndarray) -> "Arrays":
        """The samples at these places; arrays in files stay there."""
        return Arrays(select(self.x, rows), select(self.y, rows))


@dataclass(frozen=True, eq=False)
class MappedArray:
    """An array that stays in its file; what is indexed is read and copied.

    array : as numpy maps it into memory.
    dtype : of what is read.
    rows : places along its first axis that count; None: all.
    """

    array: np.ndarray
    dtype: np.dtype
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.array if self.rows is None else self.rows)

    def __getitem__(self, rows: Any) -> np.ndarray:
        places = rows if self.rows is None else self.rows[rows]
        return np.array(self.array[places], self.dtype, order="C")

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array in memory."""
        return (len(self), *self.array.shape[1:])

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.array.ndim

    @property
    def nbytes(self) -> int:
        """Bytes that all of it would take in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    def at(self, rows: np.ndarray) -> "MappedArray":
        """The samples at these places, still in the file."""
        return MappedArray(
            self.array, self.dtype, rows if self.rows is None else self.rows[rows]
        )

    def blocks(self) -> Iterator[np.ndarray]:
        """All of it, some megabytes at a time."""
        n_rows = max(1, BLOCK_BYTES * len(self) // max(1, self.nbytes))
        for start in range(0, len(self), n_rows):
            yield self[start : start + n_rows]


class Anything(NamedTuple):
    """Data of any form, for a model that takes what a handler gave as it is.

    n_samples : None: it has no length.
    """

    data: Any
    n_samples: int | None


def map_arrays(function: Callable[[Any], Any], nested: Nested) -> Nested:
    """The same nesting of `function` of each array; None stays."""
    if nested is None:
        return None
    if isinstance(nested, tuple):
        return tuple(map_arrays(function, part) for part in nested)
    if isinstance(nested, Mapping):
        return {key: map_arrays(function, part) for key, part in nested.items()}
    return function(nested)


def map_named(function: Callable[[str], Any], nested: Nested) -> Nested:
    """The same nesting of `function` of the place of each array, as `arrays` has it."""
    places = iter(arrays(nested))
    return map_arrays(lambda array: function(next(places)), nested)


def without_sizes(description: str) -> str:
    """A description by `describe` in which no axis has a size of its own."""
    return re.sub(r"\b\d+(?=[\],])", "any", description)


def arrays(nested: Nested) -> dict[str, Any]:
    """Every array by where it stands: "" for one alone, else "[0]" or "['ids']"."""
    if nested is None:
        return {}
    if isinstance(nested, tuple):
        parts = {f"[{i}]": part for i, part in enumerate(nested)}
    elif isinstance(nested, Mapping):
        parts = {f"[{key!r}]": part for key, part in nested.items()}
    else:
        return {"": nested}
    return {
        f"{where}{inner}": array
        for where, part in parts.items()
        for inner, array in arrays(part).items()
    }


def is_one(nested: Nested) -> bool:
    """Whether it is one array, neither a tuple nor a dict nor None."""
    return nested is not None and not isinstance(nested, tuple | Mapping)


def length(nested: Nested) -> int:
    """Number of samples: of the first array, as all have the same."""
    if is_one(nested):
        return len(nested)
    return len(next(iter(arrays(nested).values()), ()))


def take(nested: Nested, rows: Any) -> Nested:
    """The samples at `rows`: a slice gives views, indices copy."""
    if is_one(nested):
        return nested[rows]
    return map_arrays(lambda array: array[rows], nested)


def select(nested: Nested, rows: np.ndarray) -> Nested:
    """The samples at `rows`: copies, but arrays in files stay there."""

    def select_one(array: Any) -> Any:
        return array.at(rows) if isinstance(array, MappedArray) else array[rows]

    return map_arrays(select_one, nested)


def blocks(array: Any) -> Iterator[Any]:
    """All of an array; of one in a file some megabytes at a time."""
    if isinstance(array, MappedArray):
        yield from array.blocks()
    else:
        yield array


def is_mapped(nested: Nested) -> bool:
    """Whether an array of these stays in its file."""
    return any(isinstance(array, MappedArray) for array in arrays(nested).values())


def describe(nested: Nested) -> str:
    """Dtype and shape of one sample: "float32[8]", "{ids: int64[16], mask: …}"."""
    if nested is None:
        return ""
    if isinstance(nested, tuple):
        return f"({', '.join(map(describe, nested))})"
    if isinstance(nested, Mapping):
        parts = (f"{key}: {describe(nested[key])}" for key in sorted(nested))
        return f"{{{', '.join(parts)}}}"
    dtype = str(getattr(nested, "dtype", "")).rpartition(".")[2]
    return f"{dtype}{list(nested.shape[1:])}"


def call(model: Callable[..., Any], x: Nested) -> Any:
    """Call a model as its inputs are nested: with one, several, or named arguments."""
    if is_one(x):
        return model(x)
    args, kwargs = arguments(x)
    return model(*args, **kwargs)


def arguments(x: Nested) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that a model is called with."""
    if isinstance(x, tuple):
        return x, {}
    if isinstance(x, Mapping):
        return (), dict(x)
    return (x,), {}
