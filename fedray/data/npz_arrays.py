"""Data handler `npz`: arrays of numbers under any names in an npz file."""

import functools
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fedray import nested
from fedray.data.base import Keys, read_npz
from fedray.data.holdout import draw_tests, move_to_end
from fedray.data.options import NpzOptions, Origin, read_options
from fedray.data.table_files import check_place
from fedray.errors import DataError
from fedray.survey import DataCodes, DataSurvey, ValueCounts

USUAL = {"x": ("x_train", "x"), "y": ("y_train", "y")}  # the first one in the file
TESTS = {"x_train": "x_test", "y_train": "y_test"}  # names that go together
MAX_LISTED = 20  # names in a message


class Npz:
    """Data handler of npz files whose arrays have names of their own.

    Numbers are given as they are. Targets that are texts become class numbers, by codes
    that all parties share.

    Parameters
    ----------
    path : an npz file; nothing in it is unpickled.
    options : `NpzOptions` has them.

    Raises
    ------
    DataError
        Naming the file and the array, never a value.
    """

    options_class = NpzOptions

    def __init__(self, path: str, *, origin: Origin | None = None, **options: Any):
        self.path, self.origin = path, origin or Origin()
        self.options: NpzOptions = read_options(NpzOptions, options)
        self._names: dict[str, Any] = {}  # of x, y, x_test, y_test in the file
        self._codes: DataCodes | None = None

    def get_survey(self, rows: np.ndarray | None = None) -> DataSurvey:
        """Names of the classes, where targets are texts."""
        (x_train, y_train), (_, y_test) = self._pairs
        n_samples = nested.length(x_train) if rows is None else len(rows)
        if not _is_text(y_train):
            return DataSurvey(n_samples=n_samples)
        if rows is None:
            labels = ValueCounts.of(_to_texts(y_train), _to_texts(y_test))
        else:
            labels = ValueCounts.of(_to_texts(y_train[rows]))
        return DataSurvey(labels=labels, n_samples=n_samples)

    def use_codes(self, codes: DataCodes) -> None:
        """Number the classes as all parties do."""
        self._codes = codes

    def get_data(self) -> tuple[Any, Any]:
        """Return ``(x_train, y_train), (x_test, y_test)``."""
        (x_train, y_train), (x_test, y_test) = self._pairs
        if not _is_text(y_train):
            return self._pairs
        codes = self._codes or self.get_survey().codes()
        train, test = (
            codes.encode_labels(_to_texts(y), self.path) for y in (y_train, y_test)
        )
        return (x_train, train), (x_test, test)

    def get_column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Values of an array that parties go by, of training and test samples.

        Beside x_test and y_test its own are NAME_test.
        """
        n_train, arrays = nested.length(self._pairs[0][0]), self._arrays
        values = arrays[self._names["by"]]
        if "x_test" in self._names:
            return values, arrays[self._names["by_test"]]
        return values[:n_train], values[n_train:]

    def get_values(self, name: str) -> list[str]:
        """All values of an array as texts, in their order."""
        key = functools.partial(_name_of_column, name)
        (values,) = read_npz(self.path, lambda e: [key(e)], may_be_text=True).values()
        return _to_texts(np.unique(values))

    @functools.cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the file that are used; chooses their names."""

        def choose(existing: list[str]) -> Iterable[str]:
            self._names = self._choose(existing)
            return self._used_names

        return self._read(self.path, choose)

    @functools.cached_property
    def _pairs(self) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """Samples and targets for training and for tests."""
        arrays, test = self._arrays, self.options.test
        train = self._pair(arrays, "x", "y")
        if "x_test" in self._names:
            return train, self._pair(arrays, "x_test", "y_test")
        if self.origin.is_test:
            return train, train
        if isinstance(test, str):
            other = self._read(test, self._used_names)
            return train, self._pair(other, "x", "y")
        n_samples = self._common_length(arrays)
        by = arrays[self._names["by"]] if self.origin.by else None
        groups = None if by is None else np.unique(by, return_inverse=True)[1]
        tests = draw_tests(n_samples, test, self.origin, groups)
        move_to_end([*arrays.values()], tests)
        first, last = slice(n_samples - len(tests)), slice(n_samples - len(tests), None)
        parts = [
            tuple(nested.take(part, rows) for part in train) for rows in (first, last)
        ]
        return parts[0], parts[1]

    def _read(self, path: str, keys: Keys) -> dict[str, np.ndarray]:
        if self.origin.root:
            check_place(Path(path), path, self.origin)
        return read_npz(path, keys, may_be_text=True)

    def _pair(self, arrays: dict[str, np.ndarray], x: str, y: str) -> tuple[Any, Any]:
        """Arrays, nested as their names are."""
        inputs, targets = self._names[x], self._names.get(y)
        pick = arrays.__getitem__
        return nested.map_arrays(pick, inputs), nested.map_arrays(pick, targets)

    @property
    def _used_names(self) -> list[str]:
        """Names of all arrays that are read, each once."""
        nests = map(nested.arrays, self._names.values())
        return [*dict.fromkeys(name for nest in nests for name in nest.values())]

    def _choose(self, existing: list[str]) -> dict[str, Any]:
        """Names of x, y and their tests among those of a file."""
        options, names = self.options, dict[str, Any]()
        for key, usual in USUAL.items():
            own = getattr(options, key)
            first = next((name for name in usual if name in existing), None)
            is_missing = own is None and first is None
            if key == "y" and self.origin.may_lack_targets:
                wanted = nested.arrays(own).values()
                if is_missing or not all(name in existing for name in wanted):
                    names[key] = None
                    continue
            if is_missing:
                there = [name[:40] for name in existing[:MAX_LISTED]]
                got = f"no array {' or '.join(usual)}, but {there}"
                none = ", or y: [] for none" if key == "y" else ""
                raise DataError(self.path, got, f"data_args: {{{key}: NAME}}{none}")
            names[key] = (first if own is None else own) or None
            tests = getattr(options, f"{key}_test")
            if tests is None and TESTS.get(str(names[key])) in existing:
                tests = TESTS[names[key]]
            if tests is not None:
                names[f"{key}_test"] = tests
        if ("x_test" in names) != ("y_test" in names) and names["y"]:
            got = "tests of x without tests of y, or the other way round"
            raise DataError(self.path, got, "data_args: {x_test: ..., y_test: ...}")
        if self.origin.by:
            names["by"] = _name_of_column(self.origin.by, existing)
            if "x_test" in names:
                names["by_test"] = f"{self.origin.by}_test"
        return names

    def _common_length(self, arrays: dict[str, np.ndarray]) -> int:
        single = next((name for name, one in arrays.items() if not one.ndim), None)
        if single is not None:
            got = f"an array {single!r} that is a single number"
            raise DataError(self.path, got, "samples along its first axis")
        lengths = {name: len(one) for name, one in arrays.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{n} {name!r}" for name, n in lengths.items())
            raise DataError(self.path, listed, "arrays of one length")
        return next(iter(lengths.values()))


def _name_of_column(name: str, existing: Collection[str]) -> str:
    return name if name in existing else f"{name}_train"


def _is_text(y: Any) -> bool:
    return isinstance(y, np.ndarray) and y.dtype.kind in "US"


def _to_texts(values: np.ndarray) -> list[str]:
    """Texts of an array (N,) of texts, bytes in UTF-8 or numbers."""
    items = values.reshape(-1).tolist()
    return [
        item.decode("utf-8", "backslashreplace")
        if isinstance(item, bytes)
        else str(item)
        for item in items
    ]
