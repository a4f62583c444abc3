"""Data handlers `csv` and `parquet`: columns of tables to arrays of inputs and targets.

Numbers are the columns of one array. Categories and text labels become numbers by codes
that all parties share. Training and test samples are two views of one array.
"""

import functools
from typing import Any, ClassVar

import numpy as np

from fedray.config.suggestions import nearest
from fedray.data.holdout import draw_tests, move_to_end
from fedray.data.options import (
    CATEGORY,
    CsvOptions,
    Origin,
    ParquetOptions,
    TableOptions,
    read_options,
)
from fedray.data.partition import sort_values
from fedray.data.table_files import (
    BOOL,
    DATE,
    NUMBERS_NEEDED,
    OTHER,
    TEXT,
    WHOLE,
    CsvFile,
    ParquetFile,
    TableFile,
    find_files,
)
from fedray.data.table_rows import TablePlan, TableRows, encode_texts
from fedray.errors import DataError
from fedray.survey import SINGLE, DataCodes, DataSurvey, Moments, data_survey

TARGETS = ("target", "label", "y")  # names of the target's column, the first one there
INDEXES = ("", "__index_level_0__")  # columns that pandas writes for row numbers
MAX_LISTED = 20  # columns in a message


class TableHandler:
    """Data handler of tables; each kind of file is a subclass.

    Parameters
    ----------
    path : a file, a folder of files, or a pattern such as ``tables/*.csv``.
    options : `options_class` has them.

    Raises
    ------
    DataError
        Naming file, column and row of what cannot be used, never a value.
    """

    options_class: ClassVar[type[TableOptions]]
    file_class: ClassVar[Any]
    suffixes: ClassVar[tuple[str, ...]]

    def __init__(self, path: str, *, origin: Origin | None = None, **options: Any):
        self.path, self.origin = path, origin or Origin()
        self.options = read_options(self.options_class, options)
        self._codes: DataCodes | None = None

    def get_survey(self, rows: np.ndarray | None = None) -> DataSurvey:
        """Columns, categories and label names of this table; moments of its numbers."""
        table, plan = self._rows, self._rows.plan
        train = slice(0, table.n_train) if rows is None else rows
        tests = slice(table.n_train if rows is None else table.n_rows, None)
        counts = {name: table.count(name, train, tests) for name in plan.texts}
        x, moments = table.numbers[train], dict[str, Moments]()
        if plan.numbers and x.dtype.kind == "f":
            moments[SINGLE] = Moments.of(x, plan.numbers)
        label = plan.text_targets[0] if self._has_labels else None
        return DataSurvey(
            columns=self._kinds,
            moments=moments,
            categories={
                name: counts[name]
                for name in (*plan.categories, *plan.text_targets)
                if name != label
            },
            labels=None if label is None else counts[label],
            n_samples=len(x),
        )

    def use_codes(self, codes: DataCodes) -> None:
        """Read data by the codes that all parties share."""
        own, shared = self._kinds, codes.columns
        missing = [name for name in shared if name not in own]
        if self.origin.may_lack_targets:
            missing = [name for name in missing if name not in self._usual_targets]
        added = [name for name in own if name not in shared]
        if shared and (missing or added):
            words = [f"without {missing[:MAX_LISTED]}"] if missing else []
            words += [f"with {added[:MAX_LISTED]} more"] if added else []
            got = f"columns {' and '.join(words)}"
            raise DataError(self.path, got, "the columns that all parties have")
        self._codes = codes

    def get_data(self) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """Return ``(x_train, y_train), (x_test, y_test)``."""
        codes, n_train = self._codes or self.get_survey().codes(), self._rows.n_train
        x, y = self._inputs(codes), self._targets(codes)
        if self.origin.is_test:
            return (x, y), (x, y)
        if y is None:
            return (x[:n_train], None), (x[n_train:], None)
        return (x[:n_train], y[:n_train]), (x[n_train:], y[n_train:])

    def get_column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Values of the column that parties go by, of training and test samples."""
        rows = self._rows
        values = np.array([*rows.names[name]])[rows.codes[name]]
        return values[: rows.n_train], values[rows.n_train :]

    def get_values(self, column: str) -> list[str]:
        """All values of a column as texts; whole numbers in their order."""
        values = dict[str, None]()
        for file in self._files(self.path):
            _require_columns(file, [column])
            row = file.first_row
            for batch in file.batches({column: TEXT}):
                names, codes = encode_texts(batch.column(0))
                if (codes < 0).any() and self.options.missing != "drop":
                    at = f"in row {row + int((codes < 0).argmax())}"
                    got = f"column {column!r} with no value {at}"
                    raise DataError(str(file.path), got, "a party for each row")
                values |= dict.fromkeys(names)
                row += len(codes)
        return sort_values(values)

    @functools.cached_property
    def _rows(self) -> TableRows:
        """The rows of all files, read once."""
        options, origin = self.options, self.origin
        files = self._files(self.path)
        rows = TableRows(self._plan(files), options)
        rows.read(files, self.path)
        rows.n_train = rows.n_rows
        if origin.is_test:
            return rows
        if isinstance(options.test, str):
            test_files = self._files(options.test)
            for file in test_files:
                self._check_file(file, rows.plan)
            rows.read(test_files, options.test)
            return rows
        groups = rows.codes[origin.by] if origin.by else None
        tests = draw_tests(rows.n_rows, options.test, origin, groups)
        move_to_end([rows.numbers, rows.targets, *rows.codes.values()], tests)
        rows.n_train -= len(tests)
        return rows

    def _files(self, path: str) -> list[TableFile]:
        files = find_files(path, self.suffixes, self.origin)
        return [self.file_class(file, self.options) for file in files]

    def _plan(self, files: list[TableFile]) -> TablePlan:
        options, first, by = self.options, files[0], self.origin.by
        targets = self._target_columns(first)
        inputs = self._input_columns(first, targets)
        _check_dtypes(options, [*inputs, *targets], self.path)
        is_category = {
            name: options.dtypes.get(name, options.dtypes.get("")) == CATEGORY
            for name in (*inputs, *targets)
        }
        kinds = {file.kinds.get(name) for file in files for name in targets}
        is_text = TEXT in kinds or any(is_category[name] for name in targets)
        used = {*inputs, *targets}
        order = inputs if options.columns else first.kinds
        plan = TablePlan(
            numbers=tuple(name for name in inputs if not is_category[name]),
            categories=tuple(name for name in inputs if is_category[name]),
            number_targets=() if is_text else targets,
            text_targets=targets if is_text else (),
            columns=tuple(dict.fromkeys((*filter(used.__contains__, order), *targets))),
            is_whole=kinds <= {WHOLE, BOOL},
            by=by,
        )
        for file in files:
            self._check_file(file, plan)
        return plan

    def _input_columns(self, file: TableFile, targets: tuple[str, ...]) -> list[str]:
        """Columns of the inputs: those of the options, or all others.

        A target among them is a slip, unless the targets are a list, as of a table
        that learns its own columns.
        """
        inputs = self.options.columns
        if inputs is None:
            others = {*targets, self.origin.by, *INDEXES}
            inputs = tuple(name for name in file.kinds if name not in others)
        if not inputs:
            raise DataError(self.path, "no column beside the target", "inputs, too")
        both = [name for name in targets if name in inputs]
        if both and not isinstance(self.options.target, tuple):
            got = f"column {both[0]!r} as an input and as the target"
            needed = "data_args: {target: ...} names another, columns leaves it out"
            raise DataError(self.path, got, f"one of both: {needed}")
        return [*inputs]

    @property
    def _usual_targets(self) -> tuple[str, ...]:
        """Columns that may be the targets."""
        own = self.options.target
        return TARGETS if own is None else own if isinstance(own, tuple) else (own,)

    def _target_columns(self, file: TableFile) -> tuple[str, ...]:
        """Columns of the targets: those of the options, or one with a usual name."""
        names = self._usual_targets
        existing = tuple(name for name in names if name in file.kinds)
        if self.options.target is not None:
            return existing if self.origin.may_lack_targets else names
        if not existing and not self.origin.may_lack_targets:
            got = f"no column {', '.join(TARGETS[:-1])} or {TARGETS[-1]}"
            needed = f"data_args: {{target: ...}}, or [] for none; {_listed(file)}"
            raise DataError(str(file.path), got, needed)
        return existing[:1]

    def _check_file(self, file: TableFile, plan: TablePlan) -> None:
        """Refuse a file that lacks columns, or has others than numbers in them."""
        _require_columns(file, [*plan.reals, *plan.texts])
        if not file.has_types:
            return  # what is wrong is found at its row
        kinds = [(name, True) for name in plan.reals]
        for name, is_number in (*kinds, *((name, False) for name in plan.texts)):
            kind, what = file.kinds[name], {OTHER: "lists or bytes"}
            what |= {TEXT: "text", DATE: "dates"} if is_number else {}
            if kind in what:
                got = f"column {name!r} with {what[kind]} from row {file.first_row} on"
                needed = NUMBERS_NEEDED.format(name) if is_number else "names"
                raise DataError(str(file.path), got, needed)

    @property
    def _kinds(self) -> dict[str, str]:
        plan = self._rows.plan
        kind_of = dict.fromkeys(plan.reals, data_survey.NUMBER)
        kind_of |= dict.fromkeys(plan.text_targets, data_survey.TEXT)
        kind_of |= dict.fromkeys(plan.categories, data_survey.CATEGORY)
        return {name: kind_of[name] for name in plan.columns}

    @property
    def _has_labels(self) -> bool:
        """Whether the targets are one column of texts: names of classes."""
        is_list = isinstance(self.options.target, tuple)
        return bool(self._rows.plan.text_targets) and not is_list

    def _inputs(self, codes: DataCodes) -> np.ndarray:
        """Numbers in the order that all parties have, then categories."""
        self._fill_gaps(codes)
        plan, numbers = self._rows.plan, self._rows.numbers
        places = {name: j for j, name in enumerate(plan.numbers)}
        order = [places[name] for name in codes.columns if name in places]
        if order and order != sorted(order):
            numbers = numbers[:, order]
        if not plan.categories:
            return numbers
        names = [name for name in codes.columns if name in plan.categories]
        coded = {name: self._encode(name, codes) for name in names or plan.categories}
        if self.options.one_hot:
            widths = {name: len(codes.categories[name]) for name in coded}
        else:
            widths = dict.fromkeys(coded, 1)
        is_coded_alone = not plan.numbers and not self.options.one_hot
        dtype = np.int64 if is_coded_alone else numbers.dtype
        start = len(plan.numbers)
        x = np.zeros((len(numbers), start + sum(widths.values())), dtype)
        x[:, :start] = numbers
        for name, column in coded.items():
            if self.options.one_hot:
                x[np.arange(len(x)), start + column] = 1
            else:
                x[:, start] = column
            start += widths[name]
        return x

    def _fill_gaps(self, codes: DataCodes) -> None:
        """Put means where numbers are missing, or say that some are."""
        rows, missing = self._rows, self.options.missing
        if rows.gap is None or (missing is None and codes.allows_missing):
            return
        if missing in (None, "error"):
            raise rows.gap
        if missing != "mean" or codes.normalize:
            return  # filled in already, or becomes the mean with all others
        for j, name in enumerate(rows.plan.numbers):
            is_gap = np.isnan(rows.numbers[:, j])
            if is_gap.any():
                rows.numbers[is_gap, j] = codes.mean(name)

    def _targets(self, codes: DataCodes) -> np.ndarray | None:
        rows, options = self._rows, self.options
        plan = rows.plan
        if not plan.targets:
            return None
        if plan.text_targets:
            y = np.stack([self._encode(name, codes) for name in plan.targets], axis=1)
        else:
            is_whole = plan.is_whole and np.array_equal(
                rows.targets, np.rint(rows.targets)
            )
            dtype = "int64" if is_whole else "float32"
            dtypes = {options.dtypes.get(name, dtype) for name in plan.targets}
            y = rows.targets.astype(dtypes.pop() if len(dtypes) == 1 else "float32")
        return y if isinstance(options.target, tuple) else y[:, 0]

    def _encode(self, name: str, codes: DataCodes) -> np.ndarray:
        """A column of texts in the numbers (N,) that all parties use."""
        own, values = self._rows.codes[name], [*self._rows.names[name]]
        if (own < 0).any():  # what is missing is a category of its own
            values.append("")
        if name in codes.categories:
            return codes.encode(name, values, self.path, are_rows=False)[own]
        return codes.encode_labels(values, self.path, are_rows=False)[own]


class Csv(TableHandler):
    """Tables in CSV files: text with a header and a row for each sample."""

    options_class = CsvOptions
    file_class = CsvFile
    suffixes = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.bz2", ".tsv.bz2")


class Parquet(TableHandler):
    """Tables in Parquet files."""

    options_class = ParquetOptions
    file_class = ParquetFile
    suffixes = (".parquet", ".pq")


def _require_columns(file: TableFile, names: list[str]) -> None:
    for name in names:
        if name not in file.kinds:
            near = nearest(name, [*file.kinds])
            hint = f"; did you mean {near!r}?" if near else ""
            needed = _listed(file, "one of") + hint
            raise DataError(str(file.path), f"no column {name!r}", needed)


def _listed(file: TableFile, lead: str = "its columns are") -> str:
    """The columns of a file, as messages have them."""
    names = [*file.kinds]
    lone = names[0] if len(names) == 1 else ""
    mark = next((mark for mark in ";\t|" if mark in lone), "")
    if mark:
        return f"data_args: {{delimiter: {mark!r}}}, by which its header is cut"
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"{lead} {[name[:40] for name in names[:MAX_LISTED]]}{more}"


def _check_dtypes(options: TableOptions, used: list[str], source: str) -> None:
    for name in options.dtypes:
        if name and name not in used:
            got = f"data_args.dtypes of a column {name!r} that is not read"
            raise DataError(source, got, f"columns among {used[:MAX_LISTED]}")
