"""Losses of fitted estimators: what each one's training makes small, as a mean."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.special import xlogy

from fedray.models.sklearn.estimators import has_classes, takes_targets

SMALLEST = np.finfo(np.float64).eps  # a probability, in logarithms


def _residuals(epsilon: float) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Losses of residuals, by the names that estimators give them."""
    return {
        "squared_error": lambda r: r**2,
        "huber": lambda r: np.where(
            abs(r) <= epsilon, 0.5 * r**2, epsilon * abs(r) - 0.5 * epsilon**2
        ),
        "epsilon_insensitive": lambda r: np.maximum(0, abs(r) - epsilon),
        "squared_epsilon_insensitive": lambda r: np.maximum(0, abs(r) - epsilon) ** 2,
    }


MARGINS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "hinge": lambda m: np.maximum(0, 1 - m),
    "squared_hinge": lambda m: np.maximum(0, 1 - m) ** 2,
    "perceptron": lambda m: np.maximum(0, -m),
}


class SampleScores(NamedTuple):
    """Scores of samples: their mean loss, and what is known of each.

    losses : (N,) of which `loss` is the mean.
    is_right : (N,) bool; None where the estimator tells no classes apart.
    """

    loss: float
    losses: np.ndarray
    is_right: np.ndarray | None


def score(estimator: Any, x: np.ndarray, y: np.ndarray) -> SampleScores:
    """Loss of a fitted estimator, and its right answers if it tells classes apart."""
    is_right = None
    if has_classes(estimator):
        # not the largest probability: those of far samples may all be rounded to 0
        is_right = estimator.predict(x) == y
    losses = _losses(estimator, x, y)
    by_sample = losses.reshape(len(x), -1).mean(1)
    return SampleScores(_mean(estimator, x, losses), by_sample, is_right)


def loss(estimator: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Mean loss of a fitted estimator.

    With probabilities it is their logarithm (log loss), else the estimator's `loss` of
    each class against the others; of values their squared error, or the estimator's
    `loss`; of clusters the squared distance to the nearest centre.
    """
    return _mean(estimator, x, _losses(estimator, x, y))


def _losses(estimator: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Losses (N,) or (N, outputs)."""
    if not takes_targets(estimator):
        return np.asarray(estimator.transform(x).min(axis=1) ** 2)
    if not has_classes(estimator):
        return _value_losses(estimator, estimator.predict(x), y)
    places = np.searchsorted(estimator.classes_, y)
    if hasattr(estimator, "predict_proba"):
        of_class = estimator.predict_proba(x)[np.arange(len(x)), places]
        return np.asarray(-np.log(np.maximum(of_class, SMALLEST)))
    outputs = estimator.decision_function(x)
    is_class = places == 1
    if outputs.ndim > 1:
        is_class = np.arange(outputs.shape[1]) == places[:, None]
    margins = np.where(is_class, outputs, -outputs)
    return _margin_loss(estimator, margins)


def _mean(estimator: Any, x: np.ndarray, losses: np.ndarray) -> float:
    if not takes_targets(estimator):
        return -float(estimator.score(x)) / len(x)
    return float(losses.mean())


def _margin_loss(estimator: Any, margins: np.ndarray) -> np.ndarray:
    kind = type(estimator).__name__
    default = {"Perceptron": "perceptron", "RidgeClassifier": "squared_error"}
    name = getattr(estimator, "loss", default.get(kind, "hinge"))
    if name in MARGINS:
        return MARGINS[name](margins)
    losses = _residuals(getattr(estimator, "epsilon", 0.1))
    return losses.get(name, losses["squared_error"])(1 - margins)


def _value_losses(estimator: Any, predicted: np.ndarray, y: np.ndarray) -> np.ndarray:
    kind, name = type(estimator).__name__, getattr(estimator, "loss", "")
    power = {"PoissonRegressor": 1, "GammaRegressor": 2}.get(kind)
    if power or name == "poisson":
        predicted = np.maximum(predicted, np.finfo(np.float64).tiny)
        return _deviances(y, predicted, power or 1)
    losses = _residuals(getattr(estimator, "epsilon", 0.1))
    of_residuals = losses.get(name, losses["squared_error"])
    return of_residuals(predicted.reshape(np.shape(y)) - y)


def _deviances(y: np.ndarray, predicted: np.ndarray, power: int) -> np.ndarray:
    """Tweedie deviances of counts (power 1: Poisson) or of values (2: Gamma)."""
    if power == 1:
        return 2 * (xlogy(y, y / predicted) - y + predicted)
    return 2 * (np.log(predicted / y) + y / predicted - 1)


def probabilities(estimator: Any, x: np.ndarray) -> np.ndarray | None:
    """Of each class (N, C); None where the estimator gives none."""
    has = has_classes(estimator) and hasattr(estimator, "predict_proba")
    return np.asarray(estimator.predict_proba(x), np.float64) if has else None


def answers(
    estimator: Any, x: np.ndarray, y: np.ndarray, n_columns: int = 0
) -> tuple[np.ndarray, Any]:
    """Predictions for rows, and as answers that metrics are counted from.

    n_columns : classes by their numbers, from 0; 0: by their places among all.
    """
    from fedray.models.scoring.arrays import class_answers, value_answers

    predicted = np.asarray(estimator.predict(x))
    if not has_classes(estimator):
        return predicted, value_answers(predicted, y)
    shares = probabilities(estimator, x)
    classes = estimator.classes_
    output, target = (np.searchsorted(classes, one) for one in (predicted, y))
    n_classes = n_columns or len(classes)
    if n_columns:
        output, target = classes[output], classes[target]
    if n_columns and shares is not None:
        by_number = np.zeros((len(x), n_columns))
        by_number[:, classes] = shares
        shares = by_number
    return predicted, class_answers(output, target, shares, n_classes)
