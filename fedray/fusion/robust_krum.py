"""Krum, Multi-Krum and Bulyan: select updates by their pairwise distances."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedray.fusion.robust_matrix import Rows, Slice, sort_columns, sums_of_squares
from fedray.weights import Weights, blocks

FEW = 24  # rows; up to here every difference is taken by itself
CANCELS = 1e-4  # of the norms: a smaller distance would lose over four digits of 16


@dataclass(frozen=True)
class Krum:
    """The one update that lies nearest to its n−f−2 nearest others.

    score_i = Σ ‖Δ_i − Δ_j‖² over the n−f−2 nearest j ≠ i; of equal scores the update
    with the smallest numbers, first coordinate first.

    n_hostile : f; None: as many as it can bear, ⌊(n−3)/2⌋.

    Source: Blanchard et al. 2017, arXiv:1703.02757, section 4; n ≥ 2f+3.
    """

    n_hostile: int | None = None

    keys: ClassVar[tuple[str, ...]] = ("n_hostile",)

    def n_needed(self) -> int:
        """Updates that f hostile ones need: 2f+3."""
        return 2 * (self.n_hostile or 0) + 3

    def n_withstood(self, n: int) -> int:
        """Hostile ones of n updates that it bears."""
        return max(0, (n - 3) // 2) if self.n_hostile is None else self.n_hostile

    def fuse(self, rows: Rows) -> Weights:
        """Choose a row from all distances, and read it."""
        scores = _scores(squared_distances(rows), self.n_withstood(len(rows)))
        chosen = int(np.argmin(scores))
        return rows.fused(lambda _, part: part[chosen])


@dataclass(frozen=True)
class MultiKrum:
    """The mean of the m updates with the lowest Krum scores.

    n_hostile : as in `Krum`.
    n_selected : m ≤ n−f; None: n−f−2, up to which it is proved.

    Source: Blanchard et al. 2017, arXiv:1703.02757, section 4.
    """

    n_hostile: int | None = None
    n_selected: int | None = None

    keys: ClassVar[tuple[str, ...]] = ("n_hostile", "n_selected")

    def n_needed(self) -> int:
        """Updates that f hostile ones need: 2f+3, and m+f."""
        n_hostile = self.n_hostile or 0
        return max(2 * n_hostile + 3, (self.n_selected or 1) + n_hostile)

    def n_withstood(self, n: int) -> int:
        """Hostile ones of n updates that it bears."""
        if self.n_hostile is not None:
            return self.n_hostile
        return max(0, min((n - 3) // 2, n - (self.n_selected or 0)))

    def fuse(self, rows: Rows) -> Weights:
        """Choose rows from all distances, and average them slice by slice."""
        n_hostile, n_selected = self.n_withstood(len(rows)), self.n_selected
        if n_selected is None:
            n_selected = len(rows) - n_hostile - 2
        scores = _scores(squared_distances(rows), n_hostile)
        chosen = np.sort(np.argsort(scores, kind="stable")[:n_selected])
        return rows.fused(lambda _, part: part[chosen].mean(0, np.float64))


@dataclass(frozen=True)
class Bulyan:
    """Krum again and again, then each coordinate's values nearest its median.

    θ = n−2f updates are taken one by one, each the Krum of those left; then each
    coordinate is the mean of its θ−2f values nearest the median of the θ, of two as
    near the smaller.

    n_hostile : f; None: as many as it can bear, ⌊(n−3)/4⌋.

    Source: El Mhamdi et al. 2018, arXiv:1802.07927, section 4; n ≥ 4f+3.
    """

    n_hostile: int | None = None

    keys: ClassVar[tuple[str, ...]] = ("n_hostile",)

    def n_needed(self) -> int:
        """Updates that f hostile ones need: 4f+3."""
        return 4 * (self.n_hostile or 0) + 3

    def n_withstood(self, n: int) -> int:
        """Hostile ones of n updates that it bears."""
        return max(0, (n - 3) // 4) if self.n_hostile is None else self.n_hostile

    def fuse(self, rows: Rows) -> Weights:
        """Choose rows from all distances, then fuse them slice by slice."""
        n, n_hostile = len(rows), self.n_withstood(len(rows))
        squares, candidates = squared_distances(rows), list(range(n))
        chosen: list[int] = []
        while len(chosen) < n - 2 * n_hostile:
            scores = _scores(squares[np.ix_(candidates, candidates)], n_hostile)
            chosen.append(candidates.pop(int(np.argmin(scores))))
        n_kept = n - 4 * n_hostile
        return rows.fused(
            lambda _, part: mean_near_median(part[sorted(chosen)], n_kept)
        )


def _scores(squares: np.ndarray, n_hostile: int) -> np.ndarray:
    """Krum score of each of n updates from their squared distances (n, n)."""
    n = len(squares)
    others = squares[~np.eye(n, dtype=bool)].reshape(n, n - 1)  # no distance to itself
    n_near = max(1, n - n_hostile - 2)
    return np.sort(others, axis=1)[:, :n_near].sum(axis=1)


def mean_near_median(part: Slice, n_kept: int) -> np.ndarray:
    """Mean of each coordinate's `n_kept` values nearest its median, (n,).

    They lie side by side once sorted: the window moves up while the value that it would
    gain is nearer than the one that it would lose.
    """
    values = sort_columns(part).astype(np.float64)
    n, middle = len(values), len(values) // 2
    centre = (values[middle] + values[(n - 1) // 2]) / 2
    start = np.zeros(values.shape[1], np.int64)
    for i in range(n - n_kept):
        start += values[i + n_kept] - centre < centre - values[i]
    total = np.zeros(values.shape[1])
    for i in range(n):
        is_kept = (start <= i) & (i < start + n_kept)
        np.add(total, values[i], out=total, where=is_kept)
    return total / n_kept


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
