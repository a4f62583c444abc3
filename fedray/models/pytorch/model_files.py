"""Reads initial PyTorch models (file or architecture), writes .pt and .safetensors."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from fedray import user_code
from fedray.config import FederationConfig
from fedray.errors import ModelFileError
from fedray.models import torch_state
from fedray.models.base import Blueprint, write_file
from fedray.models.own_loss import read_loss
from fedray.models.pytorch import safe_load
from fedray.models.pytorch.build import Plan, build
from fedray.models.pytorch.optimizers import DEFAULTS
from fedray.user_code import Source
from fedray.weights import KINDS, Weights, mismatch, non_finite, schema


def read(config: FederationConfig) -> tuple[Blueprint, Weights]:
    """Read the initial model of a config: see `ModelAdapter.read`."""
    path = config.model_file
    file = safe_load.read(Path(path)) if path else None
    plan = _plan(config, file)
    with torch_state.random_scope(config.seed):
        module = build(plan, schema(file.weights) if file else {})
    initial = _arrays(module, str(plan if isinstance(plan, Source) else "model"))
    outside = torch_state.OutsideState(module, module.state_dict().values())
    # tied parameters have several names, and all of them are trained
    parameters = dict(module.named_parameters(remove_duplicate=False))
    frozen = {name for name, p in parameters.items() if not p.requires_grad}
    if file:
        difference = mismatch(file.weights, schema(initial))
        if difference:
            raise ModelFileError(str(path), f"{difference} by the architecture")
        initial = {name: file.weights[name] for name in initial}
        frozen |= file.frozen
    elif flawed := non_finite(initial):
        raise ModelFileError(
            str(plan),
            f"tensor {flawed!r} holds NaN or infinity, which cannot be averaged: for a "
            "constant such as a mask, register_buffer(..., persistent=False)",
        )
    trained = tuple(name for name in parameters if name not in frozen)
    blueprint = _blueprint(plan, initial, trained)
    fingerprints = outside.fingerprints()
    notes = torch_state.describe(fingerprints, config.seed)
    loss = read_loss(config)
    return replace(blueprint, outside=fingerprints, notes=notes, loss=loss), initial


def read_file(path: Path) -> tuple[Blueprint, Weights]:
    """Read a file without a config, for fusing offline; its layers may be unknown.

    Raises
    ------
    ModelFileError
        If anything is wrong with it.
    """
    file = safe_load.read(path)
    trained = tuple(name for name in file.weights if name not in file.frozen)
    return _blueprint(file.layer, file.weights, trained), file.weights


def write(blueprint: Blueprint, weights: Weights, path: Path) -> None:
    """Write a whole module where the model came as one, else a state_dict.

    See `ModelAdapter.write`.
    """
    layer = blueprint.plan if isinstance(blueprint.plan, safe_load.Layer) else None
    frozen = set(weights) - set(blueprint.parameters)
    write_file(path, weights, lambda target: _save(layer, weights, frozen, target))


def _plan(config: FederationConfig, file: safe_load.ModelFile | None) -> Plan:
    if config.architecture:
        return user_code.read(config.architecture, "architecture")
    if file is None:
        raise ModelFileError("model_file", "is missing: give it, or an architecture")
    if file.layer is None:
        reason = "holds arrays without their layers; give architecture: file.py:name"
        raise ModelFileError(str(config.model_file), reason)
    return file.layer


def _blueprint(
    plan: Plan | None, weights: Weights, trained: tuple[str, ...]
) -> Blueprint:
    return Blueprint("pytorch", plan, schema(weights), trained, DEFAULTS)


def _save(
    layer: safe_load.Layer | None, weights: Weights, frozen: Collection[str], path: Path
) -> None:
    tensors = {name: torch.from_numpy(np.array(a)) for name, a in weights.items()}
    model: torch.nn.Module | None = None
    if layer is not None:
        model = build(layer, schema(weights))
        model.load_state_dict(tensors)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in frozen)
    with path.open("wb") as file:  # given a path, torch writes its name into the file
        torch.save(tensors if model is None else model, file)


def _arrays(module: torch.nn.Module, source: str) -> Weights:
    """Copies of a module's parameters and buffers, of dtypes that fedray fuses."""
    arrays = {}
    for name, tensor in module.state_dict().items():
        if is_lazy(tensor):
            layer = f"layer {name.rpartition('.')[0] or '(all)'}"
            reason = f"{layer} has no size yet: give sizes, as in nn.Linear(8, 2)"
            raise ModelFileError(source, reason)
        array = _array_or_none(tensor)
        if array is None:
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            reason = f"tensor {name!r} is {kind}; floats of 16, 32 or 64 bits, integers"
            raise ModelFileError(source, f"{reason} or booleans are needed")
        arrays[name] = array
    return arrays


def _array_or_none(tensor: Any) -> np.ndarray | None:
    try:
        array = np.array(tensor.detach().cpu().numpy())
    except (AttributeError, TypeError, RuntimeError, ValueError):
        return None
    return array if array.dtype.kind in KINDS else None
