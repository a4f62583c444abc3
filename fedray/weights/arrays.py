"""Named arrays of a model: schema, comparison, finiteness, casting, distances."""

import functools
import hashlib
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from fedray.weights import blocks

Weights = dict[str, np.ndarray]

MAX_DIMENSIONS = 8
KINDS = "fiub"  # float, signed, unsigned, bool: what may travel
FLOATS = {np.dtype(np.float16), np.dtype(np.float32)}  # computed with in float32


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


def size_of(schema: Schema) -> int:
    """Bytes of all arrays of this schema."""
    forms = schema.values()
    return sum(math.prod(form.shape) * _dtype(form.dtype).itemsize for form in forms)


def mismatch(weights: Any, needed: Schema) -> str | None:
    """Describe the first difference of `weights` from `needed`; None if they match."""
    if not isinstance(weights, dict):
        return f"weights are a {type(weights).__name__}, a dict of arrays is needed"
    if weights.keys() != needed.keys():
        missing = [name for name in needed if name not in weights]
        extra = [name for name in weights if name not in needed]
        return f"tensors missing: {missing[:5]}, not of this model: {extra[:5]}"
    for name, form in needed.items():
        array = weights[name]
        if not isinstance(array, np.ndarray):
            return f"tensor {name!r} is a {type(array).__name__}, not an array"
        if array.shape != form.shape or array.dtype != _dtype(form.dtype):
            got = Form(array.shape, str(array.dtype))
            return f"tensor {name!r} got {got}, needed {form}"
    return None


_dtype = functools.lru_cache(maxsize=64)(np.dtype)  # str(dtype) takes 20 times longer


def non_finite(weights: Weights) -> str | None:
    """Name of the first tensor that holds NaN or infinity; None if all are finite."""
    floats = {name: a for name, a in weights.items() if a.dtype.kind == "f"}
    flat = blocks.flat(floats.values())

    def are_finite(block: blocks.Block) -> bool:
        with np.errstate(over="ignore", invalid="ignore"):
            return all(_is_finite(part) for part, _ in block.parts(flat))

    layout = blocks.cut(tuple([array.size for array in flat]))
    if all(blocks.each(layout, are_finite)):
        return None
    return next(name for name, a in floats.items() if not np.isfinite(a).all())


def _is_finite(array: np.ndarray) -> bool:
    if array.dtype == np.float16:
        return bits_below(array.view(np.uint16), 0x7C00)
    # a finite sum of squares proves finite terms; an infinite one may be mere overflow
    return math.isfinite(np.dot(array, array)) or bool(np.isfinite(array).all())


def bits_below(bits: np.ndarray, limit: int) -> bool:
    """Are all these 16-bit floats, without sign, below that with bits `limit`?"""
    return int(np.maximum.reduce(bits & np.uint16(0x7FFF))) < limit


def n_bytes(weights: Weights) -> int:
    """Bytes of all arrays together."""
    return sum(array.nbytes for array in weights.values())


def digest(weights: Weights) -> bytes:
    """SHA-256 of all names, shapes, dtypes and numbers, whatever their order."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        array = weights[name]
        form = Form(array.shape, array.dtype.str)
        head = f"{len(name)}:{name} {form} {array.nbytes}:"
        sha.update(head.encode("utf-8", "surrogatepass"))
        sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sha.digest()


def cast(weights: Weights, needed: Schema) -> Weights:
    """Convert every tensor to its dtype in `needed`; integers are rounded, not cut."""
    # arithmetic on an array without dimensions gives a scalar: an array again
    return {
        name: _cast(np.asarray(weights[name]), _dtype(form.dtype))
        for name, form in needed.items()
    }


def _cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if array.dtype == dtype:
        return array
    new = np.empty(array.shape, dtype)
    source, target = array.reshape(-1), new.reshape(-1)
    rounded = dtype.kind in "iub" and array.dtype.kind == "f"

    def work(block: blocks.Block) -> None:
        part = source[block.whole]
        if rounded:
            part = np.rint(part, blocks.scratch(block.size, array.dtype))
        np.copyto(target[block.whole], part, casting="unsafe")

    blocks.each(blocks.cut((array.size,)), work)
    return new


def distance(a: Weights, b: Weights, names: Iterable[str]) -> float:
    """Euclidean distance ‖a − b‖ over the named tensors."""
    names = list(names)
    flat_a = blocks.flat([a[name] for name in names])
    flat_b = blocks.flat([b[name] for name in names])
    dtype = (
        np.float32
        if FLOATS.issuperset([array.dtype for array in flat_a])
        else np.float64
    )

    def squares(block: blocks.Block) -> float:
        step = blocks.scratch(block.size, dtype)
        parts = zip(block.parts(flat_a), block.parts(flat_b), strict=True)
        for (part_a, at), (part_b, _) in parts:
            np.subtract(part_a, part_b, step[at])
        with np.errstate(over="ignore"):  # the distance may be infinite
            return float(np.dot(step, step))

    layout = blocks.cut(tuple([array.size for array in flat_a]))
    return sum(blocks.each(layout, squares)) ** 0.5


def row(stack: Weights, i: int) -> Weights:
    """The i-th of S weights that lie in arrays (S, *shape); views."""
    return {name: array[i, ...] for name, array in stack.items()}


def distances(stack: Weights, b: Weights, names: Iterable[str]) -> np.ndarray:
    """`distance` of each of S weights, arrays (S, *shape), from b; (S,)."""
    names, size = list(names), len(next(iter(stack.values())))
    if size == 1:
        return np.array([distance(row(stack, 0), b, names)])
    total = np.zeros(size)
    for name in names:
        rows, start = stack[name].reshape(size, -1), b[name].reshape(1, -1)
        n_rows = max(1, blocks.BLOCK // max(1, start.size))
        for i in range(0, size, n_rows):
            step = rows[i : i + n_rows] - start
            total[i : i + n_rows] += np.einsum("ij,ij->i", step, step)
    return np.sqrt(total)
