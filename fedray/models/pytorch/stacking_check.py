"""Whether a model is to be trained stacked: what its layers say, then a small trial."""

import copy
import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from fedray.config import FederationConfig
from fedray.models.base import PartySlice, log_unstacked
from fedray.models.pytorch.batched_module import DROPOUTS, is_linear
from fedray.models.pytorch.stacked import ELEMENTWISE, Stack
from fedray.weights import Weights, row

if TYPE_CHECKING:
    from fedray.models.pytorch.model import TorchModel

LARGE = 32 << 20  # bytes; past this not even one party's numbers stay in a cache
TOLERANCE = 1e-4  # of a tensor's largest change


def stack_for(
    model: "TorchModel", weights: Weights, x: torch.Tensor, y: torch.Tensor
) -> Stack | None:
    """Make room for stacked training, or say in the log why there will be none."""
    config = model.config
    if config.stacked == "false":
        return None
    why = _obstacle(config, model.module)
    if why is None:
        model.module.train()
        for in_one_batch in [True, False] if is_linear(model.module) else [False]:
            try:
                why = _difference(model, weights, (x, y), in_one_batch)
                stack = Stack(model.module, config, model.losses, in_one_batch)
                stack.size_up(x)
            except Exception as error:  # whatever a stranger's module and vmap raise
                first = str(error).strip().splitlines() or [""]
                why = f"{type(error).__name__}: {first[0][:200]}"
            if why is None:
                return stack
    log_unstacked(config, why)
    return None


def _obstacle(config: FederationConfig, module: nn.Module) -> str | None:
    """What config, layers and size alone tell against it."""
    if config.optimizer.rpartition(".")[2] not in ELEMENTWISE:
        return f"{config.optimizer} is not known to move every number by itself"
    size = sum(tensor.nbytes for tensor in module.state_dict().values())
    if size > LARGE:
        return f"a model of {size >> 20} MiB gains nothing and takes much memory so"
    for name, layer in module.named_modules():
        kind = f"layer {name or '(all)'}, {type(layer).__name__},"
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            return f"{kind} mixes the samples of a batch"
        is_random = isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0
        if config.stacked == "auto" and is_random:
            return f"{kind} is random"
    return None


def _difference(
    model: "TorchModel",
    weights: Weights,
    samples: tuple[torch.Tensor, torch.Tensor],
    in_one_batch: bool,
) -> str | None:
    """Compare in double precision; in the model's own if it can do no other.

    In single precision an activation next to a kink may fall on either side of it.
    """
    x, y = samples
    few = torch.linspace(0, len(x) - 1, 5).long().to(x.device)
    x, y = x[few], y[few]
    try:
        wide = [t.double() if t.is_floating_point() else t for t in (x, y)]
        return _compare(_copy(model, torch.float64), weights, wide, in_one_batch)
    except Exception:  # such as a module that says x.float()
        return _compare(_copy(model, None), weights, [x, y], in_one_batch)


def _compare(
    tried: "TorchModel",
    weights: Weights,
    samples: list[torch.Tensor],
    in_one_batch: bool,
) -> str | None:
    """Train two parties one step both ways; one of them has to fill up its batch."""
    parts = [PartySlice(np.array([0, 1, 2]), 1), PartySlice(np.array([3, 4]), 2)]
    alone = []
    for part in parts:
        tried.load(weights)
        own = {id(parameter) for parameter in tried.trained}
        state = *tried.module.named_parameters(), *tried.module.named_buffers()
        shared = [(n, t, t.detach().clone()) for n, t in state if id(t) not in own]
        loss = tried.train(*samples, part.rows, part.seed)
        alone.append({n: a.copy() for n, a in tried.weights().items()} | {"": loss})
        for name, tensor, before in shared:
            if not torch.equal(tensor, before):
                return f"{name} changes in training, which a stack would share"
    tried.load(weights)
    stack = Stack(tried.module, tried.config, tried.losses, in_one_batch)
    before = torch.get_rng_state()
    losses, arrays = stack.train(parts, *samples)
    if not torch.equal(before, torch.get_rng_state()):
        return "it draws random numbers outside of dropout layers"
    together = [row(arrays, i) | {"": loss} for i, loss in enumerate(losses)]
    for ends, own in zip(alone, together, strict=True):
        for name in ends:
            if not _close(ends[name], own[name], weights.get(name, 0.0)):
                return f"{name or 'the loss'} comes out otherwise than trained alone"
    return None


def _copy(model: "TorchModel", dtype: torch.dtype | None) -> "TorchModel":
    """A model of its own that takes plain SGD steps and drops nothing.

    Other optimizers make much of the smallest difference, and a GPU draws dropout's
    masks in its own way.
    """
    tried = copy.copy(model)
    plain = {"optimizer": "optim.SGD", "optimizer_args": {}, "learning_rate": 1.0}
    once = {"epochs": 1, "batch_size": 3, "proximal_mu": 0.0}
    tried.config = dataclasses.replace(model.config, **plain, **once)
    tried.module = copy.deepcopy(model.module).to(dtype=dtype)
    for layer in tried.module.modules():
        if type(layer) in DROPOUTS:
            layer.p = 0.0
    tried.tensors = tried.module.state_dict()
    tried.trained = [p for p in tried.module.parameters() if p.requires_grad]
    return tried


def _close(alone: np.ndarray, stacked: np.ndarray, start: np.ndarray) -> bool:
    if not np.size(alone):
        return True
    change = np.abs(np.subtract(alone, start, dtype=np.float64)).max()
    rounding = 1e-6 * np.abs(alone).max()
    difference = np.abs(np.subtract(alone, stacked, dtype=np.float64)).max()
    return bool(difference <= TOLERANCE * change + rounding)
