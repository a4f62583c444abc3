"""Losses of fitted estimators: what each one's training makes small, as a mean."""

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.metrics import mean_tweedie_deviance

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


def score(estimator: Any, x: np.ndarray, y: np.ndarray) -> tuple[float, float | None]:
    """Mean loss of a fitted estimator, and its accuracy if it tells classes apart."""
    accuracy = None
    if has_classes(estimator):
        # not the largest probability: those of far samples may all be rounded to 0
        accuracy = float((estimator.predict(x) == y).mean())
    return loss(estimator, x, y), accuracy


def loss(estimator: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Mean loss of a fitted estimator.

    With probabilities it is their logarithm (log loss), else the estimator's `loss` of
    each class against the others; of values their squared error, or the estimator's
    `loss`; of clusters the squared distance to the nearest centre.
    """
    if not takes_targets(estimator):
        return -float(estimator.score(x)) / len(x)
    if not has_classes(estimator):
        return _value_loss(estimator, estimator.predict(x), y)
    places = np.searchsorted(estimator.classes_, y)
    if hasattr(estimator, "predict_proba"):
        of_class = estimator.predict_proba(x)[np.arange(len(x)), places]
        return float(-np.log(np.maximum(of_class, SMALLEST)).mean())
    outputs = estimator.decision_function(x)
    is_class = places == 1
    if outputs.ndim > 1:
        is_class = np.arange(outputs.shape[1]) == places[:, None]
    margins = np.where(is_class, outputs, -outputs)
    return float(_margin_loss(estimator, margins).mean())


def _margin_loss(estimator: Any, margins: np.ndarray) -> np.ndarray:
    kind = type(estimator).__name__
    default = {"Perceptron": "perceptron", "RidgeClassifier": "squared_error"}
    name = getattr(estimator, "loss", default.get(kind, "hinge"))
    if name in MARGINS:
        return MARGINS[name](margins)
    losses = _residuals(getattr(estimator, "epsilon", 0.1))
    return losses.get(name, losses["squared_error"])(1 - margins)


def _value_loss(estimator: Any, predicted: np.ndarray, y: np.ndarray) -> float:
    kind, name = type(estimator).__name__, getattr(estimator, "loss", "")
    power = {"PoissonRegressor": 1, "GammaRegressor": 2}.get(kind)
    if power or name == "poisson":
        predicted = np.maximum(predicted, np.finfo(np.float64).tiny)
        return float(mean_tweedie_deviance(y, predicted, power=power or 1))
    losses = _residuals(getattr(estimator, "epsilon", 0.1))
    of_residuals = losses.get(name, losses["squared_error"])
    return float(of_residuals(predicted.reshape(np.shape(y)) - y).mean())


def probabilities(estimator: Any, x: np.ndarray) -> np.ndarray | None:
    """Of each class (N, C); None where the estimator gives none."""
    has = has_classes(estimator) and hasattr(estimator, "predict_proba")
    return np.asarray(estimator.predict_proba(x), np.float64) if has else None
