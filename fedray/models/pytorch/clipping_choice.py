"""Which way a model's gradients are clipped for DP-SGD, and models that are refused.

Decided before round 1, from a few of a party's samples: a way that gives other numbers
than samples taken one by one is not used.
"""

import logging
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import nn

from fedray import datasets, user_code
from fedray.config import RunConfig
from fedray.errors import TrialFailed
from fedray.models import torch_common, torch_state
from fedray.models.pytorch.clipped_sums import (
    ByVmap,
    ClippedSum,
    Clipping,
    Differentiable,
    OneByOne,
)
from fedray.models.pytorch.clipping_by_layers import ByLayers, obstacle_to_layers
from fedray.models.pytorch.losses import Loss
from fedray.models.torch_batches import has_own_collate
from fedray.models.torch_datasets import DatasetSamples
from fedray.models.torch_samples import TensorSamples, TorchSamples
from fedray.models.torch_state import OutsideState
from fedray.models.torch_trial import EMBEDDINGS, OnePart, explained
from fedray.nested import map_arrays

log = logging.getLogger("fedray")
N_TRIED = 64  # samples of which one has to use a parameter
N_COMPARED = 8  # samples that ways are compared on
TOLERANCE = 1e-5  # of a parameter's largest number
ROUNDING = 1e-6  # of the largest of all: a gradient may be zero but for rounding
MAX_REASON = 160  # characters of why a way does not work
TRAINING = "training with dp_sgd"
DTYPES = (torch.float32, torch.float64)


class ClippingChoice(NamedTuple):
    """A way to clip, and in words why it is not a faster one.

    slow_because : empty for the fastest way.
    """

    clip: Clipping
    slow_because: str = ""

    @property
    def is_one_by_one(self) -> bool:
        """Whether a step takes about as long as its batch has samples."""
        return isinstance(self.clip, OneByOne)


def log_choice(source: str, choice: ClippingChoice) -> None:
    """Log how a party's gradients are clipped; a warning if that is slow."""
    text = "%s: gradients are clipped %s"
    reason = f" ({choice.slow_because})" if choice.slow_because else ""
    level = logging.WARNING if choice.is_one_by_one else logging.INFO
    log.log(level, text, source, f"{choice.clip.name}{reason}")


class ClippedModel(Protocol):
    """What the choice needs of a live PyTorch model."""

    module: nn.Module
    loss: Loss
    outside: OutsideState
    config: RunConfig


def max_norm_of(config: RunConfig) -> float:
    """The longest gradient of a sample; of a config that has dp_sgd."""
    assert config.dp_sgd is not None
    return config.dp_sgd.max_grad_norm


def differentiable(model: ClippedModel) -> Differentiable:
    """The model's loss of samples, by those of its parameters that train."""
    named = model.module.named_parameters()
    trained = {name: p for name, p in named if p.requires_grad}
    return Differentiable(model.module, model.loss, trained)


def choose_clipping(
    model: ClippedModel, source: str, samples: TensorSamples
) -> ClippingChoice:
    """Compare the ways on a few samples; the model stays as it is.

    samples : up to `N_TRIED`, the extreme ones first.

    Raises
    ------
    TrialFailed
        If the model cannot be trained so that each sample's part is bounded.
    """
    _check_layers(source, model.module)
    function = differentiable(model)
    _check_dtypes(source, function)
    try:
        with torch_state.random_scope(model.config.seed), model.outside.undo():
            _check_state(source, model, samples.copy(1))
            comparison = _Comparison(source, model, samples)
            return comparison.choose()
    finally:
        model.module.train()


def check_sampling(source: str, samples: TorchSamples) -> None:
    """Refuse samples of which no batch can be drawn by chance, each by itself."""
    if not isinstance(samples, DatasetSamples):
        return
    part = samples.part
    if part.is_stream:
        got = "its samples only come one after another, and batches are drawn by chance"
        remedy = "give arrays, or a dataset with places (len() and [i])"
    elif datasets.has_own_order(part.loader):
        got = "its DataLoader has a sampler of its own, and batches are drawn by chance"
        remedy = "leave the sampler out"
    elif has_own_collate(part.loader):
        got = (
            "its DataLoader has a collate_fn of its own: a sample that is padded as "
            "the others of its batch are depends on them"
        )
        remedy = "leave it out, and pad to one length in the dataset"
    else:
        return
    raise TrialFailed(source, TRAINING, f"since {got}", remedy)


def _check_layers(source: str, module: nn.Module) -> None:
    """Refuse batch norm, which mixes samples, and embeddings that shorten rows."""
    module.train()
    for name, layer in module.named_modules():
        where = f"since layer {name or '(all)'}, {type(layer).__name__},"
        if isinstance(layer, EMBEDDINGS) and layer.max_norm is not None:
            reason = f"{where} shortens the rows that samples name, without noise"
            raise TrialFailed(source, TRAINING, reason, "leave its max_norm out")
        if [*layer.children()] or not torch_common.takes_batch_statistics(layer):
            continue
        reason = f"{where} mixes the samples of a batch, so that none is bounded"
        remedy = "take nn.GroupNorm or nn.LayerNorm instead"
        raise TrialFailed(source, TRAINING, reason, remedy)


def _check_dtypes(source: str, function: Differentiable) -> None:
    """Refuse parameters that are complex, or of 16 bits."""
    for name, tensor in function.tensors.items():
        if tensor.dtype not in DTYPES:
            dtype = str(tensor.dtype).removeprefix("torch.")
            reason = f"since parameter {name} is {dtype}, too coarse for bounded norms"
            raise TrialFailed(source, TRAINING, reason, "build the model in float32")


