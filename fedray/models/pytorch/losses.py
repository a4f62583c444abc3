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
from fedray.models.torch_samples import TorchSamples
from fedray.models.torch_trial import bounded_embeddings
from fedray.nested import (
    Nested,
    arguments,
    call,
    describe,
    length,
    map_arrays,
    take,
)

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
    loss: LossUse, module: nn.Module, x: Nested, y: torch.Tensor
) -> torch.Tensor:
    """Labels int64 where the loss takes classes and `y` names them; else `y`."""
    if not loss.domain.has_classes:
        return y
    shape = _output_shape(module, x) if y.ndim > 1 else None
    labels = loss_domains.to_labels(y, shape, loss.class_axis)
    return y if labels is None else labels


def check(source: str, loss: LossUse, module: nn.Module, samples: TorchSamples) -> None:
    """Compare samples and all their targets with a model and its loss.

    Raises
    ------
    DataError
        If the model does not take the samples, or the loss its outputs or the targets.
    """
    outputs: list[torch.Tensor] = []
    for x, y in samples.blocks():
        check_range(source, x, y)
        if not outputs:
            few = samples.extremes().x
            outputs = [compute_output(module, source, few)]
            if loss.domain.outputs != "any":
                outputs += compute_random_outputs(module, few)
        loss_domains.check(source, loss, outputs, y)


def compute_output(module: nn.Module, source: str, x: Nested) -> torch.Tensor:
    """The module's output for a few samples (n, ...), in evaluation mode.

    Raises
    ------
    DataError
        If it does not take them, or returns something else than one tensor.
    """
    module.eval()
    try:
        with torch.no_grad(), bounded_embeddings(module):
            # it may write into its input
            out = call(module, map_arrays(torch.clone, x))
    except Exception as error:  # user code raises any exception
        got = describe_samples(x)
        needed = f"what the model takes: {user_code.describe(error)}"
        raise DataError(source, got, needed) from None
    if not isinstance(out, torch.Tensor):
        got = f"a model that returns a {type(out).__name__}"
        raise DataError(source, got, "a model that returns one tensor")
    if not out.ndim or len(out) != length(x):
        n_samples = format_count(length(x), "sample")
        got = f"model output of shape {list(out.shape)} for {n_samples}"
        raise DataError(source, got, "an output for each sample, along the first axis")
    return out


def describe_samples(x: Nested) -> str:
    """What errors call samples: their shapes and dtypes."""
    if isinstance(x, torch.Tensor):
        dtype = str(x.dtype).removeprefix("torch.")
        return f"samples of shape {list(x.shape[1:])} ({dtype})"
    return f"samples of {describe(x)}"


def compute_random_outputs(module: nn.Module, x: Nested) -> list[torch.Tensor]:
    """The output under large random weights: see `large_random_tensors`."""
    random = loss_domains.large_random_tensors(dict(module.named_parameters()))
    try:
        with torch.no_grad():
            args, kwargs = arguments(map_arrays(torch.clone, x))
            out = torch.func.functional_call(module, random, args, kwargs)
    except Exception:  # of modules that are compiled, or use their weights otherwise
        return []
    return [out] if isinstance(out, torch.Tensor) else []


def _output_shape(module: nn.Module, x: Nested) -> tuple[int, ...] | None:
    """Shape of one sample's output; None if there is none, which `check` tells."""
    if not length(x):
        return None
    try:
        return tuple(compute_output(module, "", take(x, slice(1))).shape[1:])
    except DataError:
        return None
