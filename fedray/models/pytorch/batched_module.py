"""Runs one module for many parties at once, each with its own weights and dropout.

Where only linear layers are trained all parties' samples go through the module as one
batch, and those layers take each party's rows by its own weights. Any other module runs
under `torch.func.vmap`, which for small ones takes as long as the arithmetic.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.func import functional_call, vmap

BATCHED_DIMENSIONS: dict[type[nn.Module], tuple[int, ...]] = {
    # of the inputs that torch reads as (samples, channels, ...)
    nn.Dropout1d: (3,),
    nn.Dropout2d: (2, 3, 4),
    nn.Dropout3d: (5,),
}
Dropout = nn.modules.dropout._DropoutNd
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def is_linear(module: nn.Module) -> bool:
    """Whether all that is trained belongs to linear layers."""
    layers = [layer for layer in module.modules() if type(layer) is nn.Linear]
    of_linear = {id(p) for layer in layers for p in layer.parameters()}
    return all(id(p) in of_linear for p in module.parameters() if p.requires_grad)


class GradientFactors(NamedTuple):
    """What a linear layer's gradients are made of: `grad.mT @ x`, and `grad` summed.

    weight, bias : (S, O, I) and (S, 1, O); None where it is not trained.
    x, grad : (S, N, I) and (S, N, O), a row for each sample.
    """

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    x: torch.Tensor
    grad: torch.Tensor


class BatchedModule:
    """A copy of a module that shares its tensors and computes the same for a stack.

    PyTorch draws a dropout mask from the process's one generator, which a stack would
    share. Here every party has its own, seeded as training alone seeds the process's:
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
        # (p, shape of a mask, dtype) of each call of a dropout layer, in order
        self.dropouts: list[tuple[float, tuple[int, ...], torch.dtype]] = []
        self.in_one_batch = in_one_batch
        self._names = {id(p): name for name, p in self.module.named_parameters()}
        self._parameters: Mapping[
            str, torch.Tensor
        ] = {}  # of the stack that is running
        self._factors: list[GradientFactors] | None = None  # None: gradients are made
        self._masks: Iterator[torch.Tensor] | None = None  # None: record calls
        linear = self._linear_by_party if in_one_batch else _linear
        for layer in self.module.modules():
            is_trained = any(p.requires_grad for p in layer.parameters(recurse=False))
            if type(layer) is nn.Linear and is_trained:
                layer.forward = partial(linear, layer)  # type: ignore[method-assign]
            elif isinstance(layer, DROPOUTS) and type(layer) in DROPOUTS:
                layer.forward = partial(self._drop, layer)  # type: ignore[method-assign]
        self._vmapped = vmap(self._forward, randomness="error")

    def measure(self, x: torch.Tensor) -> int:
        """Record which masks one sample draws; bytes of all layers' outputs for it."""
        sizes: list[int] = []

        def add_size(layer: nn.Module, inputs: Any, out: Any) -> None:
            if isinstance(out, torch.Tensor):
                sizes.append(out.nbytes)

        layers = [layer for layer in self.module.modules() if not [*layer.children()]]
        hooks = [layer.register_forward_hook(add_size) for layer in layers]
        self.dropouts, self._masks = [], None
        try:
            with torch.no_grad():
                self.module(x[:1])
        finally:
            for hook in hooks:
                hook.remove()
        return sum(sizes)

    def draw_masks(
        self,
        generators: Sequence[torch.Generator],
        counts: Sequence[int],
        device: torch.device,
    ) -> list[torch.Tensor]:
        """Draw one batch's masks, each party's from its own generator.

        Only a party's `counts` real samples draw, so that neither padding nor who else
        is in the stack moves its stream.
        """
        masks = []
        for p, shape, dtype in self.dropouts:
            mask = torch.zeros(len(counts), max(counts), *shape, dtype=dtype)
            if p < 1:  # at 1 torch draws nothing
                for party_mask, generator, n in zip(
                    mask, generators, counts, strict=False
                ):
                    party_mask[:n].bernoulli_(1 - p, generator=generator)
                mask.div_(1 - p)
            masks.append(mask.to(device))
        return masks

    def __call__(
        self,
        parameters: Mapping[str, torch.Tensor],
        x: torch.Tensor,
        masks: list[torch.Tensor],
        factors: list[GradientFactors] | None = None,
    ) -> torch.Tensor:
        """Outputs (S, B, ...) of S parties with parameters (S, *shape), x (S, B, ...).

        Parameters
        ----------
        factors : where the backward pass leaves what gradients are made of, instead of
            the gradients; only in one batch.

        Raises
        ------
        Exception
            Any exception of vmap or of the module, where vmap cannot run it.
        """
        if not self.in_one_batch:
            return self._vmapped(dict(parameters), x, masks)
        self._parameters, self._masks = (
            parameters,
            iter(mask.flatten(0, 1) for mask in masks),
        )
        self._factors = factors
        try:
            return self.module(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        finally:
            self._parameters, self._factors = {}, None

    def _forward(
        self,
        parameters: dict[str, torch.Tensor],
        x: torch.Tensor,
        masks: list[torch.Tensor],
    ) -> torch.Tensor:
        self._masks = iter(masks)
        return functional_call(self.module, parameters, (x,))

    def _linear_by_party(self, layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        """All parties' samples through a layer, each by its own party's weights."""
        if not self._parameters:
            return nn.functional.linear(x, layer.weight, layer.bias)
        size = len(next(iter(self._parameters.values())))
        weight = self._by_party(layer.weight, size)
        has_bias = layer.bias is not None
        bias = self._by_party(layer.bias, size) if has_bias else x.new_zeros(1)
        rows, bias = x.reshape(size, -1, x.shape[-1]), bias.unsqueeze(-2)
        if self._factors is None:
            out = _EachLinear.apply(rows, weight, bias)
        else:
            out = _FactoredLinear.apply(rows, weight, bias, self._factors)
        return out.reshape(*x.shape[:-1], -1)

    def _by_party(self, parameter: torch.Tensor, size: int) -> torch.Tensor:
        """A parameter's values for each party, (S, *shape)."""
        stacked = self._parameters.get(self._names[id(parameter)])
        return parameter.expand(size, *parameter.shape) if stacked is None else stacked

    def _drop(
        self, layer: nn.modules.dropout._DropoutNd, x: torch.Tensor
    ) -> torch.Tensor:
        """Multiply by the next mask; record which one it is while measuring."""
        if layer.p == 0 or not layer.training:
            return x
        if self._masks is not None:
            return x * next(self._masks)
        shape = tuple(x.shape[1:])
        if type(layer) in BATCHED_DIMENSIONS:  # whole channels are dropped
            if x.ndim not in BATCHED_DIMENSIONS[type(layer)]:
                kind = type(layer).__name__
                raise ValueError(f"{kind} reads {x.ndim} dimensions as one sample")
            shape = (x.shape[1], *[1] * (x.ndim - 2))
        self.dropouts.append((layer.p, shape, x.dtype))
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


class _FactoredLinear(torch.autograd.Function):
    """As `_EachLinear`, but that gradients are left as their factors.

    A gradient is as large as the weights of all parties: writing it, for a step that
    reads it once, takes longer than the products.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Any, weight: Any, bias: Any, factors: list[GradientFactors]
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.factors = factors
        return torch.baddbmm(bias, x, weight.mT)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        to_x, to_weight, to_bias, _ = ctx.needs_input_grad
        own = weight if to_weight else None, bias if to_bias else None
        ctx.factors.append(GradientFactors(*own, x, grad))
        return torch.bmm(grad, weight) if to_x else None, None, None, None


def _linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """A linear layer, written so that its weight's gradient is not transposed.

    Of x @ weight.T autograd gives a stack's gradient in the other memory order, and
    turning that round for the optimizer takes longer than all else together.
    """
    flat = x.reshape(-1, x.shape[-1]).mT
    if layer.bias is None:
        out = torch.mm(layer.weight, flat)
    else:
        out = torch.addmm(layer.bias.unsqueeze(1), layer.weight, flat)
    return out.mT.reshape(*x.shape[:-1], len(layer.weight))
