"""Completes a model by what the parties count of their data before round 1."""

import copy
import dataclasses
from typing import Any

import numpy as np

from fedray.config import FederationConfig
from fedray.errors import ConfigError, format_count
from fedray.models.base import Blueprint
from fedray.models.sklearn import steps
from fedray.models.sklearn.estimators import (
    MAX_COLUMNS,
    has_classes,
    kind_of,
    takes_targets,
)
from fedray.models.sklearn.facts import DataFacts
from fedray.models.sklearn.plan import SklearnPlan, make_blueprint, quiet
from fedray.models.sklearn.samples import (
    require_complete,
    to_arrays,
    to_rows,
    to_targets,
)
from fedray.models.sklearn.sums import LeastSquares
from fedray.survey import SINGLE, DataCodes, DataSurvey, Moments, ValueCounts
from fedray.weights import Weights

LAST = "fedray:last"  # the input of the estimator behind all steps
FIRST = SINGLE  # the samples themselves


def count(blueprint: Blueprint, train: Any, test: Any, source: str) -> DataSurvey:
    """What one party tells of its samples for the model's next step.

    Raises
    ------
    DataError
        If they are no rows and targets that the estimator takes.
    """
    plan: SklearnPlan = blueprint.plan
    train, test = to_arrays(train, source), to_arrays(test, source)
    x = to_rows(train.x, source)
    y = to_targets(train.y, plan.estimator, len(x), source)
    with quiet():
        moments, values, last = steps.survey_steps(plan.preparation, x, source)
    moments[FIRST] = Moments.of(np.zeros((1, x.shape[1])))  # how many columns it has
    if last is not None:
        require_complete(last, x, source)
        moments[LAST] = Moments.of(last)
    labels = None
    if has_classes(plan.estimator):
        tests = to_targets(test.y, plan.estimator, test.n_samples, source)
        labels = ValueCounts.of(y.tolist(), tests.tolist())
    elif takes_targets(plan.estimator):
        n_columns = 0 if y.ndim == 1 else y.shape[1]
        labels = ValueCounts({n_columns: 1}, {n_columns: 1})
    return DataSurvey({}, moments, {}, values, labels, n_samples=len(x))


def complete(
    config: FederationConfig,
    blueprint: Blueprint,
    survey: DataSurvey,
    codes: DataCodes | None,
) -> tuple[Blueprint, Weights]:
    """The model with what the parties' statistics tell; without a schema: ask again.

    Raises
    ------
    ConfigError
        If there is no such model.
    """
    plan = dataclasses.replace(
        blueprint.plan, model=copy.deepcopy(blueprint.plan.model)
    )
    n_columns = len(survey.moments[FIRST].names)
    with quiet():
        steps.fit_steps(plan.preparation, _by_step(survey), n_columns)
    if LAST not in survey.moments:
        return dataclasses.replace(blueprint, plan=plan), {}
    labels = codes.labels if codes else ()
    facts = _facts(plan.estimator, survey, labels)
    plan = dataclasses.replace(plan, facts=facts, labels=labels)
    _fit_class_weights(plan.estimator, facts, labels)
    try:
        return make_blueprint(plan, config.learning_rate)
    except (ValueError, TypeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError([f"architecture: {lines[0][:400]}"]) from None


def _by_step(survey: DataSurvey) -> dict[str, DataSurvey]:
    """The survey of each step's input, by its path."""
    return {
        path: DataSurvey(
            moments={SINGLE: moments},
            values={
                name.rpartition(":")[2]: counts
                for name, counts in survey.values.items()
                if name.rpartition(":")[0] == path
            },
        )
        for path, moments in survey.moments.items()
    }


def _facts(estimator: Any, survey: DataSurvey, labels: tuple[str, ...]) -> DataFacts:
    total = survey.moments[LAST].total()
    n_features, name = len(total.names), type(estimator).__name__
    if kind_of(estimator).trainer is LeastSquares and n_features > MAX_COLUMNS:
        raise ConfigError(
            [
                f"architecture: {name} sums products of all pairs of columns, "
                f"{n_features} are more than {MAX_COLUMNS}: take SGDRegressor"
            ]
        )
    classes = counts = n_targets = None
    targets = survey.labels.counts if survey.labels else {}
    if has_classes(estimator):
        classes = _classes(name, {*targets, *range(len(labels))})
        counts = np.array([targets.get(label, 0) for label in classes.tolist()])
    elif takes_targets(estimator):
        n_targets = _count_targets(estimator, [*targets])
    return DataFacts(
        n_features, survey.n_samples, classes, counts, n_targets,
        total.mean[0], total.deviation[0],
    )  # fmt: skip


def _classes(name: str, labels: set[Any]) -> np.ndarray:
    """All labels that any party has, in order."""
    if len(labels) < 2:
        got = format_count(len(labels), "class", "classes")
        problem = f"architecture: {name} tells classes apart, the parties have {got}"
        raise ConfigError([f"{problem} together: look at the targets"])
    return np.array(sorted(labels))


def _count_targets(estimator: Any, counts: list[Any]) -> int | None:
    """Columns of targets; None where each is one number."""
    if len(counts) > 1:
        problem = "parties have targets of different numbers of columns"
        raise ConfigError([f"architecture: {problem}"])
    n_targets = int(counts[0]) if counts else 0
    if n_targets and not kind_of(estimator).has_many_targets:
        name = type(estimator).__name__
        problem = f"{name} gives one number for a sample, targets have {n_targets}"
        advice = "take Ridge or MLPRegressor, or one target"
        raise ConfigError([f"architecture: {problem}: {advice}"])
    return n_targets or None


def _fit_class_weights(
    estimator: Any, facts: DataFacts, labels: tuple[str, ...]
) -> None:
    """Class weights by names become those by numbers; all must be classes."""
    weights = getattr(estimator, "class_weight", None)
    if not isinstance(weights, dict) or facts.classes is None:
        return
    places = {name: place for place, name in enumerate(labels)}
    by_number = {places.get(key, key): value for key, value in weights.items()}
    existing = facts.classes.tolist()
    unknown = [key for key in by_number if key not in existing]
    if unknown:
        names = list(labels) or existing
        problem = f"class_weight names {unknown[:5]}, the classes are {names[:20]}"
        raise ConfigError([f"architecture: {problem}"])
    estimator.set_params(class_weight=by_number)
