"""Steps of a pipeline, fitted from sums and values that all parties' data have.

A step is fitted from what a survey of the parties counted, given to the step itself as
a few made-up rows of the same means or values. Steps that learn nothing from data are
fitted on the way. The steps after one that is not fitted yet wait for the next survey.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.frozen import FrozenEstimator

from fedray.errors import ConfigError, DataError
from fedray.survey import SINGLE, DataSurvey, Moments, ValueCounts

MAX_VALUES = 10_000  # categories of one column
Survey = Mapping[str, DataSurvey]  # by the step's path, its input in all parties

# steps that learn nothing from data but its number of columns
WITHOUT_DATA = (
    *("Normalizer", "PolynomialFeatures", "Binarizer", "FunctionTransformer"),
    *(
        "RBFSampler",
        "SkewedChi2Sampler",
        "AdditiveChi2Sampler",
        "PolynomialCountSketch",
    ),
    "GaussianRandomProjection",
)
FROM_MOMENTS = ("StandardScaler", "VarianceThreshold", "SimpleImputer")
FROM_VALUES = ("OneHotEncoder", "OrdinalEncoder")
GROUPS = ("Pipeline", "ColumnTransformer", "FeatureUnion")
NOT_USABLE = {
    "MinMaxScaler": "minimum and maximum are values of single samples, which do not "
    "leave a party: take StandardScaler",
    "MaxAbsScaler": "a maximum is the value of a single sample, which does not leave a "
    "party: take StandardScaler",
    "RobustScaler": "quantiles need all samples in one place: take StandardScaler",
    "QuantileTransformer": "quantiles need all samples in one place: take "
    "StandardScaler",
    "KBinsDiscretizer": "quantiles need all samples in one place: take StandardScaler",
    "KNNImputer": "it is made of samples, which do not leave a party: take "
    "SimpleImputer",
    "SparseRandomProjection": "its file could not be read safely: take "
    "GaussianRandomProjection",
    "TfidfVectorizer": "samples are arrays of numbers here: turn text into numbers in "
    "the data handler",
}


class StepFailed(Exception):
    """What is wrong with a pipeline's step, and what to do; its path is added."""


def leaves(step: Any, path: str = "") -> list[tuple[str, Any]]:
    """All steps that are no groups of others, by their path ("columns/ages/scale")."""
    if _passes_through(step):
        return []
    return [
        leaf
        for name, child in _children(step)
        for leaf in (
            leaves(child, f"{path}{name}/")
            if type(child).__name__ in GROUPS
            else [(f"{path}{name}", child)]
        )
        if not _passes_through(leaf[1])
    ]


def step_problems(step: Any) -> list[str]:
    """What of a pipeline's steps cannot be fitted from the parties' sums."""
    problems = _named_columns(step)
    for path, leaf in leaves(step):
        name = type(leaf).__name__
        if not type(leaf).__module__.startswith("sklearn."):
            advice = "only scikit-learn's own steps can be written to a .skops file"
        elif name in (*WITHOUT_DATA, *FROM_MOMENTS, *FROM_VALUES):
            advice = _wrong_setting(leaf)
        else:
            able = ", ".join(sorted((*FROM_MOMENTS, *FROM_VALUES, *WITHOUT_DATA)))
            other = (
                f"it is not fitted from federated statistics here; these are: {able}"
            )
            advice = NOT_USABLE.get(name, other)
        if advice:
            problems.append(f"step {path} ({name}): {advice}")
    return problems


def _named_columns(step: Any) -> list[str]:
    """Columns that are no places."""
    if type(step).__name__ not in GROUPS:
        return []
    problems = [p for _, child in _children(step) for p in _named_columns(child)]
    for name, _, columns in getattr(step, "transformers", ()):
        each = columns if isinstance(columns, list | tuple) else [columns]
        if callable(columns) or any(isinstance(one, str) for one in each):
            got = "a function" if callable(columns) else f"{columns!r:.60}"
            problems.append(
                f"step {name}: its columns are {got}, needed are their places (0, 1, "
                "...): samples are arrays, of a table the numbers before the categories"
            )
    return problems


