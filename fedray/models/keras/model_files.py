"""Reads initial Keras models (file or architecture) and writes .keras files."""

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
from fedray.models import torch_state, trainable
from fedray.models.base import Blueprint, write_file
from fedray.models.keras import losses, variables
from fedray.models.keras.backend import device_scope, keras, seed_scope
from fedray.models.keras.build import (
    KerasPlan,
    build,
    check_arrays,
    check_model,
    check_without_memory,
)
from fedray.models.keras.optimizers import make_optimizer, training_settings
from fedray.models.keras.safe_load import KerasFile, load
from fedray.models.own_loss import read_loss
from fedray.models.untrusted import UnsafeFile, check_finite, model_file_errors
from fedray.weights import Weights, schema

log = logging.getLogger("fedray")


def read(config: FederationConfig) -> tuple[Blueprint, Weights]:
    """Read the initial model of a config: see `ModelAdapter.read`."""
    path = Path(config.model_file) if config.model_file else None
    with model_file_errors(path or str(config.architecture)):
        return _read(path, config, is_for_training=True)


def read_file(path: Path) -> tuple[Blueprint, Weights]:
    """Read a file of a whole model without a config, for fusing files offline.

    Raises
    ------
    ModelFileError
        If anything is wrong with it.
    """
    with model_file_errors(path):
        return _read(path, FederationConfig(), is_for_training=False)


def write(blueprint: Blueprint, weights: Weights, path: Path) -> None:
    """Write a .keras file that plain Keras opens, compiled with the training settings.

    See `ModelAdapter.write`.
    """
    metadata = blueprint.metadata or None
    write_file(
        path, weights, lambda target: _save(blueprint, weights, target), metadata
    )


def _read(
    path: Path | None, config: FederationConfig, is_for_training: bool
) -> tuple[Blueprint, Weights]:
    file = load(path) if path else None
    compiled = file.compiled if file else None
    plan = _plan(config, file)
    with device_scope("cpu"), seed_scope(config.seed):
        model = build(plan)
        check_model(model)
        fingerprints = variables.outside_state(model).fingerprints()
        _check_writable(model, plan)
        if compiled is None and getattr(model, "compiled", False):
            compiled = model.get_compile_config()
        if file:
            _load_arrays(model, file)
        views = variables.to_arrays(model, variables.variable_names(model))
        weights = {name: view.copy() for name, view in views.items()}
    check_finite(weights)
    form = schema(weights)
    parameters = variables.parameters(model, weights)
    trained, frozen = trainable.split(config.trainable, form, parameters, {})
    loss = read_loss(config)
    # code of the user's is no part of a file: it is written without compile settings
    is_compiled = (is_for_training or compiled is not None) and loss is None
    plan = KerasPlan(plan.layers, _metrics(compiled), is_compiled)
    settings = training_settings(compiled if is_compiled else None, config)
    notes = torch_state.describe(fingerprints, config.seed)
    blueprint = Blueprint(
        "keras", plan, form, trained, settings, fingerprints, notes, loss, frozen
    )
    return _with_personal(blueprint, config, model), weights


def _with_personal(
    blueprint: Blueprint, config: FederationConfig, model: Any
) -> Blueprint:
    names = variables.parameters(model, blueprint.schema)
    norms = variables.batch_norm_names(model, blueprint.schema)
    return trainable.set_personal(blueprint, config, names, norms)


def _plan(config: FederationConfig, file: KerasFile | None) -> KerasPlan:
    if config.architecture:
        return KerasPlan(user_code.read(config.architecture, "architecture"))
    if file is None or file.layers is None:
        raise UnsafeFile(
            "it holds weights without their layers: give architecture: "
            "file.py:function, or save the whole model with model.save('model.keras')"
        )
    plan = KerasPlan(file.layers)
    check_without_memory(plan, file.content.forms())
    return plan


def _load_arrays(model: Any, file: KerasFile) -> None:
    """Let Keras load the checked arrays of a file, from a copy written by fedray."""
    check_arrays(model, file.content.forms())
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that an optimizer's state is left out
            copy = Path(folder, f"model{file.suffix}")
            file.content.write(copy)
            model.load_weights(copy)
    except Exception as error:  # of many kinds, by layer
        reason = " ".join(str(error).split())[:300]
        raise UnsafeFile(f"its weights are not its layers': {reason}") from None


def _metrics(compiled: dict[str, Any] | None) -> tuple[Any, ...]:
    metrics, other_names = losses.metrics_from_file((compiled or {}).get("metrics"))
    if other_names:
        log.warning(
            "metrics that are not Keras's own are left out: %s", ", ".join(other_names)
        )
    return tuple(metrics)


def _check_writable(model: Any, plan: KerasPlan) -> None:
    """Refuse before round 1 a model that could not be saved after the last."""
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
    plan: KerasPlan = blueprint.plan
    with device_scope("cpu"), seed_scope(0):
        model = build(plan)
        for name, variable in zip(weights, model.weights, strict=True):
            variables.tensor(variable).copy_(torch.from_numpy(np.array(weights[name])))
        if plan.is_compiled:
            config = blueprint.settle(FederationConfig())
            model.compile(
                optimizer=make_optimizer(config),
                loss=losses.named(config.loss, config.loss_args).function,
                metrics=[_make_metric(metric) for metric in plan.metrics] or None,
            )
        model.save(path)


def _make_metric(metric: Any) -> Any:
    return metric if isinstance(metric, str) else keras.metrics.get(metric)
