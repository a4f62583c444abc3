"""Rules that take one party's update and no mean: best_model, ensemble (no fusion)."""

import numpy as np

from fedray.fusion.base import (
    Accumulator,
    FusionRule,
    RoundContext,
    SingleUpdate,
    State,
)
from fedray.messages import Update
from fedray.weights import Weights


class BestModel(FusionRule):
    """Everyone goes on from the best model: w ← w + a (best − w).

    adopt : a; 1 replaces the global weights, less mixes the best one in.
    """

    name = "best_model"
    associative = False  # one is chosen, after the others have looked at it

    def __init__(self, adopt: float = 1.0):
        self.adopt = adopt

    def accumulator(self, context: RoundContext) -> Accumulator:
        """The best party's update, the only one that is sent."""
        return SingleUpdate(self.name)

    def step(
        self, weights: Weights, update: Update, state: State
    ) -> tuple[Weights, State]:
        """Replace, or mix."""
        if self.adopt == 1:
            return update.weights, state
        return {
            name: weights[name] + np.multiply(best - weights[name], self.adopt)
            for name, best in update.weights.items()
        }, state


class NoFusion(FusionRule):
    """A round of one party: what it trained is what it continues from."""

    name = "ensemble"
    associative = False  # there is nothing to combine with

    def accumulator(self, context: RoundContext) -> Accumulator:
        """The party's own update, the only one."""
        return SingleUpdate(self.name)
