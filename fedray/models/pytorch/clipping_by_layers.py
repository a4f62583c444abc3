"""Clipped sums from what goes into layers, and the gradients of what comes out.

Of linear, convolutional and norm layers. A linear layer's gradient of a single sample
is never made, but on sequences.

Source: Goodfellow 2015, arXiv:1510.01799; convolutions and sequences: Rochette et al.
2019, arXiv:1912.06015.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from fedray.models.pytorch.clipped_sums import (
    ClippedSum,
    Differentiable,
    clear_rows,
    limit_of,
    scales,
    square_sum,
)
from fedray.nested import Nested, length

WEIGHT_BYTES = {"cpu": 128 << 20, "cuda": 2 << 30}  # of one layer's gradients, held
UNFOLDED_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}  # of inputs at all its places


class NotCovered(Exception):
    """A layer that is not called as this way needs it."""


class ByLayers:
    """Norms and clipped sums from what goes into layers and the gradients coming out.

    Raises NotCovered, when called, where a layer is not called once with an input of
    its plain form.
    """

    name = "by layers"

    def __init__(self, function: Differentiable):
        self.function = function
        self.layers = dict[nn.Module, _Layer]()
        for prefix, layer in function.module.named_modules():
            own = {n: f"{prefix}.{n}".lstrip(".") for n in ("weight", "bias")}
            trained = {n: name for n, name in own.items() if name in function.tensors}
            if trained:
                self.layers[layer] = _Layer(layer, trained)

    def __call__(self, x: Nested, y: Nested, max_norm: float) -> ClippedSum:
        """The clipped sum of a batch."""
        terms, losses = self._terms(x, y)
        norms = torch.stack([term.squares() for term in terms]).sum(0).sqrt()
        if not norms.isfinite().all():
            terms = [term.cleared(~norms.isfinite()) for term in terms]
        factors, sums = scales(norms, max_norm), dict[str, torch.Tensor]()
        for term in terms:
            sums |= term.sums(factors)
        tensors = self.function.tensors.items()
        in_order = {name: sums[name].view_as(tensor) for name, tensor in tensors}
        return ClippedSum(in_order, norms, losses)

    def _terms(self, x: Nested, y: Nested) -> tuple[list["_Terms"], torch.Tensor]:
        """What each layer's gradients are made of; and losses (N,)."""
        calls, hooks = list[_Call](), []
        try:
            for layer in self.layers:
                hook = partial(_record, calls, length(x))
                hooks.append(layer.register_forward_hook(hook))
            with torch.enable_grad():
                losses = self.function.losses(x, y, self.function.tensors)
        finally:
            for handle in hooks:
                handle.remove()
        layers = {call.layer for call in calls}
        if layers != {*self.layers} or len(calls) != len(layers):
            raise NotCovered("a layer is not called once")
        edges, terms = [call.edge for call in calls], list[_Terms]()
        gradients = torch.autograd.grad(losses.sum(), edges, allow_unused=True)
        for call, gradient in zip(calls, gradients, strict=True):
            if gradient is None:
                raise NotCovered("the loss does not depend on a layer")
            terms.append(self.layers[call.layer].terms(call.x, gradient))
        return terms, losses.detach()


class _Call(NamedTuple):
    """One call of a layer: its input, and where its output's gradient comes out.

    Of the output's place in the graph, since what follows may write into it.
    """

    layer: nn.Module
    x: torch.Tensor
    edge: GradientEdge


def _record(
    calls: list[_Call], n_samples: int, layer: nn.Module, inputs: Any, out: Any
) -> None:
    if not _is_plain(layer, inputs, n_samples):
        raise NotCovered(f"a layer {type(layer).__name__} has an input of another form")
    calls.append(_Call(layer, inputs[0].detach(), get_gradient_edge(out)))


def _is_plain(layer: nn.Module, inputs: Any, n_samples: int) -> bool:
    """Whether a layer is called with one tensor of rows, images or the like."""
    if len(inputs) != 1 or not isinstance(inputs[0], torch.Tensor):
        return False
    n_axes = inputs[0].ndim
    is_form = n_axes == 4 if isinstance(layer, nn.Conv2d) else n_axes > 1
    return is_form and len(inputs[0]) == n_samples


