"""From a model file or an architecture to blueprint and weights, and back to disk."""

import inspect
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedray import user_code
from fedray.config import FederationConfig
from fedray.errors import ModelFileError
from fedray.models.base import Blueprint
from fedray.models.pytorch import safe_load
from fedray.models.pytorch.optimizers import DEFAULTS
from fedray.models.pytorch.pickle_reader import ADVICE
from fedray.models.untrusted import UnsafeFile
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
        return build_layers(plan, needed)
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


_LAYER_NAMES = """
    Sequential Identity Flatten Unflatten Fold Unfold
    Linear Bilinear Embedding
    Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d
    BatchNorm1d BatchNorm2d BatchNorm3d LayerNorm GroupNorm RMSNorm
    InstanceNorm1d InstanceNorm2d InstanceNorm3d LocalResponseNorm
    CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid
    LogSoftmax Mish PReLU ReLU ReLU6 RReLU SELU SiLU Sigmoid Softmax Softmax2d Softmin
    Softplus Softshrink Softsign Tanh Tanhshrink Threshold
    Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout
    MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d
    LPPool1d LPPool2d LPPool3d
    AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d
    AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d
    CircularPad1d CircularPad2d CircularPad3d ConstantPad1d ConstantPad2d ConstantPad3d
    ReflectionPad1d ReflectionPad2d ReflectionPad3d
    ReplicationPad1d ReplicationPad2d ReplicationPad3d ZeroPad1d ZeroPad2d ZeroPad3d
    Upsample UpsamplingBilinear2d UpsamplingNearest2d
    PixelShuffle PixelUnshuffle ChannelShuffle
"""
KNOWN_LAYERS = frozenset(_LAYER_NAMES.split())
NOT_FROM_FILE = {"args", "kwargs", "device", "dtype"}


def build_layers(
    layer: safe_load.Layer, needed: Schema, source: str = "in use"
) -> nn.Module:
    """Build a model on the CPU, every parameter and buffer zero: weights come later.

    Parameters
    ----------
    layer : safe_load.Layer
        The outermost layer, from `safe_load.read`; modules used twice and tied
        parameters are one object again.
    needed : Schema
        Names and shapes that the layers must turn out to have before memory is taken
        for them, and the dtypes they are given.
    source : str
        What errors call the model file.

    Raises
    ------
    ModelFileError
        If a layer is not known, cannot be built, or is not of `needed`.
    """
    try:
        with torch.device("meta"):
            model = _module(layer, {})
        _check_state(model, needed)
    except UnsafeFile as refused:
        raise ModelFileError(source, str(refused)) from refused
    _allocate(model, needed, layer.tied)
    return model


def _module(layer: safe_load.Layer, built: dict[int, nn.Module]) -> nn.Module:
    if layer.kind not in KNOWN_LAYERS:
        raise UnsafeFile(f"layer {layer.kind} is not known to fedray: {ADVICE}")
    if id(layer) not in built:
        children = [(name, _module(child, built)) for name, child in layer.children]
        try:
            built[id(layer)] = _constructed(layer, children)
        except Exception as error:  # constructors raise whatever they like
            raise UnsafeFile(
                f"layer {layer.kind} cannot be built, {type(error).__name__}: "
                f"{str(error)[:200]}; save a model that torch.nn made"
            ) from error
    return built[id(layer)]


def _constructed(
    layer: safe_load.Layer, children: list[tuple[str, nn.Module]]
) -> nn.Module:
    if layer.kind == "Sequential":
        return nn.Sequential(OrderedDict(children))
    if children:
        raise ValueError("only Sequential holds other layers")
    made = getattr(nn, layer.kind)
    taken = inspect.signature(made).parameters.keys() - NOT_FROM_FILE
    given = {name: layer.args[name] for name in taken & layer.args.keys()}
    if made is nn.Embedding:  # its normal_ would import 800 modules for meta tensors
        given["_weight"] = torch.empty(given["num_embeddings"], given["embedding_dim"])
    return made(**given)


def _check_state(model: nn.Module, needed: Schema) -> None:
    made = model.state_dict()
    missing = [name for name in made if name not in needed]
    extra = [name for name in needed if name not in made]
    if missing or extra:
        raise UnsafeFile(
            f"its layers lack tensors {missing[:5]} and have no use for {extra[:5]}: "
            "save the whole model again"
        )
    for name, tensor in made.items():
        form = needed[name]
        fits = tensor.is_floating_point() == form.dtype.startswith("float")
        if tuple(tensor.shape) != form.shape or not fits:
            raise UnsafeFile(
                f"tensor {name!r} is {form}, its layer needs {tensor.dtype} "
                f"{list(tensor.shape)}: save the whole model again"
            )


def _allocate(
    model: nn.Module, needed: Schema, tied: tuple[tuple[str, str], ...]
) -> None:
    for name, form in needed.items():
        owner, _, own_name = name.rpartition(".")
        module = model.get_submodule(owner)
        tensor = torch.zeros(form.shape, dtype=getattr(torch, form.dtype))
        is_parameter = own_name in module._parameters
        setattr(module, own_name, nn.Parameter(tensor) if is_parameter else tensor)
    for name, earlier in tied:
        owner, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(owner), own_name, model.get_parameter(earlier))
