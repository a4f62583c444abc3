"""Builds Keras models, first on the meta device to bound the memory they need."""

import copy
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from fedray.errors import format_count
from fedray.models.base import call_architecture
from fedray.models.keras.backend import keras, meta_device_scope
from fedray.models.untrusted import UnsafeFile
from fedray.user_code import Source
from fedray.weights import KINDS, Form

MAX_OUTPUT = 1 << 25  # numbers that one layer gives for one sample
MAX_SCORES = 1 << 28  # of an attention layer: every position against every other


@dataclass(frozen=True)
class KerasPlan:
    """What a model is rebuilt from: plain data, or code that the operator named.

    layers : description of allowed layers (`safe_load.ConfigSanitizer`), or the source
        of an architecture.
    metrics : of the compile settings, for the file that is written at the end.
    is_compiled : whether that file shall have compile settings.
    """

    layers: dict[str, Any] | Source
    metrics: tuple[Any, ...] = ()
    is_compiled: bool = True


def build(plan: KerasPlan) -> Any:
    """Build the model of a plan, a `keras.Model`; its values are arbitrary.

    Raises
    ------
    ModelFileError
        If an architecture cannot be built.
    UnsafeFile
        If the layers of a file cannot be built.
    """
    if isinstance(plan.layers, Source):
        return call_architecture(plan.layers, keras.Model, "keras.Model")
    try:
        layers = copy.deepcopy(plan.layers)  # Keras removes what it has read
        return keras.saving.deserialize_keras_object(layers, safe_mode=True)
    except Exception as error:  # constructors raise whatever they like
        lines = str(error).strip().splitlines() or [""]
        raise UnsafeFile(
            f"its layers do not build, {type(error).__name__}: {lines[0][:200]}; save "
            "it again"
        ) from None


def check_without_memory(plan: KerasPlan, forms: Counter[Form]) -> None:
    """Build a file's model on the meta device and compare it with the file's arrays.

    forms : number of arrays of each shape and dtype in the file.

    Raises
    ------
    UnsafeFile
        If the model needs more than the file holds, or a layer's output is larger than
        `MAX_OUTPUT`, an attention's scores than `MAX_SCORES`.
    """
    with meta_device_scope():
        model = build(plan)
    check_model(model)
    check_arrays(model, forms)
    for layer in list_layers(model):
        for node in getattr(layer, "_inbound_nodes", ()):
            for tensor in node.output_tensors:
                _check_size(layer, tensor.shape, MAX_OUTPUT)
            if "Attention" in type(layer).__name__:
                for tensor in node.input_tensors:
                    squared = [n * n for n in tensor.shape[1:-1] if n]
                    _check_size(layer, squared, MAX_SCORES)


def check_arrays(model: Any, forms: Counter[Form]) -> None:
    """Refuse a file that lacks arrays of a model's shapes and dtypes.

    forms : number of arrays of each shape and dtype in the file.
    """
    needed = Counter(Form(tuple(v.shape), str(v.dtype)) for v in model.weights)
    if missing := needed - forms:
        form, n_missing = next(iter(missing.items()))
        arrays = format_count(n_missing, "more array")
        raise UnsafeFile(
            f"its layers need {arrays} {form} than it holds: save the "
            "whole model again, or weights of the same architecture"
        )


def check_model(model: Any) -> None:
    """Refuse all but a built model with weights and one output."""
    if not model.built:
        raise UnsafeFile(
            "its layers have no shapes yet: begin with keras.Input(shape) or call "
            "model.build(shape) and save again"
        )
    if _has_several(model, "output_shape"):
        raise UnsafeFile("it has several outputs, models of one are trained")
    if not model.weights:
        raise UnsafeFile("it holds no weights: there is nothing to train and fuse")
    for variable in model.weights:
        if str(variable.dtype)[0] not in KINDS or "bfloat" in str(variable.dtype):
            raise UnsafeFile(f"its {variable.path} is of dtype {variable.dtype}")


def sample_shape(model: Any, attribute: str) -> tuple[int | None, ...] | None:
    """Shape of one sample; None where Keras cannot infer it.

    attribute : "input_shape" or "output_shape".
    """
    try:
        shape = getattr(model, attribute)
    except Exception:  # of a subclassed model
        return None
    is_known = isinstance(shape, tuple) and all(
        n is None or isinstance(n, int) for n in shape
    )
    return shape[1:] if is_known else None


def list_layers(model: Any) -> list[Any]:
    """Layers of a model, and of the models inside it."""
    layers = []
    for layer in getattr(model, "layers", ()):
        layers += [layer, *list_layers(layer)]
    return layers


def _has_several(model: Any, attribute: str) -> bool:
    try:
        shape = getattr(model, attribute)
    except Exception:  # of a subclassed model
        return False
    return isinstance(shape, dict | list) or (
        isinstance(shape, tuple) and any(isinstance(n, tuple) for n in shape)
    )


def _check_size(layer: Any, shape: Any, most: int) -> None:
    if math.prod(n for n in shape if n) > most:
        raise UnsafeFile(
            f"its layer {layer.name} gives {list(shape)} for one sample, more than "
            f"{most} numbers"
        )
