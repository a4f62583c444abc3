"""Rows of tables as arrays: numbers, targets, and own codes of texts.

Rows are added in batches to arrays that grow in place, so that a table is in memory
once. Errors say file, column and row, never a value.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedray.data.options import CATEGORY, TableOptions
from fedray.data.table_files import BOOL, NUMBER, TEXT, TableFile
from fedray.errors import DataError
from fedray.survey import ValueCounts
from fedray.survey.moments import Value

MAX_WHOLE = 1 << 53  # the last whole number that a float64 tells from its neighbours
MAX_NAMES = 100_000  # of a column's categories or labels
NO_GAPS = "a value, or data_args: {missing: ...} (drop, mean or a number)"


@dataclass(frozen=True)
class TablePlan:
    """Which columns of a table are read, and as what.

    numbers, categories : of the inputs.
    number_targets, text_targets : one of the two is empty.
    columns : all of these, in the file's order or that of `columns`.
    is_whole : whether the files say that the targets are whole numbers.
    by : the column that parties of a partition go by.
    """

    numbers: tuple[str, ...]
    categories: tuple[str, ...]
    number_targets: tuple[str, ...]
    text_targets: tuple[str, ...]
    columns: tuple[str, ...]
    is_whole: bool
    by: str | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """Columns of the targets."""
        return self.number_targets or self.text_targets

    @property
    def reals(self) -> tuple[str, ...]:
        """Columns whose values are numbers."""
        return tuple(dict.fromkeys((*self.numbers, *self.number_targets)))

    @property
    def texts(self) -> tuple[str, ...]:
        """Columns whose values are names."""
        by = (self.by,) if self.by else ()
        return tuple(dict.fromkeys((*self.categories, *self.text_targets, *by)))


@dataclass(frozen=True)
class _Place:
    """Where a batch stands: its file, and how people count its first row."""

    file: TableFile
    row: int

    def refuse(self, column: str, what: str, i: int, needed: str) -> DataError:
        """The error about row `i` of the batch."""
        got = f"column {column!r} with {what} in row {self.row + i}"
        return DataError(str(self.file.path), got, needed)


class TableRows:
    """The rows of a table's files, training samples first.

    numbers : (N, F) inputs; NaN where one is missing and `missing` leaves it open.
    targets : (N, K) float64, empty columns where they are texts.
    names : own code of each text, by column.
    codes : (N,) own codes of the texts, by column; -1 where one is missing.
    gap : the error about the first missing value; None if nothing is missing.
    """

    def __init__(self, plan: TablePlan, options: TableOptions):
        self.plan, self.options = plan, options
        self.n_rows = self.n_train = 0
        self.gap: DataError | None = None
        dtype = _dtype_of_numbers(plan, options)
        self.numbers = np.empty((0, len(plan.numbers)), dtype)
        self.targets = np.empty((0, len(plan.number_targets)))
        self.names: dict[str, dict[str, int]] = {name: {} for name in plan.texts}
        self.codes = {name: np.empty(0, np.int32) for name in plan.texts}

    def read(self, files: Sequence[TableFile], source: str) -> None:
        """Add the rows of files.

        Raises
        ------
        DataError
            If there are none, or one cannot be used.
        """
        before, n_read = self.n_rows, 0
        for file in files:
            wanted = {
                name: BOOL if file.kinds[name] == BOOL else NUMBER
                for name in self.plan.reals
            }
            wanted |= dict.fromkeys(self.plan.texts, TEXT)
            row = file.first_row
            for batch in file.batches(wanted):
                columns = dict(zip(batch.schema.names, batch.columns, strict=True))
                self._add(columns, batch.num_rows, _Place(file, row))
                row += batch.num_rows
                n_read += batch.num_rows
        if self.n_rows == before:
            got = "a value missing in each row" if n_read else "columns without a row"
            raise DataError(source, got, "at least one row of values")
        for array in (self.numbers, self.targets, *self.codes.values()):
            array.resize((self.n_rows, *array.shape[1:]), refcheck=False)

    def count(
        self, name: str, train: slice | np.ndarray, tests: slice | np.ndarray
    ) -> ValueCounts:
        """How often a column's values are in training rows; 0: in tests alone."""
        values, codes = [*self.names[name], ""], self.codes[name]
        n_samples = np.bincount(codes[train] % len(values), minlength=len(values))
        is_test = np.isin(np.arange(len(values)), codes[tests] % len(values))
        counts: dict[Value, int] = {
            value: int(n_samples[k])
            for k, value in enumerate(values)
            if n_samples[k] or is_test[k]
        }
        return ValueCounts(counts, dict.fromkeys(counts, 1))

    def _add(self, columns: dict[str, Any], n: int, place: _Place) -> None:
        plan = self.plan
        x = _to_floats(columns, plan.numbers, n, place)
        y = _to_floats(columns, plan.number_targets, n, place)
        codes = {name: self._encode(name, columns[name], place) for name in plan.texts}
        keep = self._settle_gaps(x, y, codes, place)
        if not keep.all():
            x, y = x[:, keep], y[:, keep]
            codes = {name: own[keep] for name, own in codes.items()}
        start, self.n_rows = self.n_rows, self.n_rows + int(keep.sum())
        with np.errstate(over="ignore", invalid="ignore"):
            _append(self.numbers, start, x.T)
        _append(self.targets, start, y.T)
        for name, own in codes.items():
            _append(self.codes[name], start, own)
        self._check_dtype(self.numbers[start : self.n_rows], x, place)
        for name, values in zip(plan.number_targets, y, strict=True):
            is_odd = np.abs(values) > (MAX_WHOLE if plan.is_whole else np.inf)
            if self.options.dtypes.get(name, "") in ("int64", "int32"):
                is_odd |= values != np.rint(values)
            if is_odd.any():
                what, needed = "no class number", "whole numbers up to 2**53"
                raise place.refuse(name, what, int(is_odd.argmax()), needed)

    def _encode(self, name: str, column: Any, place: _Place) -> np.ndarray:
        """Own codes (n,) of a batch's texts; -1 where there is none."""
        index = self.names[name]
        names, codes = encode_texts(column)
        is_free = self.options.dtypes.get(name) != CATEGORY
        if name in self.plan.text_targets and is_free:
            self._refuse_mixture(name, names, codes, place)
        numbers = [index.setdefault(value, len(index)) for value in names]
        if len(index) > MAX_NAMES:
            got = f"column {name!r} with more than {MAX_NAMES:,} different texts"
            raise DataError(str(place.file.path), got, "categories, or numbers")
        return np.array([*numbers, -1], np.int32)[codes]

    def _refuse_mixture(
        self, name: str, names: list[str], codes: np.ndarray, place: _Place
    ) -> None:
        """Refuse numbers among texts: is it a slip, or are all of them names?"""
        first = next(iter(self.names[name]), names[0] if names else "")
        is_odd = [_is_number(value) != _is_number(first) for value in names]
        if not any(is_odd):
            return
        i = int(np.flatnonzero(np.array([*is_odd, False])[codes])[0])
        what = "text" if _is_number(first) else "a number"
        above = "numbers" if _is_number(first) else "texts"
        needed = f"{above}, as above it, or dtypes: {{{name}: category}} for names"
        raise place.refuse(name, what, i, needed)

    def _settle_gaps(
        self, x: np.ndarray, y: np.ndarray, codes: dict[str, np.ndarray], place: _Place
    ) -> np.ndarray:
        """Fill, note or refuse what is missing; which rows (n,) stay."""
        plan, missing = self.plan, self.options.missing
        gaps = {name: np.isnan(x[j]) for j, name in enumerate(plan.numbers)}
        gaps |= {name: codes[name] < 0 for name in plan.categories}
        targets = {name: np.isnan(y[j]) for j, name in enumerate(plan.number_targets)}
        rest = (*plan.text_targets, *([plan.by] if plan.by else []))
        targets |= {name: codes[name] < 0 for name in rest}
        n = x.shape[1]
        if missing == "drop":
            return ~np.logical_or.reduce(
                [np.zeros(n, bool), *gaps.values(), *targets.values()]
            )
        for name, is_gap in targets.items():
            if is_gap.any():
                needed = "a value, or data_args: {missing: drop}"
                raise place.refuse(name, "no value", int(is_gap.argmax()), needed)
        first = next((name for name, is_gap in gaps.items() if is_gap.any()), None)
        if first is not None and self.gap is None:
            i = int(gaps[first].argmax())
            self.gap = place.refuse(first, "no value", i, NO_GAPS)
        if isinstance(missing, int | float):
            x[np.isnan(x)] = missing
        return np.ones(n, bool)

    def _check_dtype(self, stored: np.ndarray, x: np.ndarray, place: _Place) -> None:
        """Refuse numbers that the inputs' dtype does not hold."""
        if stored.dtype == np.float64 or not stored.size:
            return
        if stored.dtype.kind == "f":
            is_wrong = np.isinf(stored)
            what, needed = "a number too large for float32", "dtypes: float64"
        else:
            is_wrong = (stored != x.T) | (np.abs(x.T) > MAX_WHOLE)
            what, needed = "no whole number", f"what {stored.dtype} holds"
        if is_wrong.any():
            i, j = np.argwhere(is_wrong)[0].tolist()
            raise place.refuse(self.plan.numbers[j], what, i, needed)


