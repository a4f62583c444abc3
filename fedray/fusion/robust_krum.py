"""Krum, Multi-Krum and Bulyan: rules that select updates with near neighbours."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedray.fusion.robust_distances import squared_distances
from fedray.fusion.robust_matrix import Rows, Slice, sort_columns
from fedray.weights import Weights


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

    def fuse(self, rows: Rows) -> Weights:
        """Choose a row from all distances, and read it."""
        n = len(rows)
        n_hostile = (n - 3) // 2 if self.n_hostile is None else self.n_hostile
        scores = _scores(squared_distances(rows), n_hostile)
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

    def fuse(self, rows: Rows) -> Weights:
        """Choose rows from all distances, and average them slice by slice."""
        n, n_hostile, n_selected = len(rows), self.n_hostile, self.n_selected
        if n_hostile is None:
            n_hostile = min((n - 3) // 2, n - (n_selected or 0))
        if n_selected is None:
            n_selected = n - n_hostile - 2
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

    def fuse(self, rows: Rows) -> Weights:
        """Choose rows from all distances, then fuse them slice by slice."""
        n = len(rows)
        n_hostile = (n - 3) // 4 if self.n_hostile is None else self.n_hostile
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
