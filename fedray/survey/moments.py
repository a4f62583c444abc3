"""Counts of values, and count, mean and deviation of columns: sums that merge."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

Value = Any  # text or a number
SINGLE = ""  # the name of an input that is the only one
BLOCK_VALUES = 1 << 20  # read at a time


@dataclass(frozen=True, eq=False)
class ValueCounts:
    """How often each value occurs, and at how many parties: labels, categories, words.

    counts : of all parties together; 0 for a value that is only in their test samples.
    parties : how many of them have it.
    """

    counts: dict[Value, int]
    parties: dict[Value, int]

    @classmethod
    def of(cls, values: Iterable[Value], tests: Iterable[Value] = ()) -> Self:
        """Count one party's values; those of its test samples exist, uncounted."""
        counts = dict(Counter(values))
        counts |= {value: 0 for value in tests if value not in counts}
        return cls(counts, dict.fromkeys(counts, 1))

    @classmethod
    def uncounted(cls, values: Iterable[Value]) -> Self:
        """Values that exist, in no sample and at no party."""
        counts = dict.fromkeys(values, 0)
        return cls(counts, dict(counts))

    @classmethod
    def merge(cls, parts: Iterable[Self]) -> Self:
        """Sum the counts of several parties."""
        counts, parties = Counter[Value](), Counter[Value]()
        for part in parts:
            counts.update(part.counts)
            parties.update(part.parties)
        return cls(dict(counts), dict(parties))

    def to_json(self) -> list[list[Any]]:
        """Plain data: rows of value, count and number of parties, sorted by value."""
        return [[v, self.counts[v], self.parties[v]] for v in sorted(self.counts)]

    @classmethod
    def from_json(cls, rows: Iterable[Sequence[Any]]) -> Self:
        """Rebuild from what `to_json` gave."""
        rows = list(rows)
        return cls({row[0]: row[1] for row in rows}, {row[0]: row[2] for row in rows})


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and squared deviations of each column, apart for every party.

    Parties are kept apart until `total`, which rounds once: neither their order nor
    which of them share an actor changes a bit of it.

    names : (C,) of the columns, or channels of images.
    axis : of an array where they lie: -1, or 1 of images with channels first.
    count : (K, C) int64 values of each party that are there.
    mean : (K, C) float64, of those values; 0 without any.
    m2 : (K, C) float64, sum of their squared deviations from that mean.
    missing : (K, C) int64 values that are not there.
    minimum, maximum : (K, C) float64, only where they were asked for.
    """

    names: tuple[str, ...]
    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray
    missing: np.ndarray
    minimum: np.ndarray | None = None
    maximum: np.ndarray | None = None
    axis: int = -1

    @classmethod
    def of(
        cls,
        x: np.ndarray,
        names: Sequence[str] | None = None,
        axis: int = -1,
        extremes: bool = False,
    ) -> Self:
        """Moments of one party's array (N, ..., C), or (N,) as a single column.

        NaN is a missing value. The array is read in blocks: it may be a memmap.
        """
        n_columns = columns_first(x[:0], axis).shape[0]
        names = tuple(names or map(str, range(n_columns)))
        rows = max(1, BLOCK_VALUES * max(1, len(x)) // max(1, x.size))
        blocks = [
            _block_sums(columns_first(x[start : start + rows], axis), extremes)
            for start in range(0, max(1, len(x)), rows)
        ]
        parts = [cls(names, **sums, axis=axis) for sums in blocks]
        return cls.merge(parts).total()

    @classmethod
    def merge(cls, parts: Sequence[Self]) -> Self:
        """The moments of several parties; columns in an order that all of them give."""
        names = _common_order([part.names for part in parts])
        parts = [part.select(names) for part in parts]
        arrays: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ARRAYS
            if all(getattr(part, name) is not None for part in parts)
        }
        return dataclasses.replace(parts[0], **arrays)

    def select(self, names: Sequence[str]) -> Self:
        """The columns of these names; one that is not there has no value at all."""
        if tuple(names) == self.names:
            return self
        places = {name: k for k, name in enumerate(self.names)}
        order = [places.get(name, -1) for name in names]
        is_there = np.array(order) >= 0
        arrays: dict[str, Any] = {
            name: np.where(
                is_there, array[:, order], 0 if name in ARRAYS[:4] else np.nan
            )
            for name in ARRAYS
            if (array := getattr(self, name)) is not None
        }
        n_rows = (self.count + self.missing).max(axis=1, keepdims=True, initial=0)
        arrays["missing"] = np.where(is_there, arrays["missing"], n_rows)
        return dataclasses.replace(self, names=tuple(names), **arrays)

    def total(self) -> Self:
        """The moments of all parties together, as of one (K = 1).

        Source: Chan, Golub and LeVeque 1983, Algorithms for Computing the Sample
        Variance, equation 2.1, for any number of parts; sums are rounded once
        (`math.fsum`), means are summed as distances from the lowest.
        """
        if len(self.count) == 1:
            return self
        count = self.count.sum(axis=0, keepdims=True)
        is_empty = self.count == 0
        lowest = np.where(is_empty, np.inf, self.mean).min(axis=0)
        lowest = np.where(count[0] == 0, 0.0, lowest)
        distances = np.where(is_empty, 0.0, self.mean - lowest)
        sums = _sum_exactly(self.count * distances)
        mean = lowest + sums / np.maximum(count, 1)
        between = self.count * np.where(is_empty, 0.0, self.mean - mean) ** 2
        m2 = _sum_exactly(np.concatenate([self.m2, between]))
        missing = self.missing.sum(axis=0, keepdims=True)
        low = None if self.minimum is None else _extreme(np.fmin, self.minimum)
        high = None if self.maximum is None else _extreme(np.fmax, self.maximum)
        return dataclasses.replace(
            self, count=count, mean=mean, m2=m2, missing=missing, minimum=low,
            maximum=high,
        )  # fmt: skip

    @property
    def deviation(self) -> np.ndarray:
        """(K, C) standard deviation of the population: √(m2 / count)."""
        return np.sqrt(self.m2 / np.maximum(self.count, 1))

    def columns(self) -> list[dict[str, Any]]:
        """Plain data of each column of the first party's row, by what it is."""
        names = (*ARRAYS[:2], "deviation", *ARRAYS[3:])
        arrays = {name: getattr(self, name) for name in names}
        rows = {name: a[0].tolist() for name, a in arrays.items() if a is not None}
        return [
            {"column": column}
            | {
                name: None if math.isnan(row[k]) else row[k]
                for name, row in rows.items()
            }
            for k, column in enumerate(self.names)
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain data of the first party's row, floats to the last bit."""
        names = [*ARRAYS[:4], "deviation"]
        plain = {name: getattr(self, name)[0].tolist() for name in names}
        return {"axis": self.axis, "columns": list(self.names), **plain}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        """Rebuild from what `to_json` gave; extremes are not kept."""
        dtypes = {"count": np.int64, "missing": np.int64}
        arrays = {
            name: np.array([saved[name]], dtypes.get(name, np.float64))
            for name in ARRAYS[:4]
        }
        return cls(tuple(saved["columns"]), **arrays, axis=saved["axis"])


ARRAYS = ("count", "mean", "m2", "missing", "minimum", "maximum")


def columns_first(x: np.ndarray, axis: int) -> np.ndarray:
    """A view (C, N, ...) of an array (N, ...): its columns or channels first."""
    if x.ndim == 1:
        return x[None]
    return np.moveaxis(x, axis, 0)


def _common_order(orders: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """All names in the order of the longest list, or sorted if others contradict it."""
    longest = max(sorted(set(orders)), key=len)
    for names in orders:
        rest = iter(longest)
        if not all(name in rest for name in names):
            return tuple(sorted(set().union(*orders)))
    return longest


def _block_sums(x: np.ndarray, extremes: bool) -> dict[str, Any]:
    """The arrays of `Moments` of a block (C, ...), each (1, C)."""
    values = x.reshape(len(x), -1).astype(np.float64)
    is_missing = np.isnan(values)
    count = (~is_missing).sum(axis=1)
    divisor = np.maximum(count, 1)[:, None]
    low = np.where(is_missing, np.inf, values).min(axis=1, initial=np.inf)
    high = np.where(is_missing, -np.inf, values).max(axis=1, initial=-np.inf)
    low, high = np.where(count == 0, 0.0, low), np.where(count == 0, 0.0, high)
    values -= low[:, None]  # so that equal values have no deviation at all
    values[is_missing] = 0
    distance = values.sum(axis=1, keepdims=True) / divisor
    values -= distance
    values[is_missing] = 0
    with np.errstate(over="ignore", invalid="ignore"):  # whoever asks refuses these
        rest = values.sum(axis=1) ** 2 / divisor[:, 0]  # what rounding of the mean adds
        m2 = np.maximum(np.square(values, out=values).sum(axis=1) - rest, 0)
    sums = {"count": count, "mean": low + distance[:, 0], "m2": m2}
    sums["missing"] = is_missing.sum(axis=1)
    if extremes:
        sums["minimum"], sums["maximum"] = (
            np.where(count == 0, np.nan, value) for value in (low, high)
        )
    return {name: array[None] for name, array in sums.items()}


def _sum_exactly(terms: np.ndarray) -> np.ndarray:
    """Sums (1, C) of terms (K, C), each rounded once, whatever their order."""
    return np.array([[math.fsum(column) for column in terms.T.tolist()]])


def _extreme(pick: np.ufunc, values: np.ndarray) -> np.ndarray:
    return pick.reduce(values, axis=0, keepdims=True)
