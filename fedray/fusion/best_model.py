"""Adopting one party's model instead of a mean."""

from collections.abc import Iterator

import numpy as np

from fedray.errors import TooFewUpdates
from fedray.fusion.base import Fusion, State
from fedray.messages import Update
from fedray.weights import Weights


class BestModel(Fusion):
    """Everyone goes on from the best model: w ← w + a (best − w).

    adopt : a; 1 replaces the global weights, less mixes the best one in.
    """

    associative = False  # one is chosen, after the others have looked at it

    def __init__(self, adopt: float = 1.0):
        self.adopt = adopt

    def combine(self, updates: Iterator[Update]) -> Update:
        """The best one, which is all that comes."""
        for update in updates:
            return update
        raise TooFewUpdates("best_model", 0, 1)

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
