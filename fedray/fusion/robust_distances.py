"""Pairwise squared distances of updates, without loss of digits to cancellation."""

import numpy as np

from fedray.fusion.robust_matrix import Rows, Slice, sort_columns, sums_of_squares
from fedray.weights import blocks

FEW = 24  # rows; up to here every difference is taken by itself
CANCELS = 1e-4  # of the norms: a smaller distance would lose over four digits of 16


def squared_distances(rows: Rows) -> np.ndarray:
    """Squared distance of each row to each other, (K, K) float64.

    Of few rows every difference is taken, in float64. Of many that would take K²/2
    passes: ‖a‖² − 2ab + ‖b‖² is used, from the coordinate median on, so that no liar
    far away takes digits from the others; pairs that are much nearer to each other than
    to it (liars who say the same) are then gone through one by one.
    """
    n_rows = len(rows)
    everyone = np.ones((n_rows, n_rows), bool)
    if n_rows <= FEW:
        return _one_by_one(rows, everyone)
    products = np.zeros((n_rows, n_rows)) + rows.summed(_products)
    norms = np.diag(products)
    both = norms[:, None] + norms
    with np.errstate(invalid="ignore"):
        squares = both - 2 * products
        is_lost = ~(np.isfinite(both) & (squares > CANCELS * both))
    np.fill_diagonal(is_lost, False)
    np.fill_diagonal(squares, 0.0)
    if is_lost.any():
        squares = np.where(is_lost, _one_by_one(rows, is_lost), squares)
    return squares


def _products(block: blocks.Block, part: Slice) -> np.ndarray:
    """Inner products of all rows as seen from the coordinate median, (K, K)."""
    wide = blocks.scratch(part.size, np.float64, 1).reshape(part.shape)
    np.copyto(wide, part)
    middle = sort_columns(part)[len(part) // 2].astype(np.float64)
    np.subtract(wide, middle, out=wide)
    return wide @ wide.T


def _one_by_one(rows: Rows, which: np.ndarray) -> np.ndarray:
    """Those of the squared distances that are asked for, from the differences."""
    n_rows = len(rows)
    others = [np.flatnonzero(which[i, i + 1 :]) + i + 1 for i in range(n_rows)]

    def of_slice(block: blocks.Block, part: Slice) -> np.ndarray:
        squares = np.zeros((n_rows, n_rows))
        wide = blocks.scratch(part.size, np.float64, 1).reshape(part.shape)
        step = blocks.scratch(part.size, np.float64, 2).reshape(part.shape)
        np.copyto(wide, part)
        for i, near in enumerate(others):
            if len(near):
                some = np.take(wide, near, axis=0, out=step[: len(near)], mode="clip")
                np.subtract(some, wide[i], out=some)
                squares[i, near] = sums_of_squares(some)
        return squares

    total = np.zeros((n_rows, n_rows)) + rows.summed(of_slice)
    return total + total.T