def _check_state(source: str, model: ClippedModel, one: TensorSamples) -> None:
    """Refuse a module whose tensors change as it runs: they would hold samples."""
    before = {name: t.detach().clone() for name, t in _tensors_of(model.module)}
    function = differentiable(model)
    part = OnePart("the model")
    with explained(part, source, TRAINING, model.config), torch.no_grad():
        function.losses(one.x, one.y, function.tensors)
    changes = [
        name
        for name, tensor in _tensors_of(model.module)
        if name not in before or not _equal(tensor, before[name])
    ]
    if name := next(iter(changes), model.outside.find_change()):
        reason = f"since {name} changes as the model runs, and has no noise"
        remedy = (
            "take a layer without running statistics, such as nn.GroupNorm, and "
            "torch.nn.utils.parametrizations for weights that are computed"
        )
        raise TrialFailed(source, TRAINING, reason, remedy)


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a != a) & (b != b)).all())


class _Comparison:
    """The ways beside samples taken one by one.

    In double precision, and in the model's own only if it runs in no other: in single
    precision an activation next to a kink may fall on either side of it.
    """

    def __init__(self, source: str, model: ClippedModel, samples: TensorSamples):
        self.source, self.model = source, model
        self.many, self.samples = samples, samples.copy(N_COMPARED)
        self.function = differentiable(model)
        self.max_norm = max_norm_of(model.config)

    def choose(self) -> ClippingChoice:
        """The fastest way that gives the same."""
        self._check_use()
        try:
            doubles = TensorSamples(
                map_arrays(_to_double, self.samples.x),
                map_arrays(_to_double, self.samples.y),
            )
            return self._choose(self.function.with_double(), doubles)
        except Exception:  # such as a module that says x.float()
            return self._choose(self.function, self.samples)

    def _check_use(self) -> None:
        """Refuse a parameter that no loss depends on: noise alone would move it."""
        part, config = OnePart("the gradients of the model"), self.model.config
        own = self.many.copy(N_TRIED)
        with explained(part, self.source, TRAINING, config):
            names = OneByOne(self.function).unused(own.x, own.y)
        if names:
            reason = f"since parameter {names[0]} has no gradient, only noise"
            remedy = "freeze it (trainable), or let the loss depend on it"
            raise TrialFailed(self.source, TRAINING, reason, remedy)

    def _choose(self, function: Differentiable, few: TensorSamples) -> ClippingChoice:
        self.model.module.eval()  # nothing is random
        expected = self._take(OneByOne(function), few)
        reasons = list[str]()
        for kind in (ByLayers, ByVmap):
            reason = obstacle_to_layers(function) if kind is ByLayers else None
            reason = reason or self._difference(kind(function), few, expected)
            if reason is None:
                return ClippingChoice(kind(self.function), "; ".join(reasons))
            reasons.append(f"{kind.name}: {reason}")
        return ClippingChoice(OneByOne(self.function), "; ".join(reasons))

    def _take(self, clip: Clipping, few: TensorSamples) -> ClippedSum:
        """The sum of a copy of these samples: a module may write into its input."""
        torch_state.seed_all(self.model.config.seed)
        own = few.copy(len(few))
        return clip(own.x, own.y, self.max_norm)

    def _difference(
        self, clip: Clipping, few: TensorSamples, expected: ClippedSum
    ) -> str | None:
        """What a way does otherwise than one by one; None if nothing."""
        try:
            self.model.module.eval()
            if not _are_close(self._take(clip, few), expected):
                return "other gradients than of samples one by one"
            self.model.module.train()
            if not self._is_independent(clip, few):
                return "a sample's gradient depends on the others of its batch"
        except Exception as error:  # user modules and vmap raise any exception
            return _shorten(str(user_code.describe(error)))
        finally:
            self.model.module.eval()
        return None

    def _is_independent(self, clip: Clipping, few: TensorSamples) -> bool:
        """Whether in training mode the others stay if the first sample is another."""
        both = few.copy(len(few))
        for nest in (both.x, both.y):
            map_arrays(lambda array: array[0].copy_(array[-1]), nest)
        one, other = self._take(clip, few), self._take(clip, both)
        pairs = (one.norms, other.norms), (one.losses, other.losses)
        return all(_is_close(a[1:], b[1:]) for a, b in pairs)


def _shorten(reason: str) -> str:
    """The first line of an error, of which torch's may have many."""
    line = reason.partition("\n")[0]
    return line if len(line) <= MAX_REASON else line[:MAX_REASON] + "..."


def _to_double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _are_close(actual: ClippedSum, expected: ClippedSum) -> bool:
    """Whether two sums differ by rounding only, parameter by parameter."""
    most = max(float(total.abs().max()) for total in expected.sums.values())
    return _is_close(actual.norms, expected.norms) and all(
        _is_close(actual.sums[name], total, ROUNDING * most)
        for name, total in expected.sums.items()
    )


def _is_close(actual: torch.Tensor, expected: torch.Tensor, least: float = 0.0) -> bool:
    """Whether numbers differ by little of the largest; what is not finite is alike."""
    is_finite = expected.isfinite()
    if not torch.equal(actual.isfinite(), is_finite):
        return False
    actual, expected = actual[is_finite], expected[is_finite]
    if not len(expected):
        return True
    tolerance = TOLERANCE * float(expected.abs().max()) + least
    return bool((actual - expected).abs().max() <= tolerance)
