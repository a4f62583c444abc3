"""Whether samples, targets, outputs and loss fit each other, seen on a few of them."""

from typing import Any

import torch

from fedray.errors import DataError
from fedray.models.keras.build import shape_of
from fedray.models.keras.losses import Loss

N_LOOKED_AT = 8  # samples
SUM = 1e-2  # how far from 1 probabilities may add up to, in half precision
EXACT = 1e-4  # so near to 1 no logits add up by chance
HANDLERS = "Keras models have the data handlers mnist_keras and cifar10_keras"


def targets(model: Any, loss: Loss, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Targets as the loss takes them: labels, rows of classes, or numbers."""
    is_rows = y.ndim == 2 and y.shape[1] > 1
    if loss.targets == "labels":
        return (y.argmax(1) if is_rows else y.reshape(len(y))).long()
    if loss.targets != "one_hot" or is_rows:
        return y.to(torch.get_default_dtype())
    labels = y.reshape(len(y)).long()
    n_classes = _width(model, x)
    if n_classes is None or not _are_within(labels, n_classes):
        return labels  # `check` says what is wrong
    return torch.nn.functional.one_hot(labels, n_classes).to(torch.get_default_dtype())


def output(model: Any, source: str, x: torch.Tensor) -> torch.Tensor:
    """What the model gives for a few samples.

    Raises
    ------
    DataError
        If it does not take them, or gives something else than one tensor.
    """
    needed, got = shape_of(model, "input_shape"), tuple(x.shape[1:])
    told = f"samples of shape {list(got)} ({str(x.dtype).removeprefix('torch.')})"
    if needed is not None and not _fits(got, needed):
        shown = str(list(needed)).replace("None", "any")
        hint = f"; {HANDLERS}" if len(needed) == 3 else ""
        raise DataError(source, told, f"{shown}, as the model takes{hint}")
    try:
        out = model(x, training=False)
    except Exception as error:  # Keras raises of every kind
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise DataError(source, told, f"what the model takes: {first}") from None
    if not isinstance(out, torch.Tensor):
        got = f"a model that returns a {type(out).__name__}"
        raise DataError(source, got, "a model that returns one tensor")
    return out


def check(loss: Loss, source: str, out: torch.Tensor, y: torch.Tensor) -> None:
    """Compare outputs (a few) and targets (all) with what the loss takes.

    Raises
    ------
    DataError
        If they do not fit.
    """
    if loss.targets in ("one_hot", "labels"):
        _check_classes(loss, source, out, y)
    elif out[0].numel() != y[:1].numel():
        got = f"targets of shape {list(y.shape[1:])}"
        raise DataError(source, got, f"{list(out.shape[1:])}, as the model gives")
    given = f"for loss {loss.name}"
    if loss.outputs == "probabilities" and not _add_up(out, SUM, loss.targets):
        raise DataError(
            source,
            f"outputs that are no probabilities, {given}",
            "a model that ends in softmax or sigmoid, or a loss of logits: "
            "cross_entropy, binary_cross_entropy_with_logits",
        )
    if loss.outputs == "log-probabilities" and not _add_up(out.exp(), SUM):
        got = f"outputs that are no logarithms of probabilities, {given}"
        raise DataError(source, got, "a model that ends in log_softmax")
    if loss.targets != "yes_no" and loss.outputs == "logits" and _add_up(out, EXACT):
        raise DataError(
            source,
            f"outputs that are probabilities already, {given}",
            "a model without its last softmax, or the loss categorical_crossentropy",
        )


def answers(loss: Loss, out: torch.Tensor, y: torch.Tensor) -> torch.Tensor | None:
    """Which answers are right, (N,); None where that means nothing."""
    if loss.targets == "one_hot":
        return out.argmax(-1) == y.argmax(-1)
    if loss.targets == "labels":
        return out.argmax(-1) == y
    if loss.targets == "yes_no":
        said = out > (0.5 if loss.outputs == "probabilities" else 0.0)
        return (said == (y.reshape(out.shape) > 0.5)).reshape(len(y), -1).all(1)
    return None


def _check_classes(loss: Loss, source: str, out: torch.Tensor, y: torch.Tensor) -> None:
    if out.ndim != 2:
        got = f"model output of shape {list(out.shape)}"
        raise DataError(source, got, "(samples, classes), as this loss takes")
    n_classes = out.shape[1]
    if y.ndim == 2:
        if y.shape[1] != n_classes:
            got = f"rows of {y.shape[1]} classes"
            raise DataError(source, got, f"{n_classes}, as many as the model gives")
        return
    n_wrong = int(((y < 0) | (y >= n_classes)).sum())
    if n_wrong:
        got = f"{n_wrong} of {y.numel()} labels outside 0..{n_classes - 1}"
        raise DataError(source, got, f"labels of the model's {n_classes} outputs")


def _add_up(out: torch.Tensor, near: float, kind: str = "one_hot") -> bool:
    """Do outputs lie within 0 and 1, and those of one sample add up to 1?"""
    out = out.float()
    if bool((out < 0).any()) or bool((out > 1 + SUM).any()):
        return False
    return kind == "yes_no" or bool(((out.sum(-1) - 1).abs() < near).all())


def _width(model: Any, x: torch.Tensor) -> int | None:
    shape = shape_of(model, "output_shape")
    if shape is None and len(x):
        try:
            with torch.no_grad():
                shape = model(x[:1], training=False).shape[1:]
        except Exception:  # `output` says what is wrong
            return None
    return shape[-1] if shape and len(shape) == 1 else None


def _are_within(labels: torch.Tensor, n_classes: int) -> bool:
    return not len(labels) or bool((labels.min() >= 0) & (labels.max() < n_classes))


def _fits(got: tuple[int, ...], needed: tuple[int | None, ...]) -> bool:
    return len(got) == len(needed) and all(
        n is None or n == m for m, n in zip(got, needed, strict=True)
    )
