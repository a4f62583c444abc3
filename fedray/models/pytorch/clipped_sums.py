"""Sums of per-sample gradients, each clipped to a norm first (DP-SGD).

Three ways to the same numbers: one sample after another, for any model; by
`torch.func.vmap` over samples; and `clipping_by_layers`.

A sample whose gradient is not finite counts as zero: else it alone would make the sum
NaN, whatever the noise.

Source: Abadi et al. 2016, arXiv:1607.00133, Algorithm 1.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import nn
from torch.func import functional_call, grad_and_value, vmap

from fedray.models.pytorch.losses import Loss
from fedray.models.pytorch.outputs import call_arguments
from fedray.nested import Nested, length, map_arrays, take

CHUNK_BYTES = {"cpu": 128 << 20, "cuda": 2 << 30}  # of per-sample gradients at a time
Tensors = Mapping[str, torch.Tensor]


class ClippedSum(NamedTuple):
    """What a batch of N samples gives.

    sums : by parameter, over all samples.
    norms, losses : (N,) of each sample's gradient before it was clipped, and its loss.
    """

    sums: dict[str, torch.Tensor]
    norms: torch.Tensor
    losses: torch.Tensor


@dataclass(frozen=True, eq=False)
class Differentiable:
    """A module and its loss as a function of samples.

    tensors : parameters that train, by name.
    others : what takes the place of the module's other parameters and buffers, and
        `tensors` of those that train; None: all are the module's own.
    """

    module: nn.Module
    loss: Loss
    tensors: Tensors
    others: Tensors | None = None

    def losses(self, x: Nested, y: Nested, tensors: Tensors) -> torch.Tensor:
        """The loss of each sample (N,) with these parameters."""
        args, kwargs = call_arguments(x, y if self.loss.takes_labels else None)
        if tensors is self.tensors and self.others is None:
            returned = self.module(*args, **kwargs)
        else:
            all_tensors = {**(self.others or {}), **tensors}
            returned = functional_call(self.module, all_tensors, args, kwargs)
        return self.loss.by_sample(returned, y)

    def with_double(self) -> "Differentiable":
        """The same in double precision; the module itself stays as it is."""
        own = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        doubles = {
            name: tensor.detach().double()
            for name, tensor in own.items()
            if tensor.is_floating_point()
        }
        trained = {name: doubles.pop(name) for name in self.tensors}
        for tensor in trained.values():
            tensor.requires_grad_()
        return Differentiable(self.module, self.loss, trained, doubles)


class Clipping(Protocol):
    """A way to take the clipped sum of a batch of one sample or more.

    name : what it is called in logs.
    """

    name: str

    def __call__(self, x: Nested, y: Nested, max_norm: float) -> ClippedSum: ...


def scales(norms: torch.Tensor, max_norm: float) -> torch.Tensor:
    """Factors (N,) that bring gradients to at most a norm; 0 of one not finite."""
    factors = (max_norm / norms).clamp(max=1.0)
    return torch.where(norms.isfinite(), factors, 0.0)


def clear_rows(tensor: torch.Tensor, is_cleared: torch.Tensor) -> torch.Tensor:
    """A copy with zeros for some samples (N,): 0 times infinity would be NaN."""
    return tensor.masked_fill(is_cleared.view(-1, *[1] * (tensor.ndim - 1)), 0.0)


class OneByOne:
    """A pass forward and backward for each sample: any model, but slow."""

    name = "one by one"

    def __init__(self, function: Differentiable):
        self.function = function

    def __call__(self, x: Nested, y: Nested, max_norm: float) -> ClippedSum:
        """The clipped sum of a batch, all as plain autograd has it."""
        sums: dict[str, torch.Tensor] = {}
        norms, losses = [], []
        for i in range(length(x)):
            loss, gradients = self._differentiate(take(x, slice(i, i + 1)), y, i)
            norm = total_norm([g.flatten()[None] for g in gradients.values()])
            factor = float(scales(norm, max_norm))
            for name, gradient in gradients.items() if factor else ():
                term = gradient * factor
                sums[name] = sums[name].add_(term) if name in sums else term
            norms.append(norm)
            losses.append(loss)
        for name, tensor in self.function.tensors.items():
            sums[name] = sums.pop(name, torch.zeros_like(tensor))  # in their order
        return ClippedSum(sums, torch.cat(norms), torch.stack(losses))

    def unused(self, x: Nested, y: Nested) -> list[str]:
        """Parameters that no sample's loss depends on."""
        names = dict(self.function.tensors)
        for i in range(length(x)):
            for name in self._differentiate(take(x, slice(i, i + 1)), y, i)[1]:
                names.pop(name, None)
            if not names:
                break
        return [*names]

    def _differentiate(
        self, x: Nested, y: Nested, i: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss and gradients of one sample, of those parameters that have one."""
        tensors = self.function.tensors
        with torch.enable_grad():
            own = take(y, slice(i, i + 1))
            loss = self.function.losses(x, own, tensors).reshape(())
        gradients = torch.autograd.grad(loss, [*tensors.values()], allow_unused=True)
        return loss.detach(), {
            name: gradient.to_dense() if gradient.is_sparse else gradient
            for name, gradient in zip(tensors, gradients, strict=True)
            if gradient is not None
        }


class ByVmap:
    """Gradients of several samples at a time, by `torch.func.vmap`.

    What a module draws at random is drawn for each sample by itself.
    """

    name = "by vmap"

    def __init__(self, function: Differentiable):
        self.function = function
        tensors = function.tensors.values()
        n_bytes = sum(tensor.nbytes for tensor in tensors)
        limit = limit_of(CHUNK_BYTES, next(iter(tensors)))
        self.chunk = max(1, limit // max(1, n_bytes))  # samples at a time

    def __call__(self, x: Nested, y: Nested, max_norm: float) -> ClippedSum:
        """The clipped sum of a batch; of many samples, some at a time."""
        sums: dict[str, torch.Tensor] = {}
        norms, losses = [], []
        for start in range(0, length(x), self.chunk):
            rows = slice(start, start + self.chunk)
            gradients, own_losses = self._differentiate(take(x, rows), take(y, rows))
            flat = {name: g.flatten(1) for name, g in gradients.items()}
            own_norms = total_norm(list(flat.values()))
            factors = scales(own_norms, max_norm)
            if not own_norms.isfinite().all():
                is_cleared = ~own_norms.isfinite()
                flat = {name: clear_rows(g, is_cleared) for name, g in flat.items()}
            for name, gradient in flat.items():
                term = (factors @ gradient).view_as(self.function.tensors[name])
                sums[name] = sums[name].add_(term) if name in sums else term
            norms.append(own_norms)
            losses.append(own_losses.detach())
        return ClippedSum(sums, torch.cat(norms), torch.cat(losses))

    def _differentiate(
        self, x: Nested, y: Nested
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Gradients (N, *shape) by name, and losses (N,)."""
        tensors = {n: t.detach() for n, t in self.function.tensors.items()}
        axes = (None, 0, None if y is None else 0)
        each = vmap(grad_and_value(self._loss), in_dims=axes, randomness="different")
        with warnings.catch_warnings():  # of operators that it runs one by one
            warnings.filterwarnings("ignore", message=".*performance drop.*")
            gradients, losses = each(tensors, x, y)
        return gradients, losses

    def _loss(self, tensors: Tensors, x: Nested, y: Nested) -> torch.Tensor:
        x, y = (map_arrays(lambda array: array[None], nest) for nest in (x, y))
        return self.function.losses(x, y, tensors).reshape(())


def limit_of(n_bytes: Mapping[str, int], tensor: torch.Tensor) -> int:
    """The limit of a tensor's device."""
    return n_bytes.get(tensor.device.type, n_bytes["cpu"])


def square_sum(rows: torch.Tensor) -> torch.Tensor:
    """(N,) squared norms of rows (N, D)."""
    return rows.square().sum(1)


def total_norm(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """(N,) norms of the rows of all parts (N, D) together."""
    return torch.stack([square_sum(part) for part in parts]).sum(0).sqrt()
