"""Surveys of a party's data before round 1, and the interface of handlers for them."""

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol, TypeGuard

import numpy as np

from fedray.data.base import Handler, LazySamples, Samples, load_samples
from fedray.data.text import Documents
from fedray.errors import DataError
from fedray.nested import arrays, describe, is_mapped
from fedray.survey import DataCodes, DataSurvey, Moments, SurveyRequest, ValueCounts

MAX_VALUES = 10_000  # different values of one column, or of the targets
MAX_VALUE = 200  # characters of one
MAX_COLOURS = 4
MAX_SQUARES = 1e300  # of deviations, summed: float64 must hold the sum of many parties


class SurveyedHandler(Protocol):
    """A data handler that needs codes which all parties share.

    Before round 1 every party's `get_survey` is asked; the surveys of all parties are
    merged. Then, in each process that reads data, `use_codes` is called before
    `get_data`. A custom handler may have the two methods as well.
    """

    def get_survey(self, rows: np.ndarray | None = None) -> DataSurvey:
        """Columns, categories and label names of this party; moments of its numbers.

        rows : of the training samples that count, where a partition's party has only
            some; then test samples are left out. None: all, and values that only the
            test samples have exist, uncounted (`ValueCounts.of`).

        `DataSurvey.moments` may stay empty where `get_data` gives arrays whose columns
        do not depend on codes: they are then counted from those. Extremes may be in
        it: they leave the party only where they are asked for.
        """

    def use_codes(self, codes: DataCodes) -> None:
        """Read data by these codes: `codes.encode_labels`, `codes.encode`.

        Inputs are not standardised here: `fedray.data.load` does that for every
        handler (`codes.apply`), with the columns that moments name coming first in x,
        in that order. A missing number may be left as NaN where `codes.normalize`: it
        becomes the mean. Without it, `codes.mean(column)` is what stands for it.

        Raises
        ------
        DataError
            If this party's columns are not those of `codes.columns`.
        """

    def get_data(self) -> Any:
        """As of every `Handler`."""


def is_surveyed(handler: Any) -> TypeGuard[SurveyedHandler]:
    """Whether a handler, or its class, needs codes."""
    return callable(getattr(handler, "get_survey", None))


def load_by_codes(
    handler: Handler, source: str, codes: DataCodes | None
) -> Samples | LazySamples | Documents:
    """Load a handler's samples by codes, standardised if those say so.

    codes : None: of these data alone, where the handler needs any.
    """
    use_codes(handler, source, codes)
    samples = load_samples(handler, source, codes is not None and codes.allows_missing)
    if codes is None or not codes.normalize or isinstance(samples, Documents):
        return samples
    if isinstance(samples, LazySamples) or is_mapped(samples.x_train):
        got = "samples that are read a batch at a time"
        needed = "arrays in memory for normalize, or a dataset that scales them itself"
        raise DataError(source, got, needed)
    if not any(array.dtype.kind == "f" for array in arrays(samples.x_train).values()):
        got = f"inputs {describe(samples.x_train)}, none of them floats"
        needed = "floats to normalize, such as x.astype('float32')"
        raise DataError(source, got, needed)
    x_train, x_test = (
        codes.apply(x, source) for x in (samples.x_train, samples.x_test)
    )
    for where, array in [*arrays(x_train).items(), *arrays(x_test).items()]:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            got = f"x{where} that overflows, or lacks values that were not surveyed"
            raise DataError(source, got, "finite numbers in every column")
    return dataclasses.replace(samples, x_train=x_train, x_test=x_test)


def use_codes(handler: Handler, source: str, codes: DataCodes | None) -> None:
    """Give a handler its codes, where it needs any; see `load_by_codes`."""
    if is_surveyed(handler):
        handler.use_codes(codes or own_survey(handler, source).codes())


def own_survey(
    handler: SurveyedHandler, source: str, rows: np.ndarray | None = None
) -> DataSurvey:
    """What a handler tells of its data, checked.

    Raises
    ------
    DataError
        If it is no survey, or has more values than a survey may tell.
    """
    survey = handler.get_survey() if rows is None else handler.get_survey(rows)
    if not isinstance(survey, DataSurvey):
        got = f"get_survey() that gives a {type(survey).__name__}"
        raise DataError(source, got, "a fedray.data.DataSurvey")
    for column, counts in survey.categories.items():
        _check_values(counts, f"column {column!r}", source)
    if survey.labels is not None:
        _check_values(survey.labels, "the targets", source)
    return survey