class _Layer:
    """A layer, and the names of those of its parameters that train."""

    def __init__(self, layer: nn.Module, names: Mapping[str, str]):
        self.layer = layer
        self.weight, self.bias = names.get("weight"), names.get("bias")

    def terms(self, x: torch.Tensor, grad: torch.Tensor) -> "_Terms":
        """What a batch's gradients are made of.

        grad : of the loss, by the layer's output.
        """
        if isinstance(self.layer, nn.Conv2d):
            return _PlacedTerms(self, x, grad.flatten(2))
        if not isinstance(self.layer, nn.Linear):
            return _norm_terms(self, x, grad)
        if x.ndim == 2:
            return _LinearTerms(self, x, grad)
        return _PlacedTerms(self, x, grad.flatten(1, -2).mT)

    def places(self, x: torch.Tensor) -> torch.Tensor:
        """What goes in at each place of samples: (n, K, L)."""
        layer: Any = self.layer
        if type(layer) is nn.Linear:
            return x.flatten(1, -2).mT
        return torch.nn.functional.unfold(
            x, layer.kernel_size, layer.dilation, layer.padding, layer.stride
        )


class _Terms(Protocol):
    """One layer's part of all samples' gradients."""

    def squares(self) -> torch.Tensor:
        """(N,) squared norms of each sample's gradient."""

    def cleared(self, is_cleared: torch.Tensor) -> "_Terms":
        """The same with nothing of some samples (N,)."""

    def sums(self, factors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Sums over samples of the gradient times a factor each (N,), by name."""


class _LinearTerms:
    """Of a linear layer: weight's gradients are outer products of `grad` and `x`.

    x, grad : (N, I) and (N, O).
    """

    def __init__(self, layer: _Layer, x: torch.Tensor, grad: torch.Tensor):
        self.layer, self.x, self.grad = layer, x, grad

    def squares(self) -> torch.Tensor:
        """The norm of an outer product is the product of the norms."""
        n_bias = 1.0 if self.layer.bias else 0.0
        of_x = square_sum(self.x) if self.layer.weight else 0.0
        return square_sum(self.grad) * (of_x + n_bias)

    def cleared(self, is_cleared: torch.Tensor) -> "_LinearTerms":
        rows = (clear_rows(tensor, is_cleared) for tensor in (self.x, self.grad))
        return _LinearTerms(self.layer, *rows)

    def sums(self, factors: torch.Tensor) -> dict[str, torch.Tensor]:
        scaled, sums = self.grad * factors[:, None], dict[str, torch.Tensor]()
        if self.layer.weight:
            sums[self.layer.weight] = scaled.mT @ self.x
        if self.layer.bias:
            sums[self.layer.bias] = scaled.sum(0)
        return sums


class _PlacedTerms:
    """Of a layer that is used at L places of a sample: products over these.

    A convolution, or a linear layer on sequences.

    x : (N, I, H, W) or (N, ..., I); grad : (N, O, L).
    """

    def __init__(self, layer: _Layer, x: torch.Tensor, grad: torch.Tensor):
        self.layer, self.x, self.grad = layer, x, grad
        self.weights: list[torch.Tensor] = []  # (n, O * K) of some samples each

    def squares(self) -> torch.Tensor:
        total = torch.zeros(len(self.x)).to(self.grad)
        if self.layer.bias:
            total += square_sum(self.grad.sum(2))
        if self.layer.weight:
            own: Any = self.layer.layer.weight
            n_bytes = own.nbytes * len(self.x)
            is_small = n_bytes <= limit_of(WEIGHT_BYTES, self.x)
            self.weights, squares = [], []
            for weights in self._each_weight():
                squares.append(square_sum(weights))
                self.weights += [weights] * is_small
            total += torch.cat(squares)
        return total

    def _each_weight(self) -> Iterator[torch.Tensor]:
        """Gradients of the weight (n, O * K), of some samples at a time."""
        layer: Any = self.layer.layer
        n_inputs = layer.weight[0].numel() * self.grad.shape[2]
        n_most = limit_of(UNFOLDED_BYTES, self.x) // (n_inputs * self.x.itemsize)
        size = max(1, n_most)
        for x, grad in zip(self.x.split(size), self.grad.split(size), strict=True):
            yield (grad @ self.layer.places(x).mT).flatten(1)

    def cleared(self, is_cleared: torch.Tensor) -> "_PlacedTerms":
        rows = (clear_rows(tensor, is_cleared) for tensor in (self.x, self.grad))
        return _PlacedTerms(self.layer, *rows)

    def sums(self, factors: torch.Tensor) -> dict[str, torch.Tensor]:
        layer, sums = self.layer, dict[str, torch.Tensor]()
        if layer.bias:
            sums[layer.bias] = factors @ self.grad.sum(2)
        if layer.weight:
            start = 0
            total: torch.Tensor | None = None
            for weights in self.weights or self._each_weight():
                own = factors[start : (start := start + len(weights))] @ weights
                total = own if total is None else total.add_(own)
            assert total is not None  # of one sample or more
            sums[layer.weight] = total
        return sums


class _SmallTerms:
    """Of a layer whose parameters are small: each sample's gradients.

    gradients : (N, D) by name.
    """

    def __init__(self, gradients: dict[str, torch.Tensor]):
        self.gradients = gradients

    def squares(self) -> torch.Tensor:
        return torch.stack([square_sum(g) for g in self.gradients.values()]).sum(0)

    def cleared(self, is_cleared: torch.Tensor) -> "_SmallTerms":
        cleared = {n: clear_rows(g, is_cleared) for n, g in self.gradients.items()}
        return _SmallTerms(cleared)

    def sums(self, factors: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: factors @ g for name, g in self.gradients.items()}


def _norm_terms(layer: _Layer, x: torch.Tensor, grad: torch.Tensor) -> _SmallTerms:
    """Of a norm within each sample: it scales and shifts what it made even."""
    own: Any = layer.layer
    if isinstance(own, nn.GroupNorm):
        even = torch.nn.functional.group_norm(x, own.num_groups, eps=own.eps)
        places = [*range(2, x.ndim)]
    else:
        even = torch.nn.functional.layer_norm(x, own.normalized_shape, eps=own.eps)
        places = [*range(1, x.ndim - len(own.normalized_shape))]
    each = {layer.weight: grad * even, layer.bias: grad}
    return _SmallTerms(
        {
            name: (term.sum(places) if places else term).flatten(1)
            for name, term in each.items()
            if name is not None
        }
    )


def obstacle_to_layers(function: Differentiable) -> str | None:
    """Why a model's gradients cannot be clipped by layers; None if they can.

    Whether each is called once, only running it tells.
    """
    if not function.loss.has_each:
        return "the loss is a mean over a batch"
    rest, n_names = {*function.tensors}, dict[int, int]()
    named = function.module.named_parameters(remove_duplicate=False)
    for _, parameter in named:
        n_names[id(parameter)] = n_names.get(id(parameter), 0) + 1
    for prefix, layer in function.module.named_modules():
        own = [f"{prefix}.{name}".lstrip(".") for name in layer._parameters]
        if not rest.intersection(own):
            continue
        if reason := _form_problem(layer):
            return f"{prefix or 'the module'} is {reason}"
        if any(n_names[id(p)] > 1 for p in layer._parameters.values() if p is not None):
            return f"parameters of {prefix} are shared"
        rest -= {*own}
    return f"{min(rest)} belongs to no layer" if rest else None


def _form_problem(layer: nn.Module) -> str | None:
    """Why a layer has not the plain form of which `ByLayers` knows the gradients."""
    kind = type(layer).__name__
    if {*layer._parameters} != {"weight", "bias"}:
        return f"a {kind}"
    if type(layer) in (nn.Linear, nn.GroupNorm, nn.LayerNorm):
        return None
    if type(layer) is not nn.Conv2d:
        return f"a {kind}"
    if layer.groups != 1:
        return "a Conv2d of several groups"
    is_plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return None if is_plain else "a Conv2d of another padding"
