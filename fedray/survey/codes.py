"""Codes that all parties read their data by: class numbers, categories, means."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedray import nested
from fedray.errors import DataError
from fedray.survey.moments import BLOCK_VALUES, SINGLE, Moments, columns_first


@dataclass(frozen=True, eq=False)
class DataCodes:
    """What all parties read their data by: the same at each, and for predictions.

    columns : kind of each column that the data must have, in the order of the inputs.
    labels : names of the classes; a class's number is its place.
    categories : values of each column of categories; a value's code is its place.
    moments : by input, of all parties together (K = 1).
    normalize : whether inputs are standardised by the moments.
    allows_missing : whether inputs may have NaN, for a value that is missing.
    """

    columns: dict[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)
    normalize: bool = False
    allows_missing: bool = False

    def encode_labels(
        self, names: Iterable[str], source: str, are_rows: bool = True
    ) -> np.ndarray:
        """Class numbers (N,) int64 of label names.

        are_rows : whether there is a name for each row, which an error then tells.

        Raises
        ------
        DataError
            If a name was at no party before round 1; it is not shown.
        """
        return _encode(names, self.labels, "label", source, are_rows)

    def encode(
        self, column: str, values: Iterable[str], source: str, are_rows: bool = True
    ) -> np.ndarray:
        """Codes (N,) int64 of one column's categories; as `encode_labels`."""
        what = f"category of column {column!r}"
        return _encode(values, self.categories[column], what, source, are_rows)

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
        parts = nested.arrays(x)
        return nested.map_named(lambda key: self._apply(key, parts[key], source), x)

    def _apply(self, key: str, x: np.ndarray, source: str) -> np.ndarray:
        if key not in self.moments or x.dtype.kind != "f":
            return x
        moments = self.moments[key]
        n, n_columns = len(moments.names), columns_first(x[:0], moments.axis).shape[0]
        if n_columns < n or (n_columns > n and not self.categories):
            what = f"input x{key} " if key else ""
            got = f"{what}with {n_columns} columns or channels"
            raise DataError(source, got, f"the {n} that were surveyed before round 1")
        standardised = x.copy()
        rows = max(1, BLOCK_VALUES * max(1, len(x)) // max(1, x.size))
        for start in range(0, len(x), rows):
            block = columns_first(standardised[start : start + rows], moments.axis)
            _standardise(block[:n], moments)
        return standardised


def _standardise(block: np.ndarray, moments: Moments) -> None:
    """Standardise the columns (C, ...) of a block in place, by float64."""
    varies, mean = moments.m2[0] > 0, moments.mean[0]
    by_column = len(block), *[1] * (block.ndim - 1)
    values = block.astype(np.float64)
    values -= np.where(varies, mean, 0).reshape(by_column)
    values /= np.where(varies, moments.deviation[0], 1).reshape(by_column)
    fill = np.where(varies, 0, mean).reshape(by_column)
    block[...] = np.where(np.isnan(values), fill, values)


def _encode(
    values: Iterable[str], names: Sequence[str], what: str, source: str, are_rows: bool
) -> np.ndarray:
    numbers = {value: k for k, value in enumerate(names)}
    codes = [numbers.get(value, -1) for value in values]
    if -1 in codes:
        where = f" in row {codes.index(-1) + 1}" if are_rows else ""
        got = f"a {what}{where} that no party had before round 1"
        needed = f"one of the {len(names)} known ones, or a new run with this party"
        raise DataError(source, got, needed)
    return np.array(codes, np.int64)
