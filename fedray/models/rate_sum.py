"""What FedNova and SCAFFOLD need of a party's training: the sum of its steps' rates."""

import numpy as np

from fedray.config import RunConfig


class RateSum:
    """How far a gradient of 1 in every step would have moved a weight.

    In plain SGD that is the sum of the learning rates of all steps; momentum adds to
    it, the pull of FedProx takes from it. FedNova calls it η ‖a‖₁, where a says how
    much each gradient counts in what was trained; it follows the steps that were really
    taken. Training writes it here.

    Source: Wang et al. 2020, arXiv:2007.07481, section 3: a for momentum and FedProx.

    Parameters
    ----------
    start : of rounds before, since the weights were global ones.
    """

    def __init__(self, start: float = 0.0):
        self.total = start


class RateCounter:
    """Takes along numbers that a gradient of 1 moves, as SGD moves weights.

    Parameters
    ----------
    config : its optimizer is SGD.
    start : (S,), of S parties that train together.
    scales_velocity : whether a velocity holds rates already, as in Keras; PyTorch's is
        multiplied by the rate of the step.
    """

    def __init__(
        self, config: RunConfig, start: np.ndarray, scales_velocity: bool = False
    ):
        args = config.optimizer_args
        self.momentum = float(args.get("momentum", 0.0))
        self.dampening = float(args.get("dampening", 0.0))
        self.is_nesterov = bool(args.get("nesterov", False))
        self.mu, self.scales_velocity = config.proximal_mu, scales_velocity
        self.totals = start.astype(np.float64)
        self._velocity = np.zeros_like(self.totals)
        self._is_first = True

    def advance(self, rates: np.ndarray | float, n_training: int | None = None) -> None:
        """Take one step of the first `n_training` parties; None: of all.

        rates : learning rate of the step, or one of each of those parties.
        """
        totals, velocity = self.totals[:n_training], self._velocity[:n_training]
        gradient = 1.0 - self.mu * totals
        if self.scales_velocity:
            gradient, rates = rates * gradient, 1.0
        if self.momentum:
            share = 1.0 if self._is_first else 1.0 - self.dampening
            velocity *= self.momentum
            velocity += share * gradient
            self._is_first = False
            if self.is_nesterov:
                gradient = gradient + self.momentum * velocity
            else:
                gradient = velocity
        totals += rates * gradient
