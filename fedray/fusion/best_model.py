"""best_model: all parties adopt one party's model instead of a mean."""

import numpy as np

from fedray.fusion.accumulators import SingleUpdate
from fedray.fusion.base import Accumulator, FusionRule, RoundContext, State
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
