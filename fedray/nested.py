"""Nested arrays: one array, or a tuple or dict of them, as inputs and targets are.

A model is called ``model(x)``, ``model(*x)`` or ``model(**x)``. All functions take
numpy arrays and tensors alike; samples lie along the first axis of every array.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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


def describe(nested: Nested) -> str:
    """Dtype and shape of one sample: "float32[8]", "{ids: int64[16], mask: …}"."""
    if nested is None:
        return ""
    if isinstance(nested, tuple):
        return f"({', '.join(map(describe, nested))})"
    if isinstance(nested, Mapping):
        parts = (f"{key}: {describe(part)}" for key, part in nested.items())
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
