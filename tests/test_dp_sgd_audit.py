"""An attack on DP-SGD that measures epsilon, and builds that it finds at fault.

One party trains with a sample and with its gradient zeroed, very often, each time with
another secret. Whoever sees the weights and knows all else guesses which it was; how
often that is right bounds epsilon from below (Clopper-Pearson). The bound must stay
below what the accountant claims.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from fedray.config import FederationConfig
from fedray.models.pytorch import losses, optimizers
from fedray.models.pytorch.clipped_sums import ClippedSum, Differentiable
from fedray.models.pytorch.clipping_by_layers import ByLayers
from fedray.models.pytorch.private_training import PrivateStep
from fedray.privacy.loss_distribution import epsilon_of_sampled
from fedray.privacy.private_steps import PrivateSteps
from fedray.privacy.sgd_noise import draw_batch

pytestmark = pytest.mark.usefixtures("one_thread")
D, N, DELTA, Z, MAX_NORM = 10, 4, 1e-2, 1.0, 0.5
CONFIDENCE = 1 - 1e-3
SAMPLE = torch.zeros(N, D)  # of all samples the first alone has a gradient
SAMPLE[0] = 3.0
FAR = torch.full((N, 1), -1e6)  # so that the loss's slope is the same all the way


class Unclipped(ByLayers):
    """A build at fault: its sums are of gradients as they are."""

    def __call__(self, x, y, max_norm) -> ClippedSum:
        return super().__call__(x, y, 4.0 * max_norm)


class Trainer:
    """A linear model, of which one step after another is taken."""

    def __init__(self, noise=1.0, kind=ByLayers, rate=1.0, n_steps=1):
        self.module = nn.Linear(D, 1, bias=False)
        spec = {"max_grad_norm": MAX_NORM, "noise_multiplier": Z, "delta": DELTA}
        config = FederationConfig(
            architecture="a", loss="l1_loss", learning_rate=1.0, dp_sgd=spec
        )
        self.loss = losses.make("l1_loss", {})
        trained = dict(self.module.named_parameters())
        self.clip = kind(Differentiable(self.module, self.loss, trained))
        self.model = SimpleNamespace(
            config=config.resolve(optimizers.DEFAULTS), device="cpu",
            module=self.module, loss=self.loss, trained=[self.module.weight],
        )  # fmt: skip
        self.noise, self.rate, self.n_steps = noise, rate, n_steps

    def train(self, x: torch.Tensor, secret: bytes) -> float:
        """How far the weights move along the sample's gradient."""
        nn.init.zeros_(self.module.weight)
        private = PrivateSteps(Z * self.noise, self.rate, self.n_steps, secret)
        step = PrivateStep(self.model, self.clip, private, self.rate * N)
        for i in range(self.n_steps):
            rows = torch.from_numpy(draw_batch(private.batch_key(i), N, self.rate))
            batch = (x[rows], FAR[rows]) if len(rows) else (None, None)
            step(*batch)
        return -float(self.module.weight.detach().sum())


def outcomes(trainer: Trainer, n_runs: int) -> tuple[np.ndarray, np.ndarray]:
    """Of trainings without the sample, and with it."""
    random = np.random.default_rng(7)
    return tuple(
        np.array([trainer.train(x, random.bytes(32)) for _ in range(n_runs)])
        for x in (torch.zeros(N, D), SAMPLE)
    )


def lowest_epsilon(without: np.ndarray, with_it: np.ndarray) -> float:
    """A bound that holds with `CONFIDENCE`; the threshold is from the first half."""
    half = len(without) // 2

    def bound(part: slice, threshold: float, confidence: float) -> float:
        n = len(without[part])
        wrong = int((without[part] > threshold).sum())
        right = int((with_it[part] > threshold).sum())
        most_wrong = scipy.stats.beta.ppf(1 - confidence, wrong + 1, n - wrong)
        least_right = scipy.stats.beta.ppf(confidence, right, n - right + 1)
        return math.log(max((least_right - DELTA) / most_wrong, 1e-9)) if right else 0.0

    thresholds = np.quantile(without[:half], [0.9, 0.95, 0.98, 0.99, 0.995, 0.998])
    best = max(thresholds, key=lambda t: bound(slice(half), t, 0.1))
    return bound(slice(half, None), best, (1 - CONFIDENCE) / 2)


def test_one_step_of_all_samples_tells_no_more_than_is_claimed():
    claim = epsilon_of_sampled({(1.0, Z): 1}, DELTA)
    lowest = lowest_epsilon(*outcomes(Trainer(), 1500))
    assert 0.25 * claim < lowest < claim  # and the attack is one


def test_steps_on_batches_by_chance_tell_no_more_than_is_claimed():
    claim = epsilon_of_sampled({(0.5, Z): 3}, DELTA)
    without, with_it = outcomes(Trainer(rate=0.5, n_steps=3), 500)
    assert lowest_epsilon(without, with_it) < claim
    # it does show: 3 steps of chance 1/2 and of a length of S / (q n) each
    expected = 3 * 0.5 * MAX_NORM * math.sqrt(D) / (0.5 * N)
    deviation = math.sqrt(3 * D) * Z * MAX_NORM / (0.5 * N)
    assert abs(without.mean()) < 4 * deviation / math.sqrt(500)
    assert abs(without.std() / deviation - 1) < 0.15
    assert abs(with_it.mean() - expected) < 5 * deviation / math.sqrt(500)


FAULTS = {
    "half the noise": ({"noise": 0.5}, 1000),
    "unclipped": ({"kind": Unclipped}, 600),
}


@pytest.mark.parametrize(("fault", "n_runs"), FAULTS.values(), ids=[*FAULTS])
def test_a_build_at_fault_is_found(fault, n_runs):
    claim = epsilon_of_sampled({(1.0, Z): 1}, DELTA)
    assert lowest_epsilon(*outcomes(Trainer(**fault), n_runs)) > claim
