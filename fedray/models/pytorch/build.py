"""Builds PyTorch modules: known torch.nn layers from plain data, or user code."""

import inspect
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import nn

from fedray.errors import WeightsMismatch
from fedray.models.base import call_architecture
from fedray.models.pytorch.safe_load import Layer
from fedray.models.untrusted import UnsafeFile, model_file_errors
from fedray.user_code import Source
from fedray.weights import Schema

Plan = Layer | Source  # what a module is built from

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


def build(plan: Plan, needed: Schema, source: str = "in use") -> nn.Module:
    """Build the module of a plan; its values are arbitrary.

    needed, source : see `build_layers`.

    Raises
    ------
    ModelFileError
        If it cannot be built.
    """
    if isinstance(plan, Layer):
        return build_layers(plan, needed, source)
    module = call_architecture(plan, nn.Module, "torch.nn.Module")
    for layer in module.modules():
        for name, buffer in layer._buffers.items():
            if buffer is not None and _shares_own_memory(buffer):
                layer._buffers[name] = buffer.clone(
                    memory_format=torch.contiguous_format
                )
    return module


def tied_parameters(module: nn.Module) -> dict[str, str]:
    """Second names of parameters in the state_dict, and the first name of each."""
    first: dict[int, str] = {}
    return {
        name: first[id(tensor)]
        for name, tensor in module.state_dict(keep_vars=True).items()
        if isinstance(tensor, nn.Parameter)
        and first.setdefault(id(tensor), name) != name
    }


def own_tensors(module: nn.Module, tied: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """A module's state_dict with each tied parameter once: views, which live on.

    Raises
    ------
    WeightsMismatch
        If a second name in `tied` is another tensor here than the first.
    """
    here, tensors = tied_parameters(module), module.state_dict()
    for name, first in tied.items():
        if here.get(name) != first:
            difference = (
                f"{first!r} and {name!r} are not one tensor, elsewhere they are"
            )
            raise WeightsMismatch("the model built here", difference)
    return {name: tensor for name, tensor in tensors.items() if name not in tied}


def _shares_own_memory(tensor: torch.Tensor) -> bool:
    """Whether elements lie in one place, as `expand` leaves them: it takes no copy."""
    strided = tensor.layout == torch.strided
    return strided and any(
        n > 1 and step == 0
        for n, step in zip(tensor.shape, tensor.stride(), strict=True)
    )


def build_layers(layer: Layer, needed: Schema, source: str = "in use") -> nn.Module:
    """Build a module of known layers on the CPU; every parameter and buffer is zero.

    Parameters
    ----------
    layer : Layer
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
    with model_file_errors(source):
        with torch.device("meta"):
            model = _module(layer, {})
        _check_state(model, needed)
    _allocate(model, needed, layer.tied)
    return model


def _module(layer: Layer, built: dict[int, nn.Module]) -> nn.Module:
    if layer.kind not in KNOWN_LAYERS:
        raise UnsafeFile(
            f"its layer {layer.kind} is none that fedray builds from a file alone "
            "(those of torch.nn with one output and no state): give architecture: "
            "file.py:function that builds the model, and the file's tensors are used"
        )
    if id(layer) not in built:
        children = [(name, _module(child, built)) for name, child in layer.children]
        try:
            built[id(layer)] = _construct(layer, children)
        except Exception as error:  # constructors raise whatever they like
            raise UnsafeFile(
                f"layer {layer.kind} cannot be built, {type(error).__name__}: "
                f"{str(error)[:200]}; save a model that torch.nn made"
            ) from error
    return built[id(layer)]


def _construct(layer: Layer, children: list[tuple[str, nn.Module]]) -> nn.Module:
    if layer.kind == "Sequential":
        return nn.Sequential(OrderedDict(children))
    if children:
        raise ValueError("only Sequential holds other layers")
    kind = getattr(nn, layer.kind)
    names = inspect.signature(kind).parameters.keys() - NOT_FROM_FILE
    args = {name: layer.args[name] for name in names & layer.args.keys()}
    if kind is nn.Embedding:  # its normal_ would import 800 modules for meta tensors
        args["_weight"] = torch.empty(args["num_embeddings"], args["embedding_dim"])
    return kind(**args)


def _check_state(model: nn.Module, needed: Schema) -> None:
    built = model.state_dict()
    missing = [name for name in built if name not in needed]
    extra = [name for name in needed if name not in built]
    if missing or extra:
        raise UnsafeFile(
            f"its layers lack tensors {missing[:5]} and have no use for {extra[:5]}: "
            "save the whole model again"
        )
    for name, tensor in built.items():
        form = needed[name]
        fits = tensor.is_floating_point() == ("float" in form.dtype)
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
