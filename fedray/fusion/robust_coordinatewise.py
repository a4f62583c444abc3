"""Median, trimmed mean and geometric median."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedray.fusion.robust_matrix import Rows, Slice, sort_columns, sums_of_squares
from fedray.weights import Weights, blocks

SMOOTHING = 1e-6  # distances below count as this (the paper's ν)
MAX_STEPS = 100
ENOUGH = 1e-7  # change of the rows' shares at which to stop


@dataclass(frozen=True)
class Median:
    """Each coordinate's median; of an even number the mean of the two in the middle.

    Holds while fewer than half of the updates are hostile: n > 2f.

    Source: Yin et al. 2018, arXiv:1803.01498, Definition 1.
    """

    keys: ClassVar[tuple[str, ...]] = ()

    def n_needed(self) -> int:
        """Fewest updates for which it is defined."""
        return 1

    def n_withstood(self, n: int) -> int:
        """Hostile ones of n updates that it bears: fewer than half."""
        return (n - 1) // 2

    def fuse(self, rows: Rows) -> Weights:
        """Fuse the rows, slice by slice."""
        return rows.fused(lambda _, part: median(part))


@dataclass(frozen=True)
class TrimmedMean:
    """Each coordinate's mean without its `n_hostile` smallest and largest values.

    n_hostile : None: as many as leave something, ⌊(n−1)/2⌋, which is the median.

    Source: Yin et al. 2018, arXiv:1803.01498, Definition 2 (its β is n_hostile / n).
    """

    n_hostile: int | None = None

    keys: ClassVar[tuple[str, ...]] = ("n_hostile",)

    def n_needed(self) -> int:
        """Updates without which nothing is left to average: n > 2f."""
        return 2 * (self.n_hostile or 0) + 1

    def n_withstood(self, n: int) -> int:
        """Hostile ones of n updates that it bears."""
        return (n - 1) // 2 if self.n_hostile is None else self.n_hostile

    def fuse(self, rows: Rows) -> Weights:
        """Fuse the rows, slice by slice."""
        n_trim = self.n_withstood(len(rows))

        def trimmed(_: object, part: Slice) -> np.ndarray:
            return sort_columns(part)[n_trim : len(part) - n_trim].mean(0, np.float64)

        return rows.fused(trimmed)


@dataclass(frozen=True)
class GeometricMedian:
    """The point with the smallest sum of distances to all updates (RFA).

    Smoothed Weiszfeld: z = Σ β_i Δ_i / Σ β_i with β_i = 1 / max(ν, ‖z − Δ_i‖), from the
    coordinate median on, until the shares of all β stay. z is always a mean of the
    rows, so only their K shares are kept, not z. Every party counts alike, whatever
    samples it claims. Holds while fewer than half of the updates are hostile.

    Source: Pillutla et al. 2019, arXiv:1912.13445, Algorithm 2.
    """

    keys: ClassVar[tuple[str, ...]] = ()

    def n_needed(self) -> int:
        """Fewest updates for which it is defined."""
        return 1

    def n_withstood(self, n: int) -> int:
        """Hostile ones of n updates that it bears: fewer than half."""
        return (n - 1) // 2

    def fuse(self, rows: Rows) -> Weights:
        """Fuse the rows: a pass over them for each step, and one for the result."""
        lengths = _distances_from(rows, None)
        # where the start is one of the rows, plain steps would hardly leave it
        shares = _shares(np.maximum(lengths, np.median(lengths)))
        for _ in range(MAX_STEPS):
            before, shares = shares, _shares(_distances_from(rows, shares))
            if abs(shares - before).max() <= ENOUGH:
                break
        return rows.fused(lambda _, part: _mixed(part, shares))


def median(part: Slice) -> np.ndarray:
    """Coordinate median (n,) of a slice (K, n), which it overwrites."""
    middle, is_odd = divmod(len(part), 2)
    part = sort_columns(part)
    return part[middle] if is_odd else part[middle - 1 : middle + 1].mean(0, np.float64)


def _shares(lengths: np.ndarray) -> np.ndarray:
    near = 1 / np.maximum(lengths, SMOOTHING)
    return near / near.sum()


def _mixed(part: Slice, shares: np.ndarray) -> np.ndarray:
    """Σ shares_i · row_i in float64."""
    return np.einsum("k,kn->n", shares, part, dtype=np.float64, casting="same_kind")


def _distances_from(rows: Rows, shares: np.ndarray | None) -> np.ndarray:
    """Distance of each row from Σ shares_i · row_i, or from the coordinate median."""

    def of_slice(_block: object, part: Slice) -> np.ndarray:
        centre = median(part.copy()) if shares is None else _mixed(part, shares)
        step = blocks.scratch(part.size, np.float64, 1).reshape(part.shape)
        np.subtract(part, centre, out=step, dtype=np.float64)
        return sums_of_squares(step)

    return np.sqrt(np.zeros(len(rows)) + rows.summed(of_slice))