def _wrong_setting(leaf: Any) -> str:
    """What of a step's own settings needs all samples in one place."""
    name = type(leaf).__name__
    if name == "SimpleImputer" and leaf.strategy == "median":
        return (
            "a median needs all samples in one place: strategy mean, most_frequent "
            "or constant"
        )
    if name == "SimpleImputer" and callable(leaf.strategy):
        return (
            "a function needs all samples in one place: strategy mean, "
            "most_frequent or constant"
        )
    if name == "SimpleImputer" and not isinstance(leaf.missing_values, float | int):
        return "missing_values must be NaN or a number, as samples are"
    if name == "OneHotEncoder" and (leaf.min_frequency or leaf.max_categories):
        return (
            "min_frequency and max_categories are not counted over parties: leave "
            "them out, and set handle_unknown if values may be new"
        )
    if name == "FunctionTransformer":
        functions = [leaf.func, leaf.inverse_func]
        if not all(f is None or isinstance(f, np.ufunc) for f in functions):
            return (
                "its function must be one of numpy's (numpy.log1p), or it could "
                "not be read from a .skops file"
            )
    return ""


def set_seeds(step: Any, seed: int) -> None:
    """Give every step that draws random numbers a seed."""
    for _, leaf in leaves(step):
        if "random_state" in leaf.get_params():
            leaf.set_params(random_state=seed & 0x7FFFFFFF)


def survey_steps(
    step: Any, x: np.ndarray, source: str
) -> tuple[dict[str, Moments], dict[str, ValueCounts], np.ndarray | None]:
    """What a party counts for the first steps that are not fitted yet.

    Returns
    -------
    Moments of their inputs, by path; values of columns, by "path:column"; and what the
    last step gives, if all are fitted.

    Raises
    ------
    DataError
        If a column holds too many different values, or the steps refuse the samples.
    """
    moments: dict[str, Moments] = {}
    values: dict[str, ValueCounts] = {}

    def visit(path: str, leaf: Any, inputs: np.ndarray) -> Any:
        if not _is_fitted(leaf):
            if type(leaf).__name__ == "SimpleImputer":
                inputs = np.where(inputs == leaf.missing_values, np.nan, inputs)
            moments[path] = Moments.of(inputs)
            if _needs_values(leaf):
                counts = _count_values(inputs, f"{source}, step {path}")
                values.update({f"{path}:{i}": one for i, one in enumerate(counts)})
            return None
        return transform(leaf, inputs, source)

    return moments, values, _walk(step, x, "", visit)


def transform(step: Any, x: np.ndarray, source: str) -> np.ndarray:
    """What a fitted step makes of samples.

    Raises
    ------
    DataError
        If it refuses them; it shows none of their values.
    """
    try:
        return _dense(step.transform(x))
    except ValueError as error:
        got, needed = "samples that a step of the pipeline refuses", "others"
        if "unknown categories" in str(error):
            got = "a category that no party had before round 1"
            needed = "handle_unknown: ignore in the encoder, or known categories alone"
        elif np.isnan(x).any():
            got = "missing values (NaN)"
            needed = "a SimpleImputer as first step, or samples without them"
        raise DataError(source, got, needed) from None


def fit_steps(step: Any, survey: Survey, n_columns: int) -> None:
    """Fit the steps, in place, that a survey of all parties was made for.

    n_columns : of the pipeline's input.

    Raises
    ------
    ConfigError
        If a step cannot be fitted from it.
    """

    def visit(path: str, leaf: Any, inputs: np.ndarray) -> Any:
        if not _is_fitted(leaf):
            if path not in survey:
                return None
            try:
                _fit(leaf, survey[path], inputs.shape[1])
            except (StepFailed, ValueError, TypeError) as error:
                lines = str(error).strip().splitlines() or [type(error).__name__]
                place = f"step {path} ({type(leaf).__name__})"
                raise ConfigError(
                    [f"architecture, {place}: {lines[0][:300]}"]
                ) from None
        return transform(leaf, _row_for(leaf, inputs), "made-up rows")

    _walk(step, np.zeros((1, n_columns)), "", visit)


def _row_for(leaf: Any, inputs: np.ndarray) -> np.ndarray:
    """A row of as many columns that the step takes: encoders know a few values only."""
    if type(leaf).__name__ in FROM_VALUES:
        return np.array([[values[0] for values in leaf.categories_]])
    return inputs


