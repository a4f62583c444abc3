"""Plans of scikit-learn models: an estimator, its steps, facts of the parties' data."""

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from fedray.models.base import Blueprint
from fedray.models.sklearn.estimators import Trainer, make_trainer
from fedray.models.sklearn.facts import DataFacts
from fedray.models.sklearn.sums import LeastSquares
from fedray.weights import Weights, schema


@dataclass(frozen=True, eq=False)
class SklearnPlan:
    """What a model is made of at every party.

    model : the estimator or pipeline; steps that are fitted stay so.
    facts : of the parties' data; None: not known yet.
    seed : of the initial weights.
    labels : names of the classes, if the data has any: targets are their places.
    fitted : whether `model` is fitted: it came from a file.
    """

    model: Any
    facts: DataFacts | None
    seed: int
    labels: tuple[str, ...] = ()
    fitted: bool = False

    @property
    def estimator(self) -> Any:
        """The estimator itself, behind the pipeline's steps."""
        return last_of(self.model)

    @property
    def preparation(self) -> Any:
        """All steps before the estimator, as one; "passthrough" without any."""
        is_pipeline = isinstance(self.model, Pipeline)
        before = self.model.steps[:-1] if is_pipeline else []
        return Pipeline(before) if before else "passthrough"

    def trainer(self) -> Trainer:
        """A trainable copy of the estimator, with the weights that it starts from."""
        if self.facts is None:
            raise TypeError("the parties' statistics are not known yet")
        with quiet():
            trainer = make_trainer(clone(self.estimator), self.facts, self.seed)
            if self.fitted:
                trainer.restore(self.estimator)
        return trainer

    def assemble(self, estimator: Any) -> Any:
        """The whole model with another estimator at its end; steps are shared."""
        if not isinstance(self.model, Pipeline):
            return estimator
        name = self.model.steps[-1][0]
        return Pipeline([*self.model.steps[:-1], (name, estimator)])


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what scikit-learn says of made-up rows and of a few iterations."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def last_of(model: Any) -> Any:
    """The estimator at the end of a pipeline, or the model itself."""
    return model.steps[-1][1] if isinstance(model, Pipeline) else model


def make_blueprint(
    plan: SklearnPlan, learning_rate: float | None
) -> tuple[Blueprint, Weights]:
    """The blueprint of a plan whose facts are known, and the weights it starts from."""
    trainer = plan.trainer()
    weights = {name: np.array(a) for name, a in trainer.weights().items()}
    parameters, settings = (
        tuple(trainer.parameters()),
        {"learning_rate": learning_rate or 0.0},
    )
    return Blueprint("sklearn", plan, schema(weights), parameters, settings), weights


def fitted_model(plan: SklearnPlan, weights: Weights) -> Any:
    """The whole model as plain scikit-learn has it, fitted with these weights."""
    if plan.facts is None:
        raise TypeError("the parties' statistics are not known yet")
    facts, own = plan.facts, clone(plan.estimator)
    parameters = own.get_params()
    if plan.labels and facts.classes is not None:
        names = np.array(plan.labels)[facts.classes]
        facts = dataclasses.replace(facts, classes=names)
        if isinstance(parameters.get("class_weight"), dict):
            own_weights = parameters["class_weight"]
            by_name = {plan.labels[k]: value for k, value in own_weights.items()}
            parameters["class_weight"] = by_name
            own.set_params(class_weight=by_name)
    with quiet():
        trainer = make_trainer(own, facts, plan.seed)
        if plan.fitted:
            trainer.restore(plan.estimator)
        trainer.load(weights)
        if isinstance(trainer, LeastSquares):
            trainer.solve()
    trainer.estimator.set_params(**parameters)
    return plan.assemble(trainer.estimator)
