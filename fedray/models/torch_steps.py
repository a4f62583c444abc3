"""What training steps on torch share: clipping, mixed precision, corrected drift."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch

from fedray.config import RunConfig
from fedray.models.base import PartySlice
from fedray.models.rate_sum import RateCounter

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
FIRST_SCALE = 2.0**10  # of float16's losses; each round begins with it
N_UNTIL_GROWTH = 2000  # steps with finite gradients, after which the scale doubles
EPSILON = 1e-6  # as torch's clip_grad_norm_ has it


class Precision:
    """The arithmetic of a training, as `mixed_precision` says.

    Parameters, optimizer and what travels keep their dtype. Losses of float16 are
    scaled up before the gradients are taken, which else would round to 0; a step whose
    gradients then overflow is left out, and the scale halved, as torch's GradScaler
    does.
    """

    def __init__(self, config: RunConfig, device: str):
        self.dtype = PRECISIONS.get(config.mixed_precision)
        self.device, self.scale, self._n_finite = device, FIRST_SCALE, 0

    def autocast(self) -> AbstractContextManager[object]:
        """Runs a model and its loss in the format."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=self.dtype)

    def backward(self, loss: torch.Tensor) -> None:
        """Take the gradients of a loss."""
        (loss * self.scale if self.dtype is torch.float16 else loss).backward()

    def unscale(self, parameters: Sequence[torch.Tensor]) -> bool:
        """Bring the gradients back to their size; False: leave this step out."""
        if self.dtype is not torch.float16:
            return True
        gradients = [p.grad for p in parameters if p.grad is not None]
        for gradient in gradients:
            gradient.div_(self.scale)
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            self.scale, self._n_finite = self.scale / 2, 0
            return False
        self._n_finite += 1
        if self._n_finite == N_UNTIL_GROWTH:
            self.scale, self._n_finite = self.scale * 2, 0
        return True


def clip_gradients(parameters: Sequence[torch.Tensor], max_norm: float | None) -> None:
    """Scale all gradients down to a total norm, in place; None: leave them."""
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)


def clip_each(parameters: Mapping[str, torch.Tensor], max_norm: float | None) -> None:
    """As `clip_gradients`, for each party of a stack by itself: (S, *shape)."""
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    if max_norm is None or not gradients:
        return
    norms = [torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients]
    total = torch.linalg.vector_norm(torch.stack(norms), dim=0)  # (S,)
    shares = (max_norm / (total + EPSILON)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(shares.view(-1, *[1] * (gradient.ndim - 1)))


def passes_of(config: RunConfig, n_batches: int) -> int:
    """Passes over its samples that a party begins in a round."""
    if config.local_steps is None:
        return config.epochs
    return math.ceil(config.local_steps / max(1, n_batches))


class StepTerms:
    """What a fusion rule asks of a party's steps: their rates, and a correction.

    Parameters
    ----------
    part : None: of a trial, of which nothing is asked.
    tensors : of the model, by the names of the weights.
    scales_velocity : see `RateCounter`.
    """

    def __init__(
        self,
        config: RunConfig,
        part: PartySlice | None,
        tensors: Mapping[str, torch.Tensor],
        scales_velocity: bool = False,
    ):
        self.rates, self.tensors = part and part.rates, tensors
        self._counter, self._correction = None, dict[str, torch.Tensor]()
        if self.rates is not None:
            start = np.array([self.rates.total])
            self._counter = RateCounter(config, start, scales_velocity)
        if part is not None and part.correction is not None:
            for name, array in part.correction().items():
                if name in tensors:
                    self._correction[name] = torch.tensor(array).to(tensors[name])

    def correct(self) -> None:
        """Add the correction to each gradient; one that is missing counts as zero."""
        for name, term in self._correction.items():
            tensor = self.tensors[name]
            if tensor.grad is None:
                tensor.grad = term.clone()
            else:
                tensor.grad.add_(term)

    def count(self, rate: float) -> None:
        """Count a step that was taken with this rate."""
        if self._counter is not None and self.rates is not None:
            self._counter.advance(rate)
            self.rates.total = abs(float(self._counter.totals[0]))
