"""Data surveys: sums and values of the parties' data, and the codes made of them.

Before round 1 every party counts what its data holds. Surveys of all parties are
merged, and out of them come codes that all parties share: class numbers of label
names, numbers of categories, means and deviations. No sample leaves a party.
"""

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from fedray.errors import DataError

Value = str | int | float
SINGLE = ""  # the name of an input that is the only one
NUMBER, CATEGORY, TEXT = "number", "category", "text"  # kinds of columns
EMPTY = "empty"  # of a column without a value: of any kind
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
    def merge(cls, parts: Iterable[Self]) -> Self:
        """Sum the counts of several parties."""
        counts, parties = Counter[Value](), Counter[Value]()
        for part in parts:
            counts.update(part.counts)
            parties.update(part.parties)
        return cls(dict(counts), dict(parties))


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
        """The moments of several parties, columns in the order of the first ones."""
        first = parts[0]
        parts = [part.select(first.names) for part in parts]
        arrays: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in _ARRAYS
            if all(getattr(part, name) is not None for part in parts)
        }
        return dataclasses.replace(first, **arrays)

    def select(self, names: Sequence[str]) -> Self:
        """Some of the columns, in this order."""
        if tuple(names) == self.names:
            return self
        places = [self.names.index(name) for name in names]
        arrays: dict[str, Any] = {
            name: array[:, places]
            for name in _ARRAYS
            if (array := getattr(self, name)) is not None
        }
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


_ARRAYS = ("count", "mean", "m2", "missing", "minimum", "maximum")


@dataclass(frozen=True, eq=False)
class DataSurvey:
    """What parties tell of their data before round 1: of one, or merged of many.

    columns : kind of each column, in the order of the file: NUMBER, CATEGORY, TEXT or
        EMPTY; nothing where the data has no named columns. The target is among them.
    moments : by input: SINGLE of one array, the place of a tuple's, the key of a
        dict's. The columns that they name are the first ones of the input.
    categories : values of columns that hold categories.
    labels : names of the targets; or whole numbers, where those were asked for.
    words : of documents.
    n_samples : training samples.
    """

    columns: dict[str, str] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)
    categories: dict[str, ValueCounts] = field(default_factory=dict)
    labels: ValueCounts | None = None
    words: ValueCounts | None = None
    n_samples: int = 0
    n_parties: int = 1

    @classmethod
    def merge(cls, surveys: Sequence[Self]) -> Self:
        """The survey of several parties, whose columns are the same (`differences`)."""
        columns = _merge_columns([survey.columns for survey in surveys])
        inputs = dict.fromkeys(key for one in surveys for key in one.moments)
        texts = [name for name in columns if any(name in s.categories for s in surveys)]
        return cls(
            columns,
            {
                key: Moments.merge(
                    [s.moments[key] for s in surveys if key in s.moments]
                )
                for key in inputs
            },
            {
                name: ValueCounts.merge(
                    s.categories[name] for s in surveys if name in s.categories
                )
                for name in texts
            },
            _merge_counts([survey.labels for survey in surveys]),
            _merge_counts([survey.words for survey in surveys]),
            sum(survey.n_samples for survey in surveys),
            sum(survey.n_parties for survey in surveys),
        )

    def codes(self, normalize: bool = False) -> "DataCodes":
        """The codes that follow from it, in an order that parties do not change."""
        labels = sorted(self.labels.parties) if self.labels else []
        return DataCodes(
            columns=self.columns,
            labels=tuple(label for label in labels if isinstance(label, str)),
            categories={
                name: tuple(sorted(map(str, counts.parties)))
                for name, counts in self.categories.items()
            },
            moments={key: part.total() for key, part in self.moments.items()},
            normalize=normalize,
        )


