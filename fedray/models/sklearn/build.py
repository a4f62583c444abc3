"""Builds scikit-learn models: from a name, a function or a file, and the parties' data.

An estimator has no shapes before it has seen data. `read` gives what is known without
any; the parties' statistics complete it (`complete`), in one step or in several where
a pipeline's steps build on each other.
"""

import copy
import dataclasses
import importlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.pipeline import Pipeline

from fedray import user_code
from fedray.config import FederationConfig, describe_unknown
from fedray.config.metrics import CLASSES, VALUES
from fedray.errors import ConfigError, ModelFileError
from fedray.models.base import (
    Blueprint,
    call_architecture,
    collect_problems,
    write_file,
)
from fedray.models.sklearn import files, steps
from fedray.models.sklearn.estimators import (
    ESTIMATORS,
    FUSED_AS_SUMS,
    advice_for,
    estimator_problems,
    has_classes,
    key_problems,
    kind_of,
    make_trainer,
    set_learning_rate,
    takes_targets,
)
from fedray.models.sklearn.facts import DataFacts
from fedray.models.sklearn.plan import (
    SklearnPlan,
    fitted_model,
    last_of,
    make_blueprint,
    quiet,
)
from fedray.models.sklearn.sums import SUMS, LeastSquares
from fedray.weights import Weights

SERVER_STEPS = ("fedavgm", "fedadagrad", "fedadam", "fedyogi")


def problems(config: FederationConfig) -> list[str]:
    """Everything wrong with model_file, architecture and the keys for it."""
    mistakes = []
    if config.model_file and not Path(config.model_file).exists():
        mistakes.append(f"model_file {config.model_file} does not exist")
    spec = config.architecture
    if spec and user_code.is_source(spec):
        mistakes += collect_problems(lambda: user_code.read(spec, "architecture"))
        if config.architecture_args:
            mistakes.append(
                "architecture_args are for an estimator that architecture names; "
                "a function gives the estimator its arguments itself"
            )
    elif spec:
        mistakes += collect_problems(lambda: _check(_named(spec, config), config))
    return mistakes


def read(config: FederationConfig) -> tuple[Blueprint, Weights]:
    """Read or build the model; without a schema if it is not fitted.

    Raises
    ------
    ModelFileError, ConfigError
        If there is no model in what was given, or it cannot be federated.
    """
    if config.model_file:
        model = read_model(Path(config.model_file))
        what = "model_file"
    else:
        what, model = "architecture", _build(config)
    _check(model, config, what)
    model = flatten(copy.deepcopy(model))
    set_learning_rate(last_of(model), config.learning_rate)
    is_trained = bool(config.model_file) and is_fitted(last_of(model))
    if not is_trained:
        with quiet():
            model = clone(model)  # steps that the caller has fitted are forgotten
        steps.set_seeds(SklearnPlan(model, None, 0).preparation, config.seed)
    plan = SklearnPlan(model, None, config.seed, fitted=is_trained)
    if is_trained:
        plan = dataclasses.replace(plan, **_facts_of_fitted(plan))
        return make_blueprint(plan, config.learning_rate)
    settings = {"learning_rate": config.learning_rate or 0.0}
    return Blueprint("sklearn", plan, {}, (), settings), {}


def answers_of(blueprint: Blueprint, config: FederationConfig) -> Any:
    """What the model answers (`fedray.models.scoring`), by its estimator.

    Raises
    ------
    ConfigError
        If it learns from no targets, which metrics could compare with.
    """
    from fedray.models import scoring

    estimator = blueprint.plan.estimator
    name = type(estimator).__name__
    if not takes_targets(estimator):
        line = f"metrics are of targets, and {name} learns from none: leave them out"
        raise ConfigError([line])
    if not has_classes(estimator):
        return scoring.ModelAnswers(name, (VALUES,), False)
    return scoring.ModelAnswers(name, (CLASSES,), hasattr(estimator, "predict_proba"))


def flatten(model: Any) -> Any:
    """A pipeline at the end of another one becomes steps of that."""
    while isinstance(model, Pipeline) and isinstance(model.steps[-1][1], Pipeline):
        names = {name for name, _ in model.steps[:-1]}
        last = [
            (f"{name}-{len(names)}" if name in names else name, step)
            for name, step in model.steps[-1][1].steps
        ]
        model = Pipeline([*model.steps[:-1], *last])
    return model


