"""Checks that samples, targets, model outputs and loss fit each other.

Done on a few samples before round 1. Errors say shapes, never a sample's values.
"""

from typing import Any

import torch

from fedray.errors import DataError
from fedray.models.keras.build import sample_shape
from fedray.models.keras.losses import Loss
from fedray.models.torch_common import are_correct, check_labels, to_labels

N_SAMPLES = 8  # that a probe runs through the model
SUM_TOLERANCE = 1e-2  # by which probabilities may miss a sum of 1, in half precision
EXACT_TOLERANCE = 1e-4  # so near to a sum of 1 no logits come by chance
HANDLERS = "Keras models have the data handlers mnist_keras and cifar10_keras"


def prepare_targets(
    model: Any, loss: Loss, x: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    """Targets as the loss takes them.

    Parameters
    ----------
    x : (N, ...) samples
    y : (N,), (N, 1) or (N, classes)

    Returns
    -------
    Labels (N,) int64, rows of classes (N, classes), or `y` in floats. Labels that are
    no classes of the model are returned as they are: `check_outputs` refuses them.
    """
    if loss.targets == "labels":
        return to_labels(y)
    is_one_hot = y.ndim == 2 and y.shape[1] > 1
    if loss.targets != "one_hot" or is_one_hot:
        return y.to(torch.get_default_dtype())
    labels = y.reshape(len(y)).long()
    n_classes = _n_outputs(model, x)
    if n_classes is None or not _are_classes(labels, n_classes):
        return labels
    return torch.nn.functional.one_hot(labels, n_classes).to(torch.get_default_dtype())


def compute_output(model: Any, source: str, x: torch.Tensor) -> torch.Tensor:
    """The model's output for a few samples (N, ...).

    Raises
    ------
    DataError
        If it does not take them, or returns something else than one tensor.
    """
    needed_shape, shape = sample_shape(model, "input_shape"), tuple(x.shape[1:])
    got = f"samples of shape {list(shape)} ({str(x.dtype).removeprefix('torch.')})"
    if needed_shape is not None and not _fits(shape, needed_shape):
        needed = str(list(needed_shape)).replace("None", "any")
        hint = f"; {HANDLERS}" if len(needed_shape) == 3 else ""
        raise DataError(source, got, f"{needed}, as the model takes{hint}")
    try:
        out = model(x, training=False)
    except Exception as error:  # Keras raises of every kind
        first_line = (str(error).strip().splitlines() or [""])[0][:200]
        raise DataError(source, got, f"what the model takes: {first_line}") from None
    if not isinstance(out, torch.Tensor):
        got = f"a model that returns a {type(out).__name__}"
        raise DataError(source, got, "a model that returns one tensor")
    return out


def check_outputs(loss: Loss, source: str, out: torch.Tensor, y: torch.Tensor) -> None:
    """Compare outputs of a few samples, and all targets, with what the loss takes.

    Raises
    ------
    DataError
        If they do not fit.
    """
    if loss.targets in ("one_hot", "labels"):
        _check_classes(source, out, y)
    elif out[0].numel() != y[:1].numel():
        got = f"targets of shape {list(y.shape[1:])}"
        raise DataError(source, got, f"{list(out.shape[1:])}, as the model gives")
    for_loss = f"for loss {loss.name}"
    is_binary = loss.targets == "binary"
    if loss.outputs == "probabilities" and not (
        _are_probabilities(out) if is_binary else _sum_to_one(out, SUM_TOLERANCE)
    ):
        raise DataError(
            source,
            f"outputs that are no probabilities, {for_loss}",
            "a model that ends in softmax or sigmoid, or a loss of logits: "
            "cross_entropy, binary_cross_entropy_with_logits",
        )
    if loss.outputs == "log-probabilities" and not _sum_to_one(
        out.exp(), SUM_TOLERANCE
    ):
        got = f"outputs that are no logarithms of probabilities, {for_loss}"
        raise DataError(source, got, "a model that ends in log_softmax")
    if loss.outputs == "logits" and not is_binary and _sum_to_one(out, EXACT_TOLERANCE):
        raise DataError(
            source,
            f"outputs that are probabilities already, {for_loss}",
            "a model without its last softmax, or the loss categorical_crossentropy",
        )


def right_answers(
    loss: Loss, out: torch.Tensor, y: torch.Tensor
) -> torch.Tensor | None:
    """Which outputs name the right class, (N,); None for targets that are values."""
    if loss.targets == "one_hot":
        return out.argmax(-1) == y.argmax(-1)
    if loss.targets == "labels":
        return out.argmax(-1) == y
    if loss.targets == "binary":
        return are_correct(out, y, 0.5 if loss.outputs == "probabilities" else 0.0)
    return None


def _check_classes(source: str, out: torch.Tensor, y: torch.Tensor) -> None:
    if out.ndim != 2:
        got = f"model output of shape {list(out.shape)}"
        raise DataError(source, got, "(samples, classes), as this loss takes")
    n_classes = out.shape[1]
    if y.ndim == 2:
        if y.shape[1] != n_classes:
            got = f"rows of {y.shape[1]} classes"
            raise DataError(source, got, f"{n_classes}, as many as the model gives")
        return
    check_labels(source, y, n_classes)


def _are_probabilities(out: torch.Tensor) -> bool:
    """Whether all outputs lie within 0 and 1."""
    out = out.float()
    return not bool((out < 0).any()) and not bool((out > 1 + SUM_TOLERANCE).any())


def _sum_to_one(out: torch.Tensor, tolerance: float) -> bool:
    """Whether outputs lie within 0 and 1 and those of each sample sum to 1."""
    sums = out.float().sum(-1)
    return _are_probabilities(out) and bool(((sums - 1).abs() < tolerance).all())


def _n_outputs(model: Any, x: torch.Tensor) -> int | None:
    """Classes of a model whose output is (N, classes); None if it has another shape."""
    shape = sample_shape(model, "output_shape")
    if shape is None and len(x):
        try:
            with torch.no_grad():
                shape = model(x[:1], training=False).shape[1:]
        except Exception:  # `compute_output` says what is wrong
            return None
    return shape[-1] if shape and len(shape) == 1 else None


def _are_classes(labels: torch.Tensor, n_classes: int) -> bool:
    return not len(labels) or bool((labels.min() >= 0) & (labels.max() < n_classes))


def _fits(shape: tuple[int, ...], needed: tuple[int | None, ...]) -> bool:
    return len(shape) == len(needed) and all(
        n is None or n == m for m, n in zip(shape, needed, strict=True)
    )
