"""Samples as scikit-learn's estimators take them: rows of float64, labels or values."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedray import nested
from fedray.errors import DataError
from fedray.models.sklearn.estimators import has_classes, takes_targets
from fedray.nested import Arrays, Nested

NEEDED_ROWS = "one array (N, ...) of numbers, whose samples become rows"
NEEDED_LABELS = "whole numbers, one for each sample, or one-hot rows"


@dataclass(frozen=True, eq=False)
class Rows:
    """Samples behind a pipeline's steps, and their targets.

    x : (N, features) float64.
    y : (N,) int64 labels; (N,) or (N, targets) float64 values; zeros for none.
    form : dtypes and shapes of one sample and target as the handler gave them.
    example : the first sample as the handler gave it, (1, ...) or none.
    """

    x: np.ndarray
    y: np.ndarray
    form: tuple[str, str]
    example: Nested

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: np.ndarray | slice) -> "Rows":
        """The samples at these places; of a slice, or of all in order, views."""
        if not isinstance(rows, slice):
            is_stream = len(rows) == len(self) and rows.strides == (0,)  # no places
            if is_stream or np.array_equal(rows, np.arange(len(self))):
                rows = slice(None)
        return Rows(self.x[rows], self.y[rows], self.form, self.example)

    def describe(self) -> tuple[str, str]:
        """Dtypes and shapes of one sample and of its target."""
        return self.form

    def first(self) -> Nested:
        """The first sample, (1, ...)."""
        return self.example


def to_arrays(part: Any, source: str) -> Arrays:
    """Samples in memory; a dataset is read whole, since estimators take it at once.

    part : arrays, or a part of a dataset: its items are pairs of inputs and target.

    Raises
    ------
    DataError
        If the items are no pairs.
    """
    if isinstance(part, Arrays):
        return part
    dataset, rows = part.dataset, getattr(part, "rows", None)
    is_stream = getattr(part, "is_stream", False)
    if not is_stream and hasattr(dataset, "__getitem__"):
        places = range(part.n_samples) if rows is None else rows.tolist()
        items = [dataset[place] for place in places]
    else:
        items = list(itertools.islice(dataset, part.n_samples))
    for item in items[:1]:
        if not isinstance(item, tuple | list) or len(item) != 2:
            got = f"a dataset whose items are of type {type(item).__name__}"
            raise DataError(source, got, "pairs of inputs and target")
    x, y = (np.array([np.asarray(item[i]) for item in items]) for i in (0, 1))
    return Arrays(x, y)


def to_rows(x: Nested, source: str) -> np.ndarray:
    """Samples (N, ...) as rows (N, features) of float64; NaN stays.

    Raises
    ------
    DataError
        If they are no single array.
    """
    if not nested.is_one(x):
        got = f"inputs {nested.describe(x)}"
        needed = f"{NEEDED_ROWS}; several inputs take a model of another model_type"
        raise DataError(source, got, needed)
    return _flat(np.asarray(x)).astype(np.float64, copy=False)


def _flat(array: np.ndarray) -> np.ndarray:
    """(N, numbers of a sample), also of no samples."""
    return array.reshape(len(array), math.prod(array.shape[1:]))


def to_targets(y: Nested, estimator: Any, n_samples: int, source: str) -> np.ndarray:
    """Targets as an estimator takes them; zeros for one that takes none.

    Raises
    ------
    DataError
        If they are of another kind.
    """
    if not takes_targets(estimator):
        return np.zeros(n_samples)
    if not nested.is_one(y):
        got = "no targets" if y is None else f"targets {nested.describe(y)}"
        raise DataError(source, got, "one array of targets, one for each sample")
    targets = np.asarray(y)
    if has_classes(estimator):
        return _to_labels(targets, estimator, source)
    values = _flat(targets.astype(np.float64, copy=False))
    if np.isnan(values).any():
        raise DataError(source, "targets that are missing (NaN)", "a number for each")
    return values[:, 0] if values.shape[1] == 1 else values


def _to_labels(y: np.ndarray, estimator: Any, source: str) -> np.ndarray:
    flat = _flat(y)
    name = type(estimator).__name__
    if len(y) and flat.shape[1] > 1:
        if not (np.isin(flat, (0, 1)).all() and (flat.sum(1) == 1).all()):
            got = f"targets of shape {list(y.shape[1:])} that are no one-hot rows"
            raise DataError(source, got, f"{NEEDED_LABELS}, for {name}")
        return flat.argmax(1).astype(np.int64)
    labels = flat.reshape(-1)
    if labels.dtype.kind == "f" and not np.array_equal(labels, np.rint(labels)):
        got = f"targets that are no whole numbers, for {name}"
        needed = f"{NEEDED_LABELS}; or a regressor, such as SGDRegressor"
        raise DataError(source, got, needed)
    return labels.astype(np.int64)


def require_complete(x: np.ndarray, raw: np.ndarray, source: str) -> None:
    """Refuse rows with missing values that no step has filled in.

    raw : the same samples before the steps.
    """
    if not np.isnan(x).any():
        return
    missing = np.flatnonzero(np.isnan(raw).any(axis=0))
    where = f" in column {', '.join(map(str, missing[:5]))}" if len(missing) else ""
    needed = "a SimpleImputer as first step of a pipeline, or samples without them "
    needed += "(of a table, data_args: {missing: mean})"
    raise DataError(source, f"missing values (NaN){where}", needed)
