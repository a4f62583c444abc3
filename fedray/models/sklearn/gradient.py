"""Estimators whose weights are averaged: trained by `partial_fit`, or by a solver.

What an estimator remembers beside its weights: the count of steps `t_`, which decides
the learning rate of some schedules, travels with them. An optimizer's moments are new
in every round, as they are for PyTorch.
"""

from typing import Any

import numpy as np

from fedray.models.sklearn.facts import DataFacts, Passes
from fedray.weights import Weights

AVERAGES = {  # of average=True, by the name they travel under
    "standard_coef": "_standard_coef",
    "standard_intercept": "_standard_intercept",
    "average_coef": "_average_coef",
    "average_intercept": "_average_intercept",
}


class StochasticGradient:
    """SGDClassifier and its kind: one sample at a time, `partial_fit` for each pass."""

    def __init__(self, estimator: Any, facts: DataFacts):
        self.estimator, self.facts = estimator, facts
        x, y = facts.made_up()
        first = {} if facts.classes is None else {"classes": facts.classes}
        estimator.partial_fit(x, y, **first)
        self.has_averages = bool(getattr(estimator, "average", False))
        self.load({name: np.zeros_like(a) for name, a in self.weights().items()})

    def parameters(self) -> list[str]:
        """Names that training moves."""
        return [name for name in self.weights() if name != "t_"]

    def weights(self) -> Weights:
        """Views of the estimator's arrays, and its count of steps."""
        model = self.estimator
        if self.has_averages:
            arrays = {n: getattr(model, at) for n, at in AVERAGES.items()}
        else:
            arrays = {"coef_": model.coef_, "intercept_": model.intercept_}
        steps = np.array(round(model.t_) - 1, np.int64)
        return {name: np.asarray(a) for name, a in arrays.items()} | {"t_": steps}

    def load(self, weights: Weights) -> None:
        """Overwrite the estimator's arrays and its count of steps."""
        model = self.estimator
        model.t_ = float(weights["t_"]) + 1.0
        if not self.has_averages:
            model.coef_ = weights["coef_"].copy()
            model.intercept_ = weights["intercept_"].copy()
            return
        for name, attribute in AVERAGES.items():
            setattr(model, attribute, weights[name].copy())
        kind = "_average" if model.average <= model.t_ - 1 else "_standard"
        model.coef_ = getattr(model, f"{kind}_coef")
        model.intercept_ = getattr(model, f"{kind}_intercept")

    def restore(self, fitted: Any) -> None:
        """Take the arrays of a fitted estimator."""
        self.load(_read_fitted(self, fitted))

    def train(self, x: np.ndarray, y: np.ndarray, passes: Passes) -> None:
        """Train from the loaded weights."""
        for i, seed in enumerate(passes.seeds()):
            self.estimator.set_params(random_state=seed)
            self.estimator.partial_fit(x, y)
            passes.done(i + 1)


class Layers:
    """MLPClassifier and MLPRegressor: batches, a new optimizer in every round."""

    def __init__(self, estimator: Any, facts: DataFacts):
        self.estimator, self.facts = estimator, facts
        x, y = facts.made_up()
        first = {} if facts.classes is None else {"classes": facts.classes}
        estimator.partial_fit(x, y, **first)
        self._draw_initial()

    def _draw_initial(self) -> None:
        """Draw initial weights from `random_state`, as the estimator itself does.

        Source: Glorot and Bengio 2010, Understanding the difficulty of training deep
        feedforward neural networks, equation 16; 2 for 6 where layers are logistic.
        """
        model = self.estimator
        random = np.random.RandomState(model.random_state)
        factor = 2.0 if model.activation == "logistic" else 6.0
        weights = {"t_": np.array(0, np.int64)}
        for i, coef in enumerate(model.coefs_):
            bound = np.sqrt(factor / sum(coef.shape))
            weights[f"coefs_.{i}"] = random.uniform(-bound, bound, coef.shape)
            weights[f"intercepts_.{i}"] = random.uniform(-bound, bound, coef.shape[1])
        self.load(weights)

    def parameters(self) -> list[str]:
        """Names that training moves."""
        return [name for name in self.weights() if name != "t_"]

    def weights(self) -> Weights:
        """Views of the layers' arrays, and the count of samples that were seen."""
        model, arrays = self.estimator, dict[str, np.ndarray]()
        pairs = zip(model.coefs_, model.intercepts_, strict=True)
        for i, (coef, intercept) in enumerate(pairs):
            arrays |= {f"coefs_.{i}": coef, f"intercepts_.{i}": intercept}
        return arrays | {"t_": np.array(model.t_, np.int64)}

    def load(self, weights: Weights) -> None:
        """Overwrite the layers; what an optimizer remembers is forgotten."""
        model = self.estimator
        layers = range(len(model.coefs_))
        model.coefs_ = [weights[f"coefs_.{i}"].copy() for i in layers]
        model.intercepts_ = [weights[f"intercepts_.{i}"].copy() for i in layers]
        model.t_, model.n_iter_ = int(weights["t_"]), 0
        model.loss_curve_, model.best_loss_ = [], np.inf
        model._no_improvement_count = 0
        vars(model).pop("_optimizer", None)

    def restore(self, fitted: Any) -> None:
        """Take the layers of a fitted estimator."""
        self.load(_read_fitted(self, fitted))

    def train(self, x: np.ndarray, y: np.ndarray, passes: Passes) -> None:
        """Train from the loaded weights."""
        model, batch_size = self.estimator, min(passes.batch_size, len(x))
        for i, seed in enumerate(passes.seeds()):
            model.set_params(random_state=seed, batch_size=batch_size)
            model.partial_fit(x, y)
            passes.done(i + 1)