def _walk(
    step: Any, x: Any, path: str, visit: Callable[[str, Any, np.ndarray], Any]
) -> Any:
    """Send an array through the steps; None behind one that is not fitted yet."""
    if _passes_through(step):
        return x
    kind = type(step).__name__
    if kind == "Pipeline":
        for name, child in step.steps:
            x = _walk(child, x, f"{path}{name}/", visit)
            if x is None:
                return None
        return x
    if kind == "FeatureUnion":
        return _side_by_side(
            [
                _walk(child, x, f"{path}{n}/", visit)
                for n, child in step.transformer_list
            ]
        )
    if kind == "ColumnTransformer":
        return _walk_columns(step, x, path, visit)
    path = path.rstrip("/")
    if type(step).__name__ in WITHOUT_DATA and not _is_fitted(step):
        step.fit(np.zeros((2, x.shape[1])))
    return visit(path, step, x)


def _walk_columns(
    step: Any, x: Any, path: str, visit: Callable[[str, Any, np.ndarray], Any]
) -> Any:
    """Send the columns of an array each through its own steps."""
    parts = [
        _walk(child, x[:, columns], f"{path}{name}/", visit)
        for name, child, columns in _column_parts(step, x.shape[1])
    ]
    if any(part is None for part in parts):
        return None
    if not _is_fitted(step):
        _assemble_columns(step, x.shape[1])
    return _side_by_side(parts)


def _side_by_side(parts: list[Any]) -> Any:
    if any(part is None for part in parts):
        return None
    return np.concatenate(parts, axis=1)


def _dense(x: Any) -> np.ndarray:
    """An array of float64, also of a sparse matrix."""
    return np.asarray(x.toarray() if hasattr(x, "toarray") else x, np.float64)


def _children(step: Any) -> list[tuple[str, Any]]:
    """Names and steps within a group of steps."""
    kind = type(step).__name__
    if kind == "Pipeline":
        return list(step.steps)
    if kind == "FeatureUnion":
        return list(step.transformer_list)
    if kind == "ColumnTransformer":
        parts = [(name, child) for name, child, _ in step.transformers]
        return [*parts, ("remainder", step.remainder)]
    return [("", step)]


def _passes_through(step: Any) -> bool:
    return step is None or isinstance(step, str)


def _column_parts(step: Any, n_columns: int) -> list[tuple[str, Any, np.ndarray]]:
    """Name, step and columns of each part of a ColumnTransformer."""
    parts, rest = [], np.ones(n_columns, bool)
    for name, child, columns in step.transformers:
        try:
            places = np.arange(n_columns)[columns]
        except (IndexError, TypeError, ValueError):
            got = f"{type(columns).__name__} {str(columns)[:60]}"
            needed = f"places within 0..{n_columns - 1}, since samples are arrays"
            problem = (
                f"architecture, step {name}: columns are {got}, needed are {needed}"
            )
            raise ConfigError([problem]) from None
        places = np.atleast_1d(places)
        rest[places] = False
        if not (isinstance(child, str) and child == "drop"):
            parts.append((name, child, places))
    is_dropped = isinstance(step.remainder, str) and step.remainder == "drop"
    if not is_dropped and rest.any():
        parts.append(("remainder", step.remainder, np.flatnonzero(rest)))
    return parts


def _assemble_columns(step: Any, n_columns: int) -> None:
    """Make a ColumnTransformer whose steps are fitted know that they are."""
    own, remainder = step.transformers, step.remainder

    def frozen(child: Any) -> Any:
        return child if _passes_through(child) else FrozenEstimator(child)

    rows = np.zeros((1, n_columns))
    for _, child, columns in _column_parts(step, n_columns):
        if not _passes_through(child):
            rows[0, columns] = _first_row(child, len(columns))
    step.set_params(
        transformers=[(name, frozen(child), columns) for name, child, columns in own],
        remainder=frozen(remainder),
    )
    step.fit(rows)
    step.transformers_ = [
        (n, getattr(child, "estimator", child), c) for n, child, c in step.transformers_
    ]
    step.set_params(transformers=own, remainder=remainder)


def _first_row(step: Any, n_columns: int) -> np.ndarray:
    """A row that a fitted step takes, whatever values it knows."""
    kind = type(step).__name__
    if kind in FROM_VALUES:
        return np.array([values[0] for values in step.categories_])
    row = np.zeros(n_columns)
    if kind == "Pipeline":
        return _first_row(step.steps[0][1], n_columns)
    return row


def _is_fitted(step: Any) -> bool:
    """Whether a step has attributes that only fitting gives."""
    if type(step).__name__ == "FunctionTransformer":
        return hasattr(step, "n_features_in_")
    return any(n.endswith("_") and not n.startswith("__") for n in vars(step))


