"""Losses of torch.nn.functional by name, and whether a party's samples fit them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fedray import user_code
from fedray.config import describe_unknown
from fedray.errors import ConfigError, DataError, format_count
from fedray.models import loss_domains
from fedray.models.loss_domains import NOT_USABLE, PYTORCH, LossUse, check_range
from fedray.models.torch_trial import bounded_embeddings, probed_rows

LOSSES = tuple(PYTORCH)


def named(name: str) -> Callable[..., Any]:
    """Find a loss of torch.nn.functional.

    Raises
    ------
    ConfigError
        If it is not one of `LOSSES`.
    """
    if name in NOT_USABLE:
        choices = ", ".join(LOSSES)
        raise ConfigError(
            [f"loss {name} cannot be used: {NOT_USABLE[name]}; choose from {choices}"]
        )
    if name not in LOSSES:
        raise ConfigError([describe_unknown("loss", name, LOSSES)])
    return getattr(torch.nn.functional, name)


def use(name: str, is_default: bool) -> LossUse:
    """A loss and its domain, for `loss_domains.check`."""
    return LossUse(name, PYTORCH[name], PYTORCH, is_default=is_default)


def prepare_targets(
    loss: LossUse, module: nn.Module, x: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    """Labels int64 where the loss takes classes and `y` names them; else `y`."""
    if not loss.domain.has_classes:
        return y
    shape = _output_shape(module, x) if y.ndim > 1 else None
    labels = loss_domains.to_labels(y, shape, loss.class_axis)
    return y if labels is None else labels


def check(
    source: str, loss: LossUse, module: nn.Module, x: torch.Tensor, y: torch.Tensor
) -> None:
    """Compare samples (N, ...) and all their targets with a model and its loss.

    Raises
    ------
    DataError
        If the model does not take the samples, or the loss its outputs or the targets.
    """
    check_range(source, x, y)
    few = x[probed_rows(x, y)]
    outputs = [compute_output(module, source, few)]
    if loss.domain.outputs != "any":
        outputs += compute_random_outputs(module, few)
    loss_domains.check(source, loss, outputs, y)


def compute_output(module: nn.Module, source: str, x: torch.Tensor) -> torch.Tensor:
    """The module's output for a few samples (n, ...), in evaluation mode.

    Raises
    ------
    DataError
        If it does not take them, or returns something else than one tensor.
    """
    module.eval()
    try:
        with torch.no_grad(), bounded_embeddings(module):
            out = module(x.clone())  # it may write into its input
    except Exception as error:  # user code raises any exception
        dtype = str(x.dtype).removeprefix("torch.")
        got = f"samples of shape {list(x.shape[1:])} ({dtype})"
        needed = f"what the model takes: {user_code.describe(error)}"
        raise DataError(source, got, needed) from None
    if not isinstance(out, torch.Tensor):
        got = f"a model that returns a {type(out).__name__}"
        raise DataError(source, got, "a model that returns one tensor")
    if not out.ndim or len(out) != len(x):
        n_samples = format_count(len(x), "sample")
        got = f"model output of shape {list(out.shape)} for {n_samples}"
        raise DataError(source, got, "an output for each sample, along the first axis")
    return out


def compute_random_outputs(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The output under large random weights: see `large_random_tensors`."""
    random = loss_domains.large_random_tensors(dict(module.named_parameters()))
    try:
        with torch.no_grad():
            out = torch.func.functional_call(module, random, (x.clone(),))
    except Exception:  # of modules that are compiled, or use their weights otherwise
        return []
    return [out] if isinstance(out, torch.Tensor) else []


def _output_shape(module: nn.Module, x: torch.Tensor) -> tuple[int, ...] | None:
    """Shape of one sample's output; None if there is none, which `check` tells."""
    if not len(x):
        return None
    try:
        return tuple(compute_output(module, "", x[:1]).shape[1:])
    except DataError:
        return None
