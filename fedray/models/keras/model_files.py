"""From a model file or an architecture to blueprint and weights, and back to disk."""

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedray import user_code
from fedray.config import FederationConfig
from fedray.errors import ModelFileError
from fedray.models.base import Blueprint
from fedray.models.keras import losses, variables
from fedray.models.keras.backend import drawing, keras, on
from fedray.models.keras.build import (
    Plan,
    build,
    check_arrays,
    check_model,
    check_on_paper,
)
from fedray.models.keras.optimizers import make_optimizer, settings
from fedray.models.keras.safe_load import KerasFile, look
from fedray.models.untrusted import Refused
from fedray.models.writing import write_file
from fedray.weights import Weights, non_finite, schema

log = logging.getLogger("fedray")


def read(config: FederationConfig) -> tuple[Blueprint, Weights]:
    """Read the initial model that every party starts from.

    A file of a whole model needs nothing else; a file of weights needs `architecture`;
    an architecture without a file starts from its own initialisation under `seed`.

    Raises
    ------
    ModelFileError, ConfigError
        If there is no model in what was given.
    """
    try:
        path = Path(config.model_file) if config.model_file else None
        return _read(path, config, True)
    except Refused as refused:
        where = str(config.model_file or config.architecture)
        raise ModelFileError(where, str(refused)) from refused


def read_file(path: Path) -> tuple[Blueprint, Weights]:
    """Read a file of a whole model alone, for fusing.

    Raises
    ------
    ModelFileError
        If anything is wrong with it.
    """
    try:
        return _read(path, FederationConfig(), False)
    except Refused as refused:
        raise ModelFileError(str(path), str(refused)) from refused


def write(blueprint: Blueprint, weights: Weights, path: Path) -> None:
    """Write a .keras file that Keras alone opens, compiled as it was trained.

    Or .safetensors of the arrays alone.

    Raises
    ------
    ModelFileError
        If it cannot be written; the file appears whole or not at all.
    """
    write_file(path, weights, lambda aside: _save(blueprint, weights, aside))


def _read(
    path: Path | None, config: FederationConfig, to_train: bool
) -> tuple[Blueprint, Weights]:
    found = look(path) if path else None
    compiled = found.compiled if found else None
    plan = _plan(config, found)
    with on("cpu"), drawing(config.seed):
        model = build(plan)
        check_model(model)
        _check_writable(model, plan)
        if compiled is None and getattr(model, "compiled", False):
            compiled = model.get_compile_config()
        if found:
            _load(model, found)
        names = variables.names(model)
        weights = {n: a.copy() for n, a in variables.values(model, names).items()}
    if name := non_finite(weights):
        raise Refused(
            f"tensor {name!r} holds NaN or infinity: save a model whose numbers are "
            "finite"
        )
    moved = tuple(n for n, v in zip(names, model.weights, strict=True) if v.trainable)
    plan = Plan(plan.layers, _metrics(compiled), to_train or compiled is not None)
    own = settings(compiled if to_train or compiled else None, config)
    return Blueprint("keras", plan, schema(weights), moved, own), weights


def _plan(config: FederationConfig, found: KerasFile | None) -> Plan:
    if config.architecture:
        return Plan(user_code.read(config.architecture, "architecture"))
    if found is None or found.layers is None:
        raise Refused(
            "it holds weights without their layers: give architecture: "
            "file.py:function, or save the whole model with model.save('model.keras')"
        )
    plan = Plan(found.layers)
    check_on_paper(plan, found.content.forms())
    return plan


def _load(model: Any, found: KerasFile) -> None:
    """Let Keras put the arrays of a file that was looked at into their places."""
    check_arrays(model, found.content.forms())
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that an optimizer's state is left out
            copy = Path(folder, f"model{found.suffix}")
            found.content.write(copy)
            model.load_weights(copy)
    except Exception as error:  # of many kinds, by layer
        first = " ".join(str(error).split())[:300]
        raise Refused(f"its weights are not its layers': {first}") from None


def _metrics(compiled: dict[str, Any] | None) -> tuple[Any, ...]:
    known, others = losses.metrics_from_file((compiled or {}).get("metrics"))
    if others:
        told = "metrics that are not Keras's own are left out: %s"
        log.warning(told, ", ".join(others))
    return tuple(known)


def _check_writable(model: Any, plan: Plan) -> None:
    """Notice now, not after the last round, that a model cannot be saved."""
    try:
        keras.saving.serialize_keras_object(model)
    except Exception as error:
        raise ModelFileError(
            str(plan.layers),
            f"gave a {type(model).__name__} that Keras cannot save "
            f"({type(error).__name__}): build a Sequential or functional model, "
            "or give the class get_config()",
        ) from None


def _save(blueprint: Blueprint, weights: Weights, path: Path) -> None:
    plan: Plan = blueprint.plan
    with on("cpu"), drawing(0):
        model = build(plan)
        for name, variable in zip(weights, model.weights, strict=True):
            variables.tensor(variable).copy_(torch.from_numpy(np.array(weights[name])))
        if plan.compiled:
            config = blueprint.settle(FederationConfig())
            model.compile(
                optimizer=make_optimizer(config),
                loss=losses.named(config.loss, config.loss_args).function,
                metrics=[_metric(metric) for metric in plan.metrics] or None,
            )
        model.save(path)


def _metric(told: Any) -> Any:
    return told if isinstance(told, str) else keras.metrics.get(told)
