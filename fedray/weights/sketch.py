"""Count sketch: a difference of two models as 2,048 sums; linear, keeps lengths."""

import math
from collections.abc import Iterable

import numpy as np

from fedray.weights.arrays import Weights
from fedray.weights.blocks import BLOCK

SIZE = 2048
N_ROWS = BLOCK // SIZE  # of a tensor, at a time
N_LEVELS = 127  # on either side of zero
KEY = 20_484_096  # keeps these draws apart from others of the same seed


def sketch(
    weights: Weights, base: Weights, names: Iterable[str], seed: int
) -> np.ndarray:
    """Sum the coordinates of u = w − base, with random signs, into 2,048 sums S(u).

    Every tensor is cut into rows of 2,048. Coordinate c of row r has the sign a_r·b_c
    and falls into sum (c + t_r) mod 2,048; signs a, b and turns t are drawn from the
    seed, alike at every party. Two coordinates' signs multiply to a fair sign, so that
    E ⟨S(u), S(v)⟩ = ⟨u, v⟩ for any u and v. Two rows meet in a sum by turns that are
    drawn apart; the variance of ‖S(u)‖² is at most 6/2048 ‖u‖⁴, and 2/2048 where no
    rows are parallel. A row costs one addition.

    Parameters
    ----------
    weights, base : alike in names and shapes
    names : tensors that count, in the same order at every party

    Returns
    -------
    (2048,) float32; linear in u.

    Source: Charikar et al. 2002, "Finding frequent items in data streams" (sums of
    random signs in random buckets); Alon et al. 1999 for their lengths.
    """
    rng = np.random.default_rng([seed, KEY])
    signs = _signs(rng, SIZE)
    sums = np.zeros(2 * SIZE, np.float32)  # twice as long: no row has to be turned
    for name in names:
        ours, theirs = weights[name].reshape(-1), base[name].reshape(-1)
        n_rows = -(-len(ours) // SIZE)
        turns, flips = rng.integers(SIZE, size=n_rows), rng.integers(2, size=n_rows)
        for first in range(0, n_rows, N_ROWS):
            part = slice(first * SIZE, (first + N_ROWS) * SIZE)
            step = _rows(ours[part], theirs[part])
            step *= signs
            rows = slice(first, first + N_ROWS)
            drawn = zip(step, turns[rows].tolist(), flips[rows].tolist(), strict=True)
            for row, turn, flip in drawn:
                place = sums[turn : turn + SIZE]
                (np.subtract if flip else np.add)(place, row, place)
    return sums[:SIZE] + sums[SIZE:]


def quantize(sums: np.ndarray) -> tuple[np.ndarray, float]:
    """Quantize to int8 multiples of a step, 1/127 of the greatest; returns both."""
    step = float(abs(sums).max(initial=0.0)) / N_LEVELS
    if not 0 < step < math.inf:
        return np.zeros(len(sums), np.int8), step
    return np.rint(sums / step).astype(np.int8), step


def _rows(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Differences in rows of 2,048, the last one filled up with zeros."""
    step = np.zeros((-(-len(ours) // SIZE), SIZE), np.float32)
    flat = step.reshape(-1)[: len(ours)]
    np.subtract(ours, theirs, flat, casting="same_kind")
    return step


def _signs(rng: np.random.Generator, n: int) -> np.ndarray:
    return (2 * rng.integers(2, size=n) - 1).astype(np.float32)
