"""From a model file or an architecture to blueprint and weights, and back to disk."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedray import user_code
from fedray.config import FederationConfig
from fedray.errors import ModelFileError
from fedray.models.base import Blueprint
from fedray.models.pytorch import layers, safe_load
from fedray.models.pytorch.optimizers import DEFAULTS
from fedray.models.writing import write_file
from fedray.user_code import Source
from fedray.weights import KINDS, Schema, Weights, mismatch, schema


def build(plan: safe_load.Layer | Source, needed: Schema) -> torch.nn.Module:
    """Build the module of a plan; its values are whatever they happen to be.

    Raises
    ------
    ModelFileError
        If the architecture cannot be built.
    """
    if isinstance(plan, safe_load.Layer):
        return layers.build(plan, needed)
    return _call(plan)


def read(config: FederationConfig) -> tuple[Blueprint, Weights]:
    """Read the initial model that every party starts from.

    A file of a whole module needs nothing else; a file of arrays needs `architecture`;
    an architecture without a file starts from its own initialisation under `seed`.

    Raises
    ------
    ModelFileError, ConfigError
        If there is no model in what was given.
    """
    plan, found = None, None
    if config.architecture:
        plan = user_code.read(config.architecture, "architecture")
    if config.model_file:
        found = safe_load.read(Path(config.model_file))
        plan = plan or found.layer
        if plan is None:
            what = "holds arrays without their layers; give architecture: file.py:name"
            raise ModelFileError(config.model_file, what)
    torch.manual_seed(config.seed)
    module = build(plan, schema(found.weights) if found else {})
    initial = _arrays(module, str(plan if isinstance(plan, Source) else "model"))
    # tied parameters have several names, and all of them move
    parameters = dict(module.named_parameters(remove_duplicate=False))
    frozen = {name for name, p in parameters.items() if not p.requires_grad}
    if found:
        different = mismatch(found.weights, schema(initial))
        if different:
            raise ModelFileError(config.model_file, f"{different} by the architecture")
        initial = {name: found.weights[name] for name in initial}
        frozen |= found.frozen
    names = tuple(name for name in parameters if name not in frozen)
    return _blueprint(plan, initial, names), initial


def read_file(path: Path) -> tuple[Blueprint, Weights]:
    """Read a file alone, for fusing; its layers may be unknown.

    Raises
    ------
    ModelFileError
        If anything is wrong with it.
    """
    found = safe_load.read(path)
    names = tuple(name for name in found.weights if name not in found.frozen)
    return _blueprint(found.layer, found.weights, names), found.weights


def write(blueprint: Blueprint, weights: Weights, path: Path) -> None:
    """Write a model as it came: a whole module, or a state_dict; or .safetensors.

    Raises
    ------
    ModelFileError
        If it cannot be written; the file appears whole or not at all.
    """
    layer = blueprint.plan if isinstance(blueprint.plan, safe_load.Layer) else None
    frozen = set(weights) - set(blueprint.parameters)
    write_file(path, weights, lambda aside: _write_torch(layer, weights, frozen, aside))


def _blueprint(plan: Any, weights: Weights, parameters: tuple[str, ...]) -> Blueprint:
    return Blueprint("pytorch", plan, schema(weights), parameters, DEFAULTS)


def _write_torch(
    layer: safe_load.Layer | None, weights: Weights, frozen: Collection[str], path: Path
) -> None:
    tensors = {name: torch.from_numpy(np.array(a)) for name, a in weights.items()}
    saved: Any = tensors
    if layer:
        saved = build(layer, schema(weights))
        saved.load_state_dict(tensors)
        for name, parameter in saved.named_parameters():
            parameter.requires_grad_(name not in frozen)
    torch.save(saved, path)


def _call(plan: Source) -> torch.nn.Module:
    try:
        module = user_code.run(plan)()
    except Exception as error:
        reason = f"building it failed: {type(error).__name__}: {error}"
        raise ModelFileError(str(plan), reason) from None
    if not isinstance(module, torch.nn.Module):
        kind = type(module).__name__
        raise ModelFileError(str(plan), f"gave a {kind}, a torch.nn.Module is needed")
    return module


def _arrays(module: torch.nn.Module, name: str) -> Weights:
    arrays = {}
    for key, tensor in module.state_dict().items():
        try:
            arrays[key] = np.array(tensor.detach().cpu().numpy())
            usable = arrays[key].dtype.kind in KINDS
        except (AttributeError, TypeError, RuntimeError, ValueError):
            usable = False
        if not usable:
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            what = f"tensor {key!r} is {kind}; floats of 16, 32 or 64 bits, integers "
            raise ModelFileError(name, what + "or booleans are needed")
    return arrays
