"""Keras models built from a plan, on paper first: as shapes without memory."""

import copy
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from fedray import user_code
from fedray.errors import ModelFileError
from fedray.models.keras.backend import keras, on_paper
from fedray.models.untrusted import Refused
from fedray.user_code import Source
from fedray.weights import KINDS, Form

MAX_OUTPUT = 1 << 25  # numbers that one layer gives for one sample
MAX_SCORES = 1 << 28  # of an attention layer: every place against every other


@dataclass(frozen=True)
class Plan:
    """What a model is rebuilt from: plain data, or code that the operator named.

    layers : description of known layers (`safe_load.Retelling`), or the architecture.
    metrics : of the compile settings, for the file that is written at the end.
    compiled : whether that file shall have compile settings.
    """

    layers: dict[str, Any] | Source
    metrics: tuple[Any, ...] = ()
    compiled: bool = True


def build(plan: Plan) -> Any:
    """Build the model of a plan; its values are whatever they happen to be.

    Raises
    ------
    ModelFileError
        If an architecture cannot be built.
    Refused
        If the layers of a file cannot.
    """
    if isinstance(plan.layers, Source):
        return _called(plan.layers)
    try:
        layers = copy.deepcopy(plan.layers)  # Keras takes out what it has read
        return keras.saving.deserialize_keras_object(layers, safe_mode=True)
    except Exception as error:  # constructors raise whatever they like
        first = str(error).strip().splitlines() or [""]
        raise Refused(
            f"its layers do not build, {type(error).__name__}: {first[0][:200]}; save "
            "it again"
        ) from None


def check_on_paper(plan: Plan, there: Counter[Form]) -> None:
    """Build a file's model without memory, and compare with what the file holds.

    there : how many of its arrays have each shape and dtype.

    Raises
    ------
    Refused
        If it would take more than the file holds, or more than anyone needs.
    """
    with on_paper():
        model = build(plan)
    check_model(model)
    check_arrays(model, there)
    for layer in all_layers(model):
        for node in getattr(layer, "_inbound_nodes", ()):
            for tensor in node.output_tensors:
                _check_size(layer, tensor.shape, MAX_OUTPUT)
            if "Attention" in type(layer).__name__:
                for tensor in node.input_tensors:
                    squared = [n * n for n in tensor.shape[1:-1] if n]
                    _check_size(layer, squared, MAX_SCORES)


def check_arrays(model: Any, there: Counter[Form]) -> None:
    """Refuse a file that lacks arrays of a model's shapes and dtypes."""
    needed = Counter(Form(tuple(v.shape), str(v.dtype)) for v in model.weights)
    if lacking := needed - there:
        form, n = next(iter(lacking.items()))
        raise Refused(
            f"its layers need {n} more arrays {form} than it holds: save the whole "
            "model again, or weights of the same architecture"
        )


def check_model(model: Any) -> None:
    """Refuse what is not one built model with something to train and fuse."""
    if not model.built:
        raise Refused(
            "its layers have no shapes yet: begin with keras.Input(shape) or call "
            "model.build(shape) and save again"
        )
    for what, form in (("inputs", "input_shape"), ("outputs", "output_shape")):
        if _is_many(model, form):
            raise Refused(f"it has several {what}, models of one are trained")
    if not model.weights:
        raise Refused("it holds no weights: there is nothing to train and fuse")
    for variable in model.weights:
        if str(variable.dtype)[0] not in KINDS or "bfloat" in str(variable.dtype):
            raise Refused(f"its {variable.path} is of dtype {variable.dtype}")


def shape_of(model: Any, which: str) -> tuple[int | None, ...] | None:
    """`input_shape` or `output_shape` of one sample, None where Keras cannot tell."""
    try:
        shape = getattr(model, which)
    except Exception:  # of a subclassed model
        return None
    known = isinstance(shape, tuple) and all(
        n is None or isinstance(n, int) for n in shape
    )
    return shape[1:] if known else None


def all_layers(model: Any) -> list[Any]:
    """Layers of a model, and of the models inside it."""
    found = []
    for layer in getattr(model, "layers", ()):
        found += [layer, *all_layers(layer)]
    return found


def _is_many(model: Any, which: str) -> bool:
    try:
        shape = getattr(model, which)
    except Exception:
        return False
    return isinstance(shape, dict | list) or (
        isinstance(shape, tuple) and any(isinstance(n, tuple) for n in shape)
    )


def _check_size(layer: Any, shape: Any, most: int) -> None:
    if math.prod(n for n in shape if n) > most:
        raise Refused(
            f"its layer {layer.name} gives {list(shape)} for one sample, more than "
            f"{most} numbers"
        )


def _called(plan: Source) -> Any:
    try:
        model = user_code.run(plan)()
    except Exception as error:
        reason = f"building it failed: {type(error).__name__}: {error}"
        raise ModelFileError(str(plan), reason) from None
    if not isinstance(model, keras.Model):
        kind = f"{type(model).__module__}.{type(model).__name__}"
        raise ModelFileError(str(plan), f"gave a {kind}, a keras.Model is needed")
    return model