class Solver:
    """LogisticRegression and its kind: `epochs` iterations of a solver a round.

    A solver remembers nothing from one round to the next. Classes that a party does
    not have are rows of no weight to it.
    """

    def __init__(self, estimator: Any, facts: DataFacts):
        self.estimator, self.facts = estimator, facts
        self.strength = getattr(estimator, "C", None)
        estimator.set_params(warm_start=True, max_iter=1)
        x, y = facts.made_up()
        estimator.fit(x, y + 1 if facts.classes is None else y)  # 0 is no gamma value
        self.load({name: np.zeros_like(a) for name, a in self.weights().items()})

    def parameters(self) -> list[str]:
        """Names that training moves."""
        return list(self.weights())

    def weights(self) -> Weights:
        """Views of the estimator's arrays."""
        arrays = {
            "coef_": self.estimator.coef_,
            "intercept_": self.estimator.intercept_,
        }
        return {name: np.asarray(array, np.float64) for name, array in arrays.items()}

    def load(self, weights: Weights) -> None:
        """Overwrite the estimator's arrays."""
        self.estimator.coef_ = weights["coef_"].copy()
        intercept = weights["intercept_"].copy()
        is_number = intercept.ndim == 0
        self.estimator.intercept_ = float(intercept) if is_number else intercept

    def restore(self, fitted: Any) -> None:
        """Take the arrays of a fitted estimator."""
        names = ("coef_", "intercept_")
        self.load({n: np.array(getattr(fitted, n), np.float64) for n in names})

    def train(self, x: np.ndarray, y: np.ndarray, passes: Passes) -> None:
        """Train from the loaded weights.

        C weighs the sum of all samples' losses: a party's is scaled to its share of
        them, so that the mean of the parties' objectives is that of all samples.
        """
        model, facts = self.estimator, self.facts
        model.set_params(max_iter=passes.epochs)
        if hasattr(model, "random_state"):
            model.set_params(random_state=passes.seeds()[0])
        if facts.classes is None:
            model.fit(x, y)
            return
        if self.strength is not None:
            share = max(facts.n_samples, len(x)) / len(x)
            model.set_params(C=self.strength * share)
        absent = np.setdiff1d(facts.classes, y)
        weight = np.concatenate([np.ones(len(x)), np.zeros(len(absent))])
        if len(absent):
            x = np.concatenate([x, np.zeros((len(absent), x.shape[1]))])
            y = np.concatenate([y, absent])
        try:
            model.fit(x, y, sample_weight=weight)
        finally:
            if self.strength is not None:
                model.set_params(C=self.strength)


def _read_fitted(trainer: StochasticGradient | Layers, fitted: Any) -> Weights:
    """Arrays of a fitted estimator, in the dtypes of the trainer's own.

    One that was fitted on float32 trains on float64 here.
    """
    own, trainer.estimator = trainer.estimator, fitted
    weights = {name: np.array(array) for name, array in trainer.weights().items()}
    trainer.estimator = own
    kinds = {name: array.dtype for name, array in trainer.weights().items()}
    return {name: array.astype(kinds[name]) for name, array in weights.items()}
