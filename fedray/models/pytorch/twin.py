"""A module that many parties run at once: each with weights and dropout of its own.

The twin shares its tensors with the module it was copied from. Under `torch.func.vmap`
it computes what the module computes, for a whole stack of parties in one call.
"""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, vmap

BATCHED_DIMENSIONS = {  # of the inputs that torch reads as (samples, channels, ...)
    nn.Dropout1d: (3,),
    nn.Dropout2d: (2, 3, 4),
    nn.Dropout3d: (5,),
}
DROPOUTS = (nn.Dropout, *BATCHED_DIMENSIONS)


class Twin:
    """The copy, and the masks that its dropout layers take in the order of their calls.

    PyTorch draws a mask from the process's one generator, which a stack would share.
    Here every party has its own, seeded like training alone seeds the process's:
    on a CPU the masks are the same ones.

    Parameters
    ----------
    module : nn.Module
        In training mode; its trained parameters are those with `requires_grad`.
    """

    def __init__(self, module: nn.Module):
        shared = [*module.parameters(), *module.buffers()]
        self.module = copy.deepcopy(module, {id(tensor): tensor for tensor in shared})
        self.drops: list[tuple[float, tuple[int, ...], torch.dtype]] = []  # by call
        self._masks: Any = None
        for layer in self.module.modules():
            if type(layer) is nn.Linear and layer.weight.requires_grad:
                layer.forward = partial(_linear, layer)
            elif type(layer) in DROPOUTS:
                layer.forward = partial(self._drop, layer)
        self._vmapped = vmap(self._forward, randomness="error")

    def size_up(self, x: torch.Tensor) -> int:
        """Learn from one sample which masks are drawn; bytes of all layers' outputs."""
        sizes: list[int] = []

        def noted(layer: nn.Module, given: Any, out: Any) -> None:
            if isinstance(out, torch.Tensor):
                sizes.append(out.nbytes)

        layers = [layer for layer in self.module.modules() if not [*layer.children()]]
        hooks = [layer.register_forward_hook(noted) for layer in layers]
        self.drops, self._masks = [], None
        try:
            with torch.no_grad():
                self.module(x[:1])
        finally:
            for hook in hooks:
                hook.remove()
        return sum(sizes)

    def masks(
        self,
        generators: Sequence[torch.Generator],
        counts: Sequence[int],
        device: torch.device,
    ) -> list[torch.Tensor]:
        """Draw one batch's masks, each party's from its own generator.

        Only a party's `counts` real samples draw, so that neither padding nor who else
        is in the stack moves its stream.
        """
        drawn = []
        for p, shape, dtype in self.drops:
            mask = torch.zeros(len(counts), max(counts), *shape, dtype=dtype)
            if p < 1:  # at 1 torch draws nothing
                for own, generator, n in zip(mask, generators, counts, strict=False):
                    own[:n].bernoulli_(1 - p, generator=generator)
                mask.div_(1 - p)
            drawn.append(mask.to(device))
        return drawn

    def __call__(
        self,
        parameters: dict[str, torch.Tensor],
        x: torch.Tensor,
        masks: list[torch.Tensor],
    ) -> torch.Tensor:
        """Outputs (S, B, ...) of S parties with parameters (S, *shape), x (S, B, ...).

        Raises
        ------
        Exception
            Whatever vmap and the module raise where they cannot do with each other.
        """
        return self._vmapped(parameters, x, masks)

    def _forward(
        self,
        parameters: dict[str, torch.Tensor],
        x: torch.Tensor,
        masks: list[torch.Tensor],
    ) -> torch.Tensor:
        self._masks = iter(masks)
        return functional_call(self.module, parameters, (x,))

    def _drop(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if layer.p == 0 or not layer.training:
            return x
        if self._masks is not None:
            return x * next(self._masks)
        shape = x.shape[1:]
        if type(layer) in BATCHED_DIMENSIONS:  # whole channels are dropped
            if x.ndim not in BATCHED_DIMENSIONS[type(layer)]:
                kind = type(layer).__name__
                raise ValueError(f"{kind} reads {x.ndim} dimensions as one sample")
            shape = (x.shape[1], *[1] * (x.ndim - 2))
        self.drops.append((layer.p, tuple(shape), x.dtype))
        return x


def _linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """What `layer` computes, written so that its weight's gradient is not transposed.

    Of x @ weight.T autograd gives a stack's gradient in the other memory order, and
    turning that round for the optimizer takes longer than all else together.
    """
    flat = x.reshape(-1, x.shape[-1]).mT
    if layer.bias is None:
        out = torch.mm(layer.weight, flat)
    else:
        out = torch.addmm(layer.bias.unsqueeze(1), layer.weight, flat)
    return out.mT.reshape(*x.shape[:-1], len(layer.weight))
