"""Named arrays and all arithmetic on them. No Ray, no framework, no clock.

`Weights` maps tensor names to numpy arrays. Nothing here writes into an argument:
arrays from Ray's object store are read-only.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Weights = dict[str, np.ndarray]

MAX_DIMENSIONS = 8
BLOCK = 1 << 16  # elements folded at a time: the scratch array stays in cache
KINDS = "fiub"  # float, signed, unsigned, bool: what may travel


class Form(NamedTuple):
    """Shape and dtype of one tensor."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


Schema = dict[str, Form]


def schema(weights: Weights) -> Schema:
    """Names, shapes and dtypes, in the model's order."""
    return {name: Form(a.shape, str(a.dtype)) for name, a in weights.items()}


def mismatch(weights: Any, needed: Schema) -> str | None:
    """Say the first way in which `weights` is not of `needed`; None if it is."""
    if not isinstance(weights, dict):
        return f"weights are a {type(weights).__name__}, a dict of arrays is needed"
    missing = [name for name in needed if name not in weights]
    extra = [name for name in weights if name not in needed]
    if missing or extra:
        return f"tensors missing: {missing[:5]}, not of this model: {extra[:5]}"
    for name, form in needed.items():
        array = weights[name]
        if not isinstance(array, np.ndarray):
            return f"tensor {name!r} is a {type(array).__name__}, not an array"
        if Form(array.shape, str(array.dtype)) != form:
            got = Form(array.shape, str(array.dtype))
            return f"tensor {name!r} got {got}, needed {form}"
    return None


def non_finite(weights: Weights) -> str | None:
    """Name of the first tensor that holds NaN or infinity; None if all are finite."""
    for name, array in weights.items():
        if array.dtype.kind != "f":
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            quick = np.add.reduce(array, axis=None)
        # a finite sum proves finite terms; an infinite one may be mere overflow
        if not np.isfinite(quick) and not np.isfinite(array).all():
            return name
    return None


def n_bytes(weights: Weights) -> int:
    """Bytes of all arrays together."""
    return sum(array.nbytes for array in weights.values())


def cast(weights: Weights, needed: Schema) -> Weights:
    """Give every tensor its dtype again; integers are rounded, not cut."""
    cast_to = {}
    for name, form in needed.items():
        array, dtype = np.asarray(weights[name]), np.dtype(form.dtype)
        if dtype.kind in "iub" and array.dtype.kind == "f":
            array = np.rint(array)
        # arithmetic on an array without dimensions gives a scalar: an array again
        cast_to[name] = np.asarray(array).astype(dtype, copy=False)
    return cast_to


def distance(a: Weights, b: Weights, names: Iterable[str]) -> float:
    """Euclidean distance ‖a − b‖ over the named tensors."""
    total = 0.0
    for name in names:
        difference = (a[name] - b[name]).reshape(-1)
        total += float(np.dot(difference, difference))
    return total**0.5


class RunningMean:
    """Weighted mean of weights that arrive one at a time, in one model of memory.

    ``mean += (w − mean) · n / N`` with N the sum of the weights so far (West 1979):
    equal updates give back exactly themselves, and a single one is returned as it was.
    Half and single floats accumulate in float32, integers in float64.
    """

    def __init__(self) -> None:
        self.mean: Weights = {}
        self.total = 0.0

    def add(self, weights: Weights, share: float) -> None:
        """Fold one model in with weight `share` > 0."""
        self.total += share
        if not self.mean:
            self.mean = {
                name: array.astype(_accumulator(array.dtype), order="C")
                for name, array in weights.items()
            }
            return
        for name, mean in self.mean.items():
            _fold(mean.reshape(-1), weights[name].reshape(-1), share / self.total)


def _accumulator(dtype: np.dtype) -> type:
    wide = dtype.kind in "iub" or dtype == np.float64
    return np.float64 if wide else np.float32


def _fold(mean: np.ndarray, array: np.ndarray, factor: float) -> None:
    scratch = np.empty(min(BLOCK, mean.size), mean.dtype)
    factor = mean.dtype.type(factor)
    for start in range(0, mean.size, BLOCK):
        part = mean[start : start + BLOCK]
        step = scratch[: part.size]
        np.subtract(array[start : start + BLOCK], part, out=step, dtype=mean.dtype)
        step *= factor
        part += step


def save(weights: Weights, path: Path) -> None:
    """Write an uncompressed npz; arrays only, never objects."""
    np.savez(path, **{_entry(name): array for name, array in weights.items()})


def load(path: Path) -> Weights:
    """Read what `save` wrote; checksums are verified, pickles refused."""
    with np.load(path, allow_pickle=False) as file:
        return {name.removeprefix("w:"): file[name] for name in file.files}


def _entry(name: str) -> str:
    return f"w:{name}"  # a tensor named "file" would collide with savez's argument
