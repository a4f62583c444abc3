"""A module that many parties run at once: each with weights and dropout of its own.

The twin shares its tensors with the module it was copied from, and computes what that
computes, for a whole stack of parties in one call. Where only linear layers are trained
all parties' samples go through it as one batch, and those layers take each party's rows
by its own weights. Any other module runs under `torch.func.vmap`, which for small ones
takes as long as the arithmetic.
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


def is_linear(module: nn.Module) -> bool:
    """Whether all that is trained belongs to linear layers."""
    layers = [layer for layer in module.modules() if type(layer) is nn.Linear]
    own = {id(p) for layer in layers for p in layer.parameters()}
    return all(id(p) in own for p in module.parameters() if p.requires_grad)


class Twin:
    """The copy, and the masks that its dropout layers take in the order of their calls.

    PyTorch draws a mask from the process's one generator, which a stack would share.
    Here every party has its own, seeded like training alone seeds the process's:
    on a CPU the masks are the same ones.

    Parameters
    ----------
    module : nn.Module
        In training mode; its trained parameters are those with `requires_grad`.
    in_one_batch : bool
        If only linear layers are trained and no other mixes samples.
    """

    def __init__(self, module: nn.Module, in_one_batch: bool):
        shared = [*module.parameters(), *module.buffers()]
        self.module = copy.deepcopy(module, {id(tensor): tensor for tensor in shared})
        self.drops: list[tuple[float, tuple[int, ...], torch.dtype]] = []  # by call
        self.in_one_batch = in_one_batch
        self._names = {id(p): name for name, p in self.module.named_parameters()}
        self._own: dict[str, torch.Tensor] = {}  # parameters of who is running it
        self._masks: Any = None
        linear = self._by_party if in_one_batch else _linear
        for layer in self.module.modules():
            trained = any(p.requires_grad for p in layer.parameters(recurse=False))
            if type(layer) is nn.Linear and trained:
                layer.forward = partial(linear, layer)
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
        if not self.in_one_batch:
            return self._vmapped(parameters, x, masks)
        self._own, self._masks = parameters, iter(mask.flatten(0, 1) for mask in masks)
        try:
            return self.module(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        finally:
            self._own = {}

    def _forward(
        self,
        parameters: dict[str, torch.Tensor],
        x: torch.Tensor,
        masks: list[torch.Tensor],
    ) -> torch.Tensor:
        self._masks = iter(masks)
        return functional_call(self.module, parameters, (x,))

    def _by_party(self, layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        """All parties' samples through a layer, each by its own party's weights."""
        if not self._own:
            return nn.functional.linear(x, layer.weight, layer.bias)
        size = len(next(iter(self._own.values())))
        weight, bias = self._of_each(layer.weight, size), layer.bias
        bias = x.new_zeros(1) if bias is None else self._of_each(bias, size)
        rows = x.reshape(size, -1, x.shape[-1])
        out = _EachLinear.apply(rows, weight, bias.unsqueeze(-2))
        return out.reshape(*x.shape[:-1], -1)

    def _of_each(self, parameter: torch.Tensor, size: int) -> torch.Tensor:
        own = self._own.get(self._names[id(parameter)])
        return parameter.expand(size, *parameter.shape) if own is None else own

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


class _EachLinear(torch.autograd.Function):
    """x (S, N, I) times each party's weight (S, O, I), plus its bias (S, 1, O).

    Written out so that the weight's gradient comes in the weight's own memory order.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias, x, weight.mT)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            torch.bmm(grad, weight) if to_x else None,
            torch.bmm(grad.mT, x) if to_weight else None,
            grad.sum(1, keepdim=True) if to_bias else None,
        )


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