def complete_survey(
    own: DataSurvey, samples: Samples | None, request: SurveyRequest, source: str
) -> DataSurvey:
    """A party's survey, with what else is asked for counted from its training samples.

    own : what its handler tells, which is not counted again.
    samples : None where that is all (`needs_samples`).
    """
    moments, values, labels = own.moments, own.values, own.labels
    n_samples = own.n_samples if samples is None else len(samples.y_train)
    if samples is not None and request.moments and not moments:
        moments = {
            key: Moments.of(array, None, _axis(array, request), request.extremes)
            for key, array in arrays(samples.x_train).items()
            if array.dtype.kind == "f" or not own.n_samples  # tokens have no mean
        }
    if not request.extremes:
        moments = {
            key: dataclasses.replace(part, minimum=None, maximum=None)
            for key, part in moments.items()
        }
    for key, part in moments.items():
        _check_sums(part, key, source)
    if samples is not None and request.values:
        values = _count_columns(samples.x_train, source)
    if samples is not None and request.classes and labels is None:
        labels = _count_classes(samples.y_train, samples.y_test, source)
    return dataclasses.replace(
        own, moments=moments, values=values, labels=labels, n_samples=n_samples
    )


def needs_samples(own: DataSurvey, request: SurveyRequest) -> bool:
    """Whether a request asks for more than the handler has told."""
    return (
        (request.moments and not own.moments)
        or request.values
        or (request.classes and own.labels is None)
    )


def _axis(array: np.ndarray, request: SurveyRequest) -> int:
    """Where columns or channels lie: last, but 1 in images with channels first.

    Up to four channels are known by their number, more by the model type's habit.
    """
    if array.ndim < 4:
        return -1
    first, last = array.shape[1] <= MAX_COLOURS, array.shape[-1] <= MAX_COLOURS
    return 1 if (first if first != last else request.channels_first) else -1


def _check_sums(moments: Moments, key: str, source: str) -> None:
    highest = zip(moments.names, moments.m2.max(axis=0), strict=True)
    names = [name for name, squares in highest if not squares < MAX_SQUARES]
    if names:
        where = f" of x{key}" if key else ""
        got = f"numbers whose squares overflow, in column {', '.join(names[:5])}{where}"
        raise DataError(source, got, "numbers below 1e150; leave out others")


def _count_columns(x: Any, source: str) -> dict[str, ValueCounts]:
    if not isinstance(x, np.ndarray) or x.ndim != 2:
        raise DataError(source, "inputs that are no table", "one array (N, D)")
    counts = {}
    for place, column in enumerate(x.T):
        name = str(place)
        values, n_each = np.unique(column[~np.isnan(column)], return_counts=True)
        pairs = zip(values.tolist(), n_each.tolist(), strict=True)
        counts[name] = ValueCounts(dict(pairs), dict.fromkeys(values.tolist(), 1))
        _check_values(counts[name], f"column {name}", source)
    return counts


def _count_classes(y: Any, tests: Any, source: str) -> ValueCounts:
    """Counts of whole numbers in targets (N,) or (N, 1)."""
    parts = [_to_classes(part, source) for part in (y, tests)]
    counts = ValueCounts.of(*parts)
    _check_values(counts, "the targets", source)
    return counts


def _to_classes(y: Any, source: str) -> Iterable[int]:
    needed = "class numbers 0, 1, ..., one for each sample"
    if not isinstance(y, np.ndarray) or (y.ndim > 1 and y.shape[1:] != (1,)):
        raise DataError(source, "targets that are no labels", needed)
    flat = y.reshape(-1)
    if flat.dtype.kind == "f" and not np.array_equal(flat, np.rint(flat)):
        raise DataError(source, "targets that are no whole numbers", needed)
    return list(map(int, flat.tolist()))


def _check_values(counts: ValueCounts, what: str, source: str) -> None:
    if len(counts.counts) > MAX_VALUES:
        got = f"{what} with more than {MAX_VALUES:,} different values"
        needed = "fewer: leave such a column out, since a survey tells them all"
        raise DataError(source, got, needed)
    if any(len(v) > MAX_VALUE for v in counts.counts if isinstance(v, str)):
        got = f"{what} with a value of more than {MAX_VALUE} characters"
        raise DataError(source, got, "labels and categories, not texts")
