"""DP-SGD: a party's training in batches drawn by chance, with clipping and noise.

What comes after the noise is post-processing: the pull of proximal_mu, the optimizer
with its momentum and weight decay, and the scheduler.

Source: Abadi et al. 2016, arXiv:1607.00133, Algorithm 1.
"""

import hashlib
import os
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch

from fedray.config import rate_function
from fedray.models import torch_state
from fedray.models.base import PartySlice, ProgressCallback
from fedray.models.pytorch.clipped_sums import ClippedSum, Clipping, OneByOne
from fedray.models.pytorch.clipping_by_layers import NotCovered
from fedray.models.pytorch.clipping_choice import (
    ClippedModel,
    differentiable,
    max_norm_of,
)
from fedray.models.pytorch.training_step import SteppedModel, TrainingStep
from fedray.models.torch_samples import Batch, TorchSamples
from fedray.nested import Nested, length
from fedray.privacy.private_steps import PrivateSteps
from fedray.privacy.sgd_noise import add_noise, draw_batch
from fedray.weights import Weights

ROOM = 2.0**-12  # of max_grad_norm, which float32's rounding cannot exceed then
TRIAL_NOISE = 1.0  # noise_multiplier of a trial, where only epsilon is given


class DpSgdModel(SteppedModel, ClippedModel, Protocol):
    """What DP-SGD needs of a live PyTorch model."""

    on_progress: ProgressCallback

    def clipping(self, source: str, samples: TorchSamples) -> Clipping:
        """How gradients are clipped."""

    def load(self, weights: Weights) -> None:
        """Overwrite the model in place."""


class PrivateStep:
    """Optimizer steps on noised sums of clipped gradients; step after step.

    Parameters
    ----------
    n_expected : samples of a batch on average, q · n: what sums are divided by, however
        many samples a batch has.
    """

    def __init__(
        self,
        model: DpSgdModel,
        clip: Clipping,
        private: PrivateSteps,
        n_expected: float,
        party: PartySlice | None = None,
    ):
        self.inner = TrainingStep(model, party)
        self.model, self.clip, self.private = model, clip, private
        self.n_expected, self.n_done = n_expected, 0
        self.max_norm = max_norm_of(model.config)
        self.parameters = differentiable(model).tensors

    @property
    def part(self) -> str:
        """What of the step runs now."""
        return self.inner.part

    def set_learning_rate(self, rate: float) -> None:
        """Take the next steps with this rate."""
        self.inner.set_learning_rate(rate)

    def __call__(self, x: Nested, y: Nested) -> torch.Tensor:
        """Step on a batch, None of no sample; the mean loss before it, without noise.

        The loss must not leave the party.
        """
        self.inner.part = "the clipped gradients of the model"
        sums, loss = dict[str, torch.Tensor](), torch.zeros(())
        if x is not None and length(x):
            total = self._clipped_sum(x, y)
            sums, loss = total.sums, total.losses.mean()
        self.inner.part = "the noise"
        self._set_gradients(sums)
        self.inner.follow_gradients()
        self.n_done += 1
        return loss

    def _clipped_sum(self, x: Nested, y: Nested) -> ClippedSum:
        max_norm = self.max_norm * (1 - ROOM)
        try:
            return self.clip(x, y, max_norm)
        except NotCovered:  # of a module that goes another way with these samples
            return OneByOne(differentiable(self.model))(x, y, max_norm)

    def _set_gradients(self, sums: dict[str, torch.Tensor]) -> None:
        """Write the noised mean of a batch into every parameter's gradient.

        sums : by parameter; empty of a batch without a sample.
        """
        sizes = [parameter.numel() for parameter in self.parameters.values()]
        total = np.zeros(sum(sizes))
        if sums:
            flat = torch.cat([sums[name].flatten() for name in self.parameters])
            total = flat.cpu().numpy()
        key, z = self.private.noise_key(self.n_done), self.private.noise_multiplier
        noised = add_noise(total, key, z * self.max_norm)
        noised /= self.n_expected
        parts = torch.from_numpy(noised).split(sizes)
        for parameter, part in zip(self.parameters.values(), parts, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter)


def trial_step(model: DpSgdModel, clip: Clipping) -> PrivateStep:
    """A step whose result is undone, with noise of a key that nothing else uses."""
    spec = model.config.dp_sgd
    z = TRIAL_NOISE if spec is None else spec.noise_multiplier or TRIAL_NOISE
    private = PrivateSteps(z, 1.0, 1, os.urandom(32))
    return PrivateStep(model, clip, private, model.config.batch_size)


def train_private(model: DpSgdModel, samples: TorchSamples, part: PartySlice) -> None:
    """Train one party by DP-SGD, in as many steps as its accounting says.

    What a module draws by itself, such as dropout, is seeded by the secret too.
    """
    private = part.private
    if private is None:
        raise RuntimeError("a training with dp_sgd was given neither batches nor noise")
    clip, n_samples = model.clipping(part.party, samples), len(part.rows)
    step = PrivateStep(model, clip, private, private.sampling_rate * n_samples, part)
    seed = _seed(private)
    torch_state.seed_all(seed)
    model.outside.seed(seed)
    if part.start is not None:
        model.load(part.start)
    config, n_steps = model.config, private.n_steps
    rate_at = rate_function(config, part.round, n_steps, part.learning_rate)
    for i, (x, y) in enumerate(_batches(samples, part.rows, private, seed)):
        if config.scheduler is not None:
            step.set_learning_rate(rate_at(i))
        step(x, y)
        model.on_progress((i + 1) / n_steps)


def _seed(private: PrivateSteps) -> int:
    """A seed below 2^62, from the key of a step that is never taken."""
    digest = hashlib.sha256(private.batch_key(private.n_steps)).digest()
    return int.from_bytes(digest[:8], "big") >> 2


def _batches(
    samples: TorchSamples, rows: np.ndarray, private: PrivateSteps, seed: int
) -> Iterator[Batch]:
    """The batches of all steps; (None, None) for one without a sample."""
    drawn = [
        draw_batch(private.batch_key(i), len(rows), private.sampling_rate)
        for i in range(private.n_steps)
    ]
    filled = samples.select((rows[places] for places in drawn if len(places)), seed)
    for places in drawn:
        yield next(filled) if len(places) else (None, None)