@dataclass(frozen=True, eq=False)
class DataCodes:
    """What all parties read their data by: the same at each, and for predictions.

    columns : kind of each column that the data must have, in the order of the inputs.
    labels : names of the classes; a class's number is its place.
    categories : values of each column of categories; a value's code is its place.
    moments : by input, of all parties together (K = 1).
    normalize : whether inputs are standardised by the moments.
    """

    columns: dict[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)
    normalize: bool = False

    def encode_labels(self, names: Iterable[str], source: str) -> np.ndarray:
        """Class numbers (N,) int64 of label names.

        Raises
        ------
        DataError
            If a name was at no party before round 1; it is not shown.
        """
        return _encode(names, self.labels, "label", source)

    def encode(self, column: str, values: Iterable[str], source: str) -> np.ndarray:
        """Codes (N,) int64 of one column's categories; as `encode_labels`."""
        what = f"category of column {column!r}"
        return _encode(values, self.categories[column], what, source)

    def decode_labels(self, numbers: Iterable[int]) -> list[str]:
        """Names of class numbers; a number without a name is its own."""
        n = len(self.labels)
        return [self.labels[k] if 0 <= k < n else str(k) for k in numbers]

    def mean(self, column: str, input: str = SINGLE) -> float:
        """The mean of a column over all parties, which stands for missing values."""
        moments = self.moments[input]
        return float(moments.mean[0, moments.names.index(column)])

    def apply(self, x: Any, source: str = "the input") -> Any:
        """Standardised inputs: an array, a tuple or a dict of arrays; x is not changed.

        Floats become (x - mean) / deviation by column in their own dtype, NaN becomes
        0, the mean. Whole numbers stay, and columns whose values are all the same.

        Raises
        ------
        DataError
            If an input has other columns than the parties'.
        """
        if not self.normalize:
            return x
        if isinstance(x, Mapping):
            return {key: self._apply(str(key), x[key], source) for key in x}
        if isinstance(x, tuple | list):
            return tuple(self._apply(str(i), x[i], source) for i in range(len(x)))
        return self._apply(SINGLE, x, source)

    def _apply(self, key: str, x: np.ndarray, source: str) -> np.ndarray:
        if key not in self.moments or x.dtype.kind != "f":
            return x
        moments = self.moments[key]
        n, n_columns = len(moments.names), columns_first(x[:0], moments.axis).shape[0]
        if n_columns < n or (n_columns > n and not self.categories):
            what = f"input {key!r} " if key else ""
            got = f"{what}with {n_columns} columns or channels"
            raise DataError(source, got, f"the {n} that were surveyed before round 1")
        standardised = x.copy()
        rows = max(1, BLOCK_VALUES * max(1, len(x)) // max(1, x.size))
        for start in range(0, len(x), rows):
            block = columns_first(standardised[start : start + rows], moments.axis)
            _standardise(block[:n], moments)
        return standardised

    def to_json(self) -> dict[str, Any]:
        """Plain data; floats as they are, to the last bit."""
        return {
            "normalize": self.normalize,
            "labels": list(self.labels),
            "columns": self.columns,
            "categories": {name: list(v) for name, v in self.categories.items()},
            "inputs": {
                key: {"axis": m.axis}
                | {"columns": list(m.names)}
                | {
                    name: array[0].tolist()
                    for name in (*_ARRAYS[:4], "deviation")
                    if (array := getattr(m, name)) is not None
                }
                for key, m in self.moments.items()
            },
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        """Rebuild from what `to_json` gave."""
        moments = {
            key: Moments(
                tuple(part["columns"]),
                np.array([part["count"]], np.int64),
                np.array([part["mean"]], np.float64),
                np.array([part["m2"]], np.float64),
                np.array([part["missing"]], np.int64),
                axis=part["axis"],
            )
            for key, part in saved["inputs"].items()
        }
        return cls(
            dict(saved["columns"]),
            tuple(saved["labels"]),
            {name: tuple(v) for name, v in saved["categories"].items()},
            moments,
            bool(saved["normalize"]),
        )

    def digest(self) -> str:
        """sha256 of everything in it, in hex."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def columns_first(x: np.ndarray, axis: int) -> np.ndarray:
    """A view (C, N, ...) of an array (N, ...): its columns or channels first."""
    if x.ndim == 1:
        return x[None]
    return np.moveaxis(x, axis, 0)


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
    rest = values.sum(axis=1) ** 2 / divisor[:, 0]  # what rounding of the mean adds
    m2 = np.maximum(np.square(values, out=values).sum(axis=1) - rest, 0)
    sums = {"count": count, "mean": low + distance[:, 0], "m2": m2}
    sums["missing"] = is_missing.sum(axis=1)
    if extremes:
        sums["minimum"], sums["maximum"] = (
            np.where(count == 0, np.nan, value) for value in (low, high)
        )
    return {name: array[None] for name, array in sums.items()}


def _standardise(block: np.ndarray, moments: Moments) -> None:
    """Standardise the columns (C, ...) of a block in place, by float64."""
    varies, mean = moments.m2[0] > 0, moments.mean[0]
    by_column = len(block), *[1] * (block.ndim - 1)
    values = block.astype(np.float64)
    values -= np.where(varies, mean, 0).reshape(by_column)
    values /= np.where(varies, moments.deviation[0], 1).reshape(by_column)
    fill = np.where(varies, 0, mean).reshape(by_column)
    block[...] = np.where(np.isnan(values), fill, values)


def _sum_exactly(terms: np.ndarray) -> np.ndarray:
    """Sums (1, C) of terms (K, C), each rounded once, whatever their order."""
    return np.array([[math.fsum(column) for column in terms.T.tolist()]])


def _extreme(pick: np.ufunc, values: np.ndarray) -> np.ndarray:
    return pick.reduce(values, axis=0, keepdims=True)


def _encode(
    values: Iterable[str], names: Sequence[str], what: str, source: str
) -> np.ndarray:
    numbers = {value: k for k, value in enumerate(names)}
    codes = [numbers.get(value, -1) for value in values]
    if -1 in codes:
        row = codes.index(-1) + 1
        got = f"a {what} in row {row} that no party had before round 1"
        needed = f"one of the {len(names)} known ones, or a new run with this party"
        raise DataError(source, got, needed)
    return np.array(codes, np.int64)


def _merge_moments(key: str, surveys: Sequence[DataSurvey]) -> Moments:
    return Moments.merge([one.moments[key] for one in surveys if key in one.moments])


def _merge_counts(parts: Sequence[ValueCounts | None]) -> ValueCounts | None:
    present = [part for part in parts if part is not None]
    return ValueCounts.merge(present) if present else None


def _merge_columns(parts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Columns in the order that all parties have; sorted, if their orders differ."""
    orders = {tuple(part) for part in parts}
    names = list(orders.pop()) if len(orders) == 1 else sorted(set().union(*orders))
    kinds = {}
    for name in names:
        own = {part[name] for part in parts if name in part} - {EMPTY}
        kinds[name] = min(own, default=EMPTY)
    return kinds
