"""FedAvg and its variants: means of the parties' weights, and server optimizers.

Means: fedavg, iter_avg. Server optimizers: fedavgm, fedadagrad, fedadam, fedyogi.
"""

from collections.abc import Collection

import numpy as np

from fedray.fusion.base import FusionRule, State
from fedray.messages import Update
from fedray.weights import Weights


class FedAvg(FusionRule):
    """Mean weighted by samples: w = Σ n_k w_k / Σ n_k.

    Source: McMahan et al. 2017, arXiv:1602.05629, Algorithm 1.
    """

    name = "fedavg"
    weight_by = "n_samples"
    needs_rounds = False


class IterAvg(FusionRule):
    """Plain mean of all parties: w = Σ w_k / K, however many samples each has."""

    name = "iter_avg"
    weight_by = "n_parties"
    needs_rounds = False


class FedAvgM(FusionRule):
    """Momentum on the aggregator: m ← β m + (w − c), w ← w − η m, c the fedavg mean.

    Without momentum and with η = 1 this is `fedavg`. Only parameters move by the step;
    buffers (BatchNorm's statistics) take the mean.

    Source: Hsu et al. 2019, arXiv:1909.06335, section 4.3.
    """

    name = "fedavgm"
    weight_by = "n_samples"

    def __init__(
        self,
        learning_rate: float = 1.0,
        momentum: float = 0.9,
        parameters: Collection[str] | None = None,
    ):
        self.learning_rate, self.momentum = learning_rate, momentum
        self.parameters = parameters

    def init(self, weights: Weights) -> State:
        """Momentum starts at zero."""
        names = tensors_to_move(weights, self.parameters)
        return {"momentum": {name: np.zeros_like(weights[name]) for name in names}}

    def step(
        self, weights: Weights, update: Update, state: State
    ) -> tuple[Weights, State]:
        """Move parameters by the momentum, take the mean of everything else."""
        new, momentum = dict(update.weights), {}
        for name, old in state["momentum"].items():
            momentum[name] = self.momentum * old + weights[name] - update.weights[name]
            new[name] = weights[name] - self.learning_rate * momentum[name]
        return new, {"momentum": momentum}


class FedOpt(FusionRule):
    """FedAdagrad, FedAdam and FedYogi, without bias correction.

    Δ = c − w; m ← β₁ m + (1 − β₁) Δ; v by `name`; w ← w + η m / (√v + τ), v₀ = τ²:

    - adagrad: v ← v + Δ²
    - adam: v ← β₂ v + (1 − β₂) Δ²
    - yogi: v ← v − (1 − β₂) Δ² sign(v − Δ²)

    Source: Reddi et al. 2021, arXiv:2003.00295, Algorithm 2.
    """

    weight_by = "n_samples"

    def __init__(
        self,
        name: str,
        learning_rate: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.99),
        tau: float = 1e-3,
        parameters: Collection[str] | None = None,
    ):
        self.name, self.learning_rate, self.betas = name, learning_rate, betas
        self.tau, self.parameters = tau, parameters

    def init(self, weights: Weights) -> State:
        """First moment zero, second moment τ²."""
        names = tensors_to_move(weights, self.parameters)
        return {
            "momentum": {name: np.zeros_like(weights[name]) for name in names},
            "second": {
                name: np.full_like(weights[name], self.tau**2) for name in names
            },
        }

    def step(
        self, weights: Weights, update: Update, state: State
    ) -> tuple[Weights, State]:
        """Move parameters by the adaptive step, take the mean of everything else."""
        new, momentum, second = dict(update.weights), {}, {}
        beta1 = self.betas[0]
        for name, old in state["momentum"].items():
            delta = update.weights[name] - weights[name]
            m = momentum[name] = beta1 * old + (1 - beta1) * delta
            v = second[name] = self._second(state["second"][name], delta**2)
            new[name] = weights[name] + self.learning_rate * m / (v**0.5 + self.tau)
        return new, {"momentum": momentum, "second": second}

    def _second(self, v: np.ndarray, squared: np.ndarray) -> np.ndarray:
        beta2 = self.betas[1]
        if self.name == "fedadagrad":
            return v + squared
        if self.name == "fedadam":
            return beta2 * v + (1 - beta2) * squared
        return v - (1 - beta2) * squared * np.sign(v - squared)


def tensors_to_move(weights: Weights, parameters: Collection[str] | None) -> list[str]:
    """Names that a server step moves: the parameters; all floats if None are given."""
    return [
        name
        for name, array in weights.items()
        if array.dtype.kind == "f" and (parameters is None or name in parameters)
    ]