def _needs_values(leaf: Any) -> bool:
    is_mode = getattr(leaf, "strategy", "") == "most_frequent"
    return type(leaf).__name__ in FROM_VALUES or is_mode


def _count_values(x: np.ndarray, source: str) -> list[ValueCounts]:
    """How often each value occurs in each column (N, columns)."""
    columns = []
    for i, column in enumerate(x.T):
        distinct, counts = np.unique(column[~np.isnan(column)], return_counts=True)
        if len(distinct) > MAX_VALUES:
            got = f"more than {MAX_VALUES:,} different values in column {i}"
            raise DataError(source, got, "columns of categories")
        by_value = dict(zip(distinct.tolist(), counts.tolist(), strict=True))
        columns.append(ValueCounts(by_value, dict.fromkeys(by_value, 1)))
    return columns


@dataclass(frozen=True, eq=False)
class _Columns:
    """Totals of all parties by column."""

    count: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    missing: np.ndarray
    values: list[dict[float, int]]


def _columns_of(survey: DataSurvey) -> _Columns:
    total = survey.moments[SINGLE].total()
    variance = total.m2[0] / np.maximum(total.count[0], 1)
    names = sorted(survey.values, key=int)
    values = [survey.values[name].counts for name in names]
    return _Columns(
        total.count[0], total.mean[0], variance, total.missing[0],
        values,
    )  # fmt: skip


def _fit(leaf: Any, survey: DataSurvey, n_columns: int) -> None:
    columns = _columns_of(survey)
    if len(columns.count) != n_columns:
        got, needed = len(columns.count), n_columns
        raise StepFailed(f"parties have {got} columns there, needed are {needed}")
    FITS[type(leaf).__name__](leaf, columns)


def _fit_scaler(leaf: Any, columns: _Columns) -> None:
    leaf.fit(np.zeros((2, len(columns.mean))))
    count = columns.count
    n_seen = int(count[0]) if np.all(count == count[0]) else count.astype(np.int64)
    leaf.n_samples_seen_ = n_seen
    if not (leaf.with_mean or leaf.with_std):
        return
    leaf.mean_ = np.where(count > 0, columns.mean, np.nan)
    if leaf.with_std:
        leaf.var_ = np.where(count > 0, columns.variance, np.nan)
        eps = np.finfo(np.float64).eps  # as StandardScaler itself: these are constant
        limit = count * eps * leaf.var_ + (count * columns.mean * eps) ** 2
        deviation = np.sqrt(leaf.var_)
        leaf.scale_ = np.where(leaf.var_ <= limit, 1.0, deviation)


def _fit_threshold(leaf: Any, columns: _Columns) -> None:
    leaf.fit(np.outer([-2, 2], np.ones(len(columns.mean)) + abs(leaf.threshold)))
    leaf.variances_ = columns.variance
    if not (columns.variance > leaf.threshold).any():
        raise StepFailed(f"no column's variance is above threshold {leaf.threshold}")


def _fit_imputer(leaf: Any, columns: _Columns) -> None:
    """The imputer itself makes of two rows: the values, and which may be missing."""
    if leaf.strategy == "most_frequent":
        values = [
            min(v, key=lambda value: (-v[value], value)) if v else np.nan
            for v in columns.values
        ]
    else:
        values = np.where(columns.count > 0, columns.mean, np.nan).tolist()
    row = np.array(values, np.float64)
    row = np.where(np.isnan(row), leaf.missing_values, row)
    second = np.where(columns.missing > 0, leaf.missing_values, row)
    leaf.fit(np.stack([row, second]))


def _fit_encoder(leaf: Any, columns: _Columns) -> None:
    """The encoder itself makes of rows that hold every value of every column."""
    rows = []
    for i, counts in enumerate(columns.values):
        values = sorted(counts) + ([np.nan] if columns.missing[i] else [])
        if not values:
            raise StepFailed(f"column {i} has no value at any party: leave it out")
        rows.append(values)
    n_rows = max(map(len, rows))
    padded = [values + values[:1] * (n_rows - len(values)) for values in rows]
    leaf.fit(np.array(padded, np.float64).T)


FITS: dict[str, Callable[[Any, _Columns], None]] = {
    "StandardScaler": _fit_scaler,
    "VarianceThreshold": _fit_threshold,
    "SimpleImputer": _fit_imputer,
    "OneHotEncoder": _fit_encoder,
    "OrdinalEncoder": _fit_encoder,
}
