"""Differences of weights as integers of bounded length, which add up exactly.

A party's difference to the global weights, all float tensors end to end, is cut to the
length `clip_norm` and put on a grid: integers whose squares sum to at most GRID². Sums
of such vectors are exact, in any order, and one party moves them by at most GRID.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedray.config.privacy import MAX_CLIP, MIN_CLIP
from fedray.weights import Weights, blocks, row

GRID = 1 << 20  # the greatest length of one party's vector
MAX_GRID = 1 << 26  # float64 counts the squares of what is longer with gaps
TINY = 2.0**-600  # differences up to 2¹⁰²⁵ times this have squares that can be summed


class GridVector(NamedTuple):
    """One party's clipped difference.

    values : (d,) int32 of length <= GRID; all float tensors end to end.
    is_within : whether nothing had to be cut.
    """

    values: np.ndarray
    is_within: bool


def float_names(base: Weights) -> list[str]:
    """Names of the tensors whose differences travel: all of floats, in order."""
    return [name for name, array in base.items() if array.dtype.kind == "f"]


def n_coordinates(base: Weights) -> int:
    """The numbers d that all float tensors hold together."""
    return sum(base[name].size for name in float_names(base))


def radius(size: int, grid: int = GRID) -> float:
    """The length κ = grid − √d / 2 before rounding, which adds at most √d / 2."""
    return grid - math.sqrt(size) / 2


def to_grid(
    weights: Weights, base: Weights, clip_norm: float, grid: int = GRID
) -> GridVector:
    """Clip the difference of weights to `base`, and round it to the grid.

    x = rint(u κ / S · min(1, S / ‖u‖)), u = weights − base, S = clip_norm. That the
    squares of x sum to at most grid² is checked on the integers, so that no rounding
    of a float can make it longer.

    Raises
    ------
    ValueError
        If a number is not finite, or the clip norm is none.
    """
    names = float_names(base)
    _require_clip_norm(clip_norm, grid)
    pair = [blocks.flat([own[name] for name in names]) for own in (weights, base)]
    sizes = tuple([array.size for array in pair[1]])
    if tuple([array.size for array in pair[0]]) != sizes:
        raise ValueError(
            "the weights have other shapes than those they are compared to"
        )
    layout, unit = blocks.cut(sizes), 1.0
    squares = _sum_squares(pair, layout, unit)
    if not math.isfinite(squares):
        unit = TINY
        squares = _sum_squares(pair, layout, unit)
    norm, clip = math.sqrt(_require_finite(squares)), clip_norm * unit
    size = sum(sizes)
    factor = _factor(norm, clip, size, grid)
    values = np.empty(size, np.int32)
    is_short = _quantize(pair, layout, (unit, factor), np.rint, values) <= grid**2
    # cutting off decimals makes no vector longer, and κ leaves room for `factor`
    if (
        not is_short
        and not _quantize(pair, layout, (unit, factor), np.trunc, values) <= grid**2
    ):
        raise ArithmeticError("a clipped vector is longer than the grid allows")
    return GridVector(values, norm <= clip)


def add_stack(
    stack: Weights, base: Weights, clip_norm: float, total: np.ndarray
) -> int:
    """Add to `total` the grid vectors of S parties whose weights lie in one stack.

    The same integers as `to_grid` gives for each of them.

    Parameters
    ----------
    stack : arrays (S, *shape)
    total : (d,) int64, changed in place

    Returns
    -------
    How many of them had nothing cut.
    """
    names, size = float_names(base), n_coordinates(base)
    n_rows = max(1, blocks.BLOCK // max(1, size))
    n_parties, n_within = len(next(iter(stack.values()))), 0
    _require_clip_norm(clip_norm, GRID)
    if n_rows == 1:
        for i in range(n_parties):
            vector = to_grid(row(stack, i), base, clip_norm)
            np.add(total, vector.values, out=total)
            n_within += vector.is_within
        return n_within
    start = np.concatenate([base[name].reshape(-1) for name in names], dtype=np.float64)
    for i in range(0, n_parties, n_rows):
        part = {name: stack[name][i : i + n_rows] for name in names}
        n_within += _add_rows(part, base, start, clip_norm, total)
    return n_within


def from_grid(
    base: Weights,
    total: np.ndarray,
    clip_norm: float,
    n_expected: float,
    grid: int = GRID,
) -> Weights:
    """The weights that a sum of grid vectors leads to: base + total · S / (κ m).

    Tensors that are not of floats stay as they are. Half and single floats become
    single ones.

    Parameters
    ----------
    total : (d,) of all parties, with noise
    n_expected : m: a public number of parties, not that of those who reported
    """
    size = n_coordinates(base)
    if total.shape != (size,):
        raise ValueError(f"the sum has shape {total.shape}, the weights need ({size},)")
    factor = clip_norm / (radius(size, grid) * n_expected)
    names = float_names(base)
    new, start = dict(base), 0
    for name in names:
        array = base[name]
        wide = np.promote_types(array.dtype, np.float32)
        step = total[start : start + array.size] * factor
        new[name] = np.asarray(array + step.reshape(array.shape), wide)
        start += array.size
    return new


def _require_clip_norm(clip_norm: float, grid: int) -> None:
    if not MIN_CLIP <= clip_norm <= MAX_CLIP:
        raise ValueError(
            f"clip_norm must be from {MIN_CLIP:g} to {MAX_CLIP:g}, got {clip_norm!r}"
        )
    if not 1 <= grid <= MAX_GRID:
        raise ValueError(f"a grid's length must be from 1 to {MAX_GRID}, got {grid!r}")


def _require_finite(squares: float) -> float:
    if not math.isfinite(squares):
        raise ValueError("the difference of weights is not finite (NaN or infinity)")
    return squares


def _factor(norm: float, clip: float, size: int, grid: int) -> float:
    """What a difference is multiplied by; shortens it where it is above `clip`."""
    return radius(size, grid) / max(norm, clip)


def _subtract(
    block: blocks.Block, pair: Sequence[list[np.ndarray]], unit: float
) -> np.ndarray:
    """A block of the difference in float64, times `unit`; in scratch memory."""
    step, base = (blocks.scratch(block.size, np.float64, use) for use in (0, 4))
    parts = zip(block.parts(pair[0]), block.parts(pair[1]), strict=True)
    for (new, at), (old, _) in parts:
        np.copyto(step[at], new)
        np.copyto(base[at], old)
    if unit != 1.0:  # each is made smaller first, or the difference could be infinite
        np.multiply(step, unit, out=step)
        np.multiply(base, unit, out=base)
    return np.subtract(step, base, out=step)


def _square(array: np.ndarray) -> float:
    """‖array‖²; not by BLAS, whose threads would add up in another order."""
    return float(np.einsum("i,i->", array, array))


def _sum_squares(
    pair: Sequence[list[np.ndarray]], layout: Sequence[blocks.Block], unit: float
) -> float:
    def work(block: blocks.Block) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            step = _subtract(block, pair, unit)
            return _square(step)

    return sum(blocks.each(layout, work))


def _quantize(
    pair: Sequence[list[np.ndarray]],
    layout: Sequence[blocks.Block],
    by: tuple[float, float],
    rounded: np.ufunc,
    values: np.ndarray,
) -> float:
    """Write the rounded difference to `values`; the exact sum of its squares.

    All partial sums are whole numbers below 2⁵³ unless the sum is far above grid², so
    that float64 adds them without an error, in any order.
    """
    unit, factor = by

    def work(block: blocks.Block) -> float:
        step = _subtract(block, pair, unit)
        np.multiply(step, factor, out=step)
        rounded(step, out=step)
        np.copyto(values[block.whole], step, casting="unsafe")
        return _square(step)

    return sum(blocks.each(layout, work))


def _add_rows(
    stack: Weights,
    base: Weights,
    start: np.ndarray,
    clip_norm: float,
    total: np.ndarray,
) -> int:
    """Add the rows of a small stack at once; see `add_stack`."""
    arrays = [array.reshape(len(array), -1) for array in stack.values()]
    matrix = np.concatenate(arrays, axis=1, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        matrix -= start
        squares = [_square(line) for line in matrix]
    if not all(map(math.isfinite, squares)):
        return _add_each(stack, base, clip_norm, total)
    norms = [math.sqrt(square) for square in squares]
    factors = [_factor(norm, clip_norm, start.size, GRID) for norm in norms]
    matrix *= np.array(factors)[:, None]
    np.rint(matrix, out=matrix)
    if np.einsum("ij,ij->i", matrix, matrix).max() > GRID**2:
        return _add_each(stack, base, clip_norm, total)
    np.add(total, matrix.sum(axis=0).astype(np.int64), out=total)
    return sum(norm <= clip_norm for norm in norms)


def _add_each(
    stack: Weights, base: Weights, clip_norm: float, total: np.ndarray
) -> int:
    n_within = 0
    for i in range(len(next(iter(stack.values())))):
        vector = to_grid(row(stack, i), base, clip_norm)
        np.add(total, vector.values, out=total)
        n_within += vector.is_within
    return n_within