def read_file(path: Path) -> tuple[Blueprint, Weights]:
    """Read a fitted model without a config, for fusing offline."""
    model = read_model(path)
    plan = SklearnPlan(model, None, 0, fitted=True)
    if not is_fitted(last_of(model)):
        raise ModelFileError(
            str(path), "it is not fitted: there are no weights to fuse"
        )
    own = _facts_of_fitted(plan)
    no_shift = dataclasses.replace(own["facts"], means=np.zeros(0))  # each has its own
    plan = dataclasses.replace(plan, facts=no_shift, labels=own["labels"])
    blueprint, weights = make_blueprint(plan, None)
    if "mean_xx" in weights and not weights["weight"] > 0:
        reason = "only a file that a run wrote holds the sums that fuse exactly"
        raise ModelFileError(str(path), reason)
    return blueprint, weights


def read_model(path: Path) -> Any:
    """Read an estimator or pipeline of estimators that can be federated."""
    model = files.read(path)
    mistakes = _model_problems(model)
    if mistakes:
        raise ModelFileError(str(path), "; ".join(mistakes))
    return model


def _build(config: FederationConfig) -> Any:
    spec = config.architecture or ""
    if user_code.is_source(spec):
        source = user_code.read(spec, "architecture")
        return call_architecture(source, BaseEstimator, "scikit-learn estimator")
    return _named(spec, config)


def _named(spec: str, config: FederationConfig) -> Any:
    """The estimator of a name such as SGDClassifier, alone or with its module."""
    module, _, name = spec.rpartition(".")
    if name not in ESTIMATORS:
        if module.startswith("sklearn.") or advice_for(name) != advice_for(""):
            line = f"architecture: {name} cannot be federated: {advice_for(name)}"
        else:
            line = describe_unknown("architecture", spec, ESTIMATORS)
            line += "; or write file.py:function (of another kind of model, give "
            line += "model_type: file.py:ClassName, a class of your own)"
        raise ConfigError([line])
    home = ESTIMATORS[name].module
    if module and module != home:
        raise ConfigError([f"architecture: there is no {spec}; write {home}.{name}"])
    kind = getattr(importlib.import_module(home), name)
    args = config.architecture_args
    takes = [key for key in inspect.signature(kind).parameters if key != "self"]
    unknown = [key for key in args if key not in takes]
    if unknown:
        lines = [
            describe_unknown(f"architecture_args of {name},", k, takes) for k in unknown
        ]
        raise ConfigError(lines)
    with quiet():
        return kind(**{key: _plain(value) for key, value in args.items()})


def _plain(value: Any) -> Any:
    """A list of YAML as scikit-learn has it: hidden_layer_sizes are a tuple."""
    return tuple(value) if isinstance(value, list) else value


def _model_problems(model: Any) -> list[str]:
    """What of a model cannot be federated."""
    if isinstance(model, Pipeline):
        if not model.steps or not hasattr(model.steps[-1][1], "predict"):
            return ["its pipeline ends without an estimator: add one"]
        before = Pipeline(model.steps[:-1]) if model.steps[:-1] else "passthrough"
        mistakes = [] if before == "passthrough" else steps.step_problems(before)
        return mistakes + _model_problems(model.steps[-1][1])
    name = type(model).__name__
    if name not in ESTIMATORS or not type(model).__module__.startswith("sklearn."):
        return [f"{name} cannot be federated: {advice_for(name)}"]
    return estimator_problems(model)


def _check(model: Any, config: FederationConfig, what: str = "architecture") -> None:
    """Raise ConfigError for a model, or keys beside it, that do not go together."""
    mistakes = [f"{what}: {problem}" for problem in _model_problems(model)]
    if not mistakes:
        estimator = last_of(flatten(model))
        keys = ("learning_rate", "batch_size", "epochs", "scheduler")
        mistakes += key_problems(estimator, [(k, getattr(config, k)) for k in keys])
        has_rate = bool(kind_of(estimator).learning_rate)
        if has_rate and config.scheduler and config.learning_rate is None:
            mistakes.append(
                "learning_rate is missing: scheduler says how it changes, and that of "
                f"{type(estimator).__name__} is its own"
            )
        mistakes += _rule_problems(estimator, config)
        mistakes += _value_problems(estimator, what)
    if mistakes:
        raise ConfigError(mistakes)


