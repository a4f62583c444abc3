"""Whether a party's samples and targets fit a Keras model and its loss.

A few samples go through the model before round 1. Errors say shapes and counts.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from fedray import user_code
from fedray.errors import DataError
from fedray.models import loss_domains
from fedray.models.keras import variables
from fedray.models.keras.backend import keras
from fedray.models.keras.build import list_layers, sample_shape
from fedray.models.keras.losses import Loss
from fedray.models.loss_domains import (
    ANYTHING,
    LossUse,
    check_range,
    large_random_tensors,
)
from fedray.models.torch_samples import TorchSamples
from fedray.nested import Nested, describe, is_one, length, map_arrays, take

HANDLERS = "Keras models have the data handlers mnist_keras and cifar10_keras"


def prepare_targets(model: Any, loss: Loss, x: Nested, y: Nested) -> Nested:
    """Targets as the loss takes them; what it does not take stays, for `check`.

    Parameters
    ----------
    x : (N, ...) samples
    y : (N,), (N, 1), rows of classes (N, classes), or shaped as the outputs; None: the
        inputs are the targets

    Returns
    -------
    Labels int64, or rows of classes, or `y` in floats.
    """
    float_type = torch.get_default_dtype()
    y = x if y is None else y
    if loss.use.domain is ANYTHING:
        return map_arrays(lambda one: _to_plain(one, float_type), y)
    if not is_one(y):
        return y  # which `check` tells
    if not loss.use.domain.has_classes:
        return y.to(float_type)
    shape = _output_shape(model, x)
    if shape and not _has_axis(shape, loss.use.class_axis):
        return y  # which `check` tells
    labels = loss_domains.to_labels(y, shape, loss.use.class_axis)
    is_row = shape is not None and tuple(y.shape[1:]) == shape
    if loss.takes_rows and is_row:
        return y.to(float_type)
    if labels is None or not loss.takes_rows or shape is None:
        return y if labels is None else labels
    axis = loss.use.class_axis
    n_classes = shape[axis - (axis > 0)]
    if not _are_classes(labels, n_classes):
        return labels
    rows = torch.nn.functional.one_hot(labels, n_classes).to(float_type)
    return rows.movedim(-1, axis)


def _to_plain(array: torch.Tensor, float_type: torch.dtype) -> torch.Tensor:
    """Targets of a loss that alone knows them: whole numbers stay whole numbers."""
    return array.to(float_type) if array.is_floating_point() else array


def check(source: str, loss: LossUse, model: Any, samples: TorchSamples) -> None:
    """Compare samples and all their targets with a model and its loss.

    Raises
    ------
    DataError
        If the model does not take the samples, or the loss its outputs or the targets.
    """
    outputs: list[torch.Tensor] = []
    for x, y in samples.blocks():
        check_range(source, map_arrays(functools.partial(_as_computed, model), x), y)
        if not outputs:
            outputs = _probe_outputs(source, loss, model, samples.extremes().x)
        if loss.domain is ANYTHING:
            continue
        if not is_one(y):
            got = f"targets of {describe(y)}, for loss {loss.name}"
            needed = "one array of targets; loss: file.py:function takes several"
            raise DataError(source, got, needed)
        loss_domains.check(source, loss, outputs, y)


def _as_computed(model: Any, x: torch.Tensor) -> torch.Tensor:
    """Samples in the dtype that the first layer computes in."""
    return x.to(_compute_type(model)) if x.is_floating_point() else x


def _probe_outputs(
    source: str, loss: LossUse, model: Any, few: Nested
) -> list[torch.Tensor]:
    """The outputs for a few samples, whose axis of classes is there."""
    outputs = [compute_output(model, source, few)]
    shape = tuple(outputs[0].shape[1:])
    if shape and not _has_axis(shape, loss.class_axis):
        needed = f"an axis of the model's output {list(shape)}, the batch's being 0"
        raise DataError(source, f"loss_args: axis {loss.class_axis}", needed)
    if loss.domain.outputs != "any":
        outputs += compute_random_outputs(model, few)
    return outputs


def compute_output(model: Any, source: str, x: Nested) -> torch.Tensor:
    """The model's output for a few samples (n, ...).

    Raises
    ------
    DataError
        If it does not take them, or returns something else than one tensor.
    """
    got = f"samples of {describe(x)}"
    if is_one(x):
        _check_shape(model, source, x)
        dtype = str(x.dtype).removeprefix("torch.")
        got = f"samples of shape {list(x.shape[1:])} ({dtype})"
    if not is_one(x) or _has_several_inputs(model):
        _check_inputs(model, source, x)
    try:
        with bounded_embeddings(model):
            out = model(x, training=False)
    except Exception as error:  # Keras raises of every kind
        needed = f"what the model takes: {user_code.describe(error)}"
        raise DataError(source, got, needed) from None
    if not isinstance(out, torch.Tensor):
        got = f"a model that returns a {type(out).__name__}"
        raise DataError(source, got, "a model that returns one tensor")
    return out


def _check_shape(model: Any, source: str, x: torch.Tensor) -> None:
    """Raise DataError where one array has not the shape that the model is built for."""
    needed_shape, shape = sample_shape(model, "input_shape"), tuple(x.shape[1:])
    if needed_shape is not None and not _fits(shape, needed_shape):
        got = f"samples of shape {list(shape)} ({str(x.dtype).removeprefix('torch.')})"
        needed = str(list(needed_shape)).replace("None", "any")
        hint = f"; {HANDLERS}" if len(needed_shape) == 3 else ""
        raise DataError(source, got, f"{needed}, as the model takes{hint}")


def _has_several_inputs(model: Any) -> bool:
    return len(getattr(model, "inputs", None) or ()) > 1


def _check_inputs(model: Any, source: str, x: Nested) -> None:
    """Compare nested inputs with those of a functional model: names, number, shapes."""
    inputs = {one.name: tuple(one.shape[1:]) for one in getattr(model, "inputs", ())}
    if not inputs:  # of a subclassed model, which alone knows them
        return
    parts = {"": x} if is_one(x) else x
    if not isinstance(parts, Mapping):
        parts = dict(zip(inputs, x, strict=False)) if len(x) == len(inputs) else {}
    fits = parts.keys() == inputs.keys() and all(
        is_one(part) and _fits(tuple(part.shape[1:]), inputs[name])
        for name, part in parts.items()
    )
    if not fits:
        shapes = (f"{name}: {list(shape)}" for name, shape in inputs.items())
        needed = f"the model's inputs {', '.join(shapes)}".replace("None", "any")
        how = ", in a dict, or in a tuple in this order"
        raise DataError(source, f"samples of {describe(x)}", needed + how)


@contextlib.contextmanager
def bounded_embeddings(model: Any) -> Iterator[None]:
    """Raise IndexError for ids outside an embedding: Keras takes negative ones."""

    def bound(layer: Any) -> Callable[..., Any]:
        call = layer.call

        @functools.wraps(call)
        def checked(inputs: Any, *arguments: Any, **named: Any) -> Any:
            ids, n_rows = torch.as_tensor(inputs), layer.input_dim
            if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < n_rows:
                where = f"0..{n_rows - 1}, the rows of layer {layer.name}"
                error = IndexError(f"ids outside {where}")
                vars(error)["_keras_call_info_injected"] = True  # or Keras words it
                raise error
            return call(inputs, *arguments, **named)

        return checked

    kind = keras.layers.Embedding
    layers = [layer for layer in variables.all_layers(model) if isinstance(layer, kind)]
    for layer in layers:
        vars(layer)["call"] = bound(layer)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["call"]


def compute_random_outputs(model: Any, x: Nested) -> list[torch.Tensor]:
    """The output under large random weights: see `large_random_tensors`."""
    variables = {str(i): v for i, v in enumerate(model.trainable_variables)}
    tensors = {name: variable.value for name, variable in variables.items()}
    random = large_random_tensors(tensors)
    mapping = [(variables[name], tensor) for name, tensor in random.items()]
    try:
        with keras.StatelessScope(state_mapping=mapping):
            return [model(x, training=False)]
    except Exception:  # of layers that use their weights otherwise
        return []


def _has_axis(shape: tuple[int, ...], axis: int) -> bool:
    """Whether one sample's output has an axis, 1 being the first of one sample's."""
    return axis != 0 and -len(shape) <= axis - (axis > 0) < len(shape)


def _compute_type(model: Any) -> torch.dtype:
    """In which the first layer computes: in 16 bits where precision is mixed."""
    layers = (one for one in list_layers(model) if type(one).__name__ != "InputLayer")
    first = next(layers, model)
    return getattr(torch, first.compute_dtype)


def _output_shape(model: Any, x: Nested) -> tuple[int, ...] | None:
    """Shape of one sample's output; None if there is none, which `check` tells."""
    shape = sample_shape(model, "output_shape")
    if shape is not None and None not in shape:
        return tuple(n for n in shape if n is not None)
    if not length(x):
        return None
    try:
        with torch.no_grad():
            return tuple(model(take(x, slice(1)), training=False).shape[1:])
    except Exception:
        return None


def _are_classes(labels: torch.Tensor, n_classes: int) -> bool:
    return not len(labels) or bool((labels.min() >= 0) & (labels.max() < n_classes))


def _fits(shape: tuple[int, ...], needed: tuple[int | None, ...]) -> bool:
    return len(shape) == len(needed) and all(
        n is None or n == m for m, n in zip(shape, needed, strict=True)
    )
