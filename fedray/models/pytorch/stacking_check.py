"""Decides whether parties can train stacked: by layers, size, then a comparison."""

from typing import Protocol, Self

import numpy as np
import torch
from torch import nn

from fedray.config import RunConfig
from fedray.models.base import PartySlice, SingleModel, log_unstacked
from fedray.models.pytorch.batched_module import is_linear
from fedray.models.pytorch.stacked import ELEMENTWISE, Stack, base_name
from fedray.weights import Weights, row

MAX_MODEL_BYTES = 32 << 20  # past this not even one party's numbers stay in a cache
TOLERANCE = 1e-4  # of a tensor's largest change


class ComparableModel(SingleModel, Protocol):
    """What the comparison needs of a PyTorch model."""

    config: RunConfig
    module: nn.Module
    trained: list[nn.Parameter]

    def losses(
        self, out: torch.Tensor, targets: torch.Tensor, reduction: str = "none"
    ) -> torch.Tensor:
        """Losses of outputs, one for each sample or reduced as torch names it."""

    def copy_for_comparison(self, dtype: torch.dtype | None) -> Self:
        """An independent copy that takes one plain SGD step and drops nothing."""


def stack_or_none(
    model: ComparableModel, weights: Weights, x: torch.Tensor, y: torch.Tensor
) -> Stack | None:
    """A stack for this model's parties, or None after logging why there is none."""
    config = model.config
    if config.stacked == "false":
        return None
    reason = _static_obstacle(config, model.module)
    if reason is not None:
        log_unstacked(config, reason)
        return None
    model.module.train()
    for in_one_batch in [True, False] if is_linear(model.module) else [False]:
        try:
            reason = _find_difference(model, weights, (x, y), in_one_batch)
            stack = Stack(model.module, config, model.losses, in_one_batch)
            stack.measure(x)
        except Exception as error:  # user modules and vmap raise any exception
            lines = str(error).strip().splitlines() or [""]
            reason = f"{type(error).__name__}: {lines[0][:200]}"
        if reason is None:
            return stack
    log_unstacked(config, reason or "")
    return None


def _static_obstacle(config: RunConfig, module: nn.Module) -> str | None:
    """Why config, layers or size alone rule stacking out; None if they do not."""
    if base_name(config) not in ELEMENTWISE:
        return f"{config.optimizer} is not known to move every number by itself"
    n_bytes = sum(tensor.nbytes for tensor in module.state_dict().values())
    if n_bytes > MAX_MODEL_BYTES:
        return f"a model of {n_bytes >> 20} MiB gains nothing and takes much memory so"
    for name, layer in module.named_modules():
        prefix = f"layer {name or '(all)'}, {type(layer).__name__},"
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            return f"{prefix} mixes the samples of a batch"
        is_random = isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0
        if config.stacked == "auto" and is_random:
            return f"{prefix} is random"
    return None


def _find_difference(
    model: ComparableModel,
    weights: Weights,
    samples: tuple[torch.Tensor, torch.Tensor],
    in_one_batch: bool,
) -> str | None:
    """What stacked training of two parties gets wrong; None if nothing.

    Compared in double precision, in the model's own only if it runs in no other: in
    single precision an activation next to a kink may fall on either side of it.
    """
    x, y = samples
    places = torch.linspace(0, len(x) - 1, 5).long().to(x.device)
    x, y = x[places], y[places]
    try:
        copied = model.copy_for_comparison(torch.float64)
        return _compare(copied, weights, (_to_double(x), _to_double(y)), in_one_batch)
    except Exception:  # such as a module that says x.float()
        copied = model.copy_for_comparison(None)
        return _compare(copied, weights, (x, y), in_one_batch)


def _to_double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _compare(
    model: ComparableModel,
    weights: Weights,
    samples: tuple[torch.Tensor, torch.Tensor],
    in_one_batch: bool,
) -> str | None:
    """Train two parties one step singly and stacked; one has to fill up its batch."""
    parts = [PartySlice(np.array([0, 1, 2]), 1), PartySlice(np.array([3, 4]), 2)]
    single = []
    for part in parts:
        model.load(weights)
        shared = _untrained_tensors(model)
        loss = model.train(*samples, part.rows, part.seed)
        arrays = {name: array.copy() for name, array in model.weights().items()}
        single.append(arrays | {"": np.array(loss)})
        for name, (tensor, before) in shared.items():
            if not torch.equal(tensor, before):
                return f"{name} changes in training, which a stack would share"
    model.load(weights)
    stack = Stack(model.module, model.config, model.losses, in_one_batch)
    random_state = torch.get_rng_state()
    losses, stacked = stack.train(parts, *samples)
    if not torch.equal(random_state, torch.get_rng_state()):
        return "it draws random numbers outside of dropout layers"
    for i, expected in enumerate(single):
        actual = row(stacked, i) | {"": losses[i]}
        for name in expected:
            start = weights.get(name, np.zeros(()))
            if not _is_close(expected[name], actual[name], start):
                return f"{name or 'the loss'} comes out otherwise than trained alone"
    return None


def _untrained_tensors(
    model: ComparableModel,
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Parameters and buffers that training must not move, and copies of them."""
    trained = {id(parameter) for parameter in model.trained}
    tensors: list[tuple[str, torch.Tensor]] = [
        *model.module.named_parameters(),
        *model.module.named_buffers(),
    ]
    return {
        name: (tensor, tensor.detach().clone())
        for name, tensor in tensors
        if id(tensor) not in trained
    }


def _is_close(single: np.ndarray, stacked: np.ndarray, start: np.ndarray) -> bool:
    """Whether two results of a training from `start` differ by rounding only."""
    if not np.size(single):
        return True
    change = np.abs(np.subtract(single, start, dtype=np.float64)).max()
    rounding = 1e-6 * np.abs(single).max()
    difference = np.abs(np.subtract(single, stacked, dtype=np.float64)).max()
    return bool(difference <= TOLERANCE * change + rounding)