def _rule_problems(estimator: Any, config: FederationConfig) -> list[str]:
    """Fusion rules and formats that do not keep sums what they are."""
    rule, is_sum = config.fusion_algorithm, kind_of(estimator).trainer in FUSED_AS_SUMS
    name, mistakes = type(estimator).__name__, []
    if is_sum and rule in SERVER_STEPS:
        mistakes.append(
            f"fusion_algorithm: {rule} does not go with {name}: it moves weights by "
            "steps, and these are sums of samples; take fedavg"
        )
    if is_sum and config.wire_dtype != "float32":
        mistakes.append(
            f"wire_dtype: {config.wire_dtype} does not go with {name}: its sums would "
            "lose their digits; leave it out"
        )
    return mistakes


def _value_problems(estimator: Any, what: str) -> list[str]:
    """What an estimator says of its own parameters, tried on made-up rows."""
    n_classes = np.arange(2) if has_classes(estimator) else None
    n_features = _features_of_parameters(estimator)
    facts = DataFacts(n_features, 2, n_classes, n_classes)
    try:
        with quiet():
            trainer = make_trainer(_with_known_classes(clone(estimator)), facts, 0)
            if isinstance(trainer, LeastSquares):
                estimator._validate_params()
    except Exception as error:  # each parameter is checked in its own way
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return [f"{what}: {lines[0][:400]}"]
    return []


def _features_of_parameters(estimator: Any) -> int:
    init: Any = getattr(estimator, "init", None)
    return int(np.shape(init)[1]) if np.ndim(init) == 2 else 2


def _with_known_classes(estimator: Any) -> Any:
    """Without what names classes, which are not known before the parties' data is."""
    own = estimator.get_params()
    if isinstance(own.get("class_weight"), dict):
        estimator.set_params(class_weight=None)
    for name in ("priors", "class_prior"):
        if own.get(name) is not None:
            estimator.set_params(**{name: None})
    return estimator


def is_fitted(estimator: Any) -> bool:
    """Whether an estimator has learned from data."""
    names = ("coef_", "coefs_", "theta_", "feature_count_", "cluster_centers_")
    return any(hasattr(estimator, name) for name in names)


def _facts_of_fitted(plan: SklearnPlan) -> dict[str, Any]:
    """Facts, and names of classes, that a fitted estimator's attributes tell."""
    estimator = plan.estimator
    classes = getattr(estimator, "classes_", None)
    labels: tuple[str, ...] = ()
    if classes is not None and classes.dtype.kind not in "iufb":
        labels, classes = tuple(map(str, classes)), np.arange(len(classes))
    coef = getattr(estimator, "coef_", None)
    n_targets = None
    if classes is None and coef is not None and np.ndim(coef) == 2:
        n_targets = len(coef)
    if hasattr(estimator, "coefs_") and classes is None and estimator.n_outputs_ > 1:
        n_targets = estimator.n_outputs_
    counts = getattr(estimator, "class_count_", None)
    n_samples = 0 if counts is None else round(float(np.sum(counts)))
    means = getattr(estimator, "theta_", None)
    shift = np.zeros(0) if means is None else np.asarray(means).mean(0)
    sums = getattr(estimator, SUMS, None)
    if isinstance(sums, dict) and {"n_samples", "shift"} <= sums.keys():
        n_samples, shift = int(sums["n_samples"]), np.asarray(sums["shift"])
    n_features = int(estimator.n_features_in_)
    facts = DataFacts(n_features, n_samples, classes, None, n_targets, shift)
    return {"facts": facts, "labels": labels}


def write(blueprint: Blueprint, weights: Weights, path: Path) -> None:
    """Write a fitted model as .skops, or its arrays as .safetensors."""
    write_file(
        path,
        weights,
        lambda aside: files.write(fitted_model(blueprint.plan, weights), aside),
    )