def encode_texts(column: Any) -> tuple[list[str], np.ndarray]:
    """Different texts of a pyarrow array, and each row's place in them; -1: none."""
    import pyarrow
    import pyarrow.compute

    if pyarrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    encoded = column.cast(pyarrow.string()).dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return encoded.dictionary.to_pylist(), codes


def _to_floats(
    columns: dict[str, Any], names: Sequence[str], n: int, place: _Place
) -> np.ndarray:
    """Values (F, n) of a batch's columns of numbers; NaN where one is missing.

    Raises
    ------
    DataError
        If one is infinite.
    """
    import pyarrow

    values = np.empty((len(names), n))
    for j, name in enumerate(names):
        column = columns[name]
        if pyarrow.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pyarrow.types.is_boolean(column.type):
            column = column.cast(pyarrow.uint8())
        floats = column.cast(pyarrow.float64(), safe=False)
        values[j] = floats.to_numpy(zero_copy_only=False)
        if np.isinf(values[j]).any():
            i = int(np.isinf(values[j]).argmax())
            raise place.refuse(name, "infinity", i, "finite numbers")
    return values


def _append(array: np.ndarray, start: int, values: np.ndarray) -> None:
    """Write rows from `start` on; the array grows in place."""
    end = start + len(values)
    if end > len(array):
        n_rows = max(end, len(array) + len(array) // 8)
        array.resize((n_rows, *array.shape[1:]), refcheck=False)
    array[start:end] = values


def _dtype_of_numbers(plan: TablePlan, options: TableOptions) -> np.dtype:
    """The dtype that the options give all columns of numbers, or what holds all."""
    every = options.dtypes.get("", "float32")
    dtypes = {options.dtypes.get(name, every) for name in plan.numbers} or {"float32"}
    mixed = "float64" if "float64" in dtypes else "float32"
    return np.dtype(dtypes.pop() if len(dtypes) == 1 else mixed)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
