"""What a fusion rule is, and the checks that an update passes before it counts."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from fedray.errors import TooFewUpdates
from fedray.messages import Update
from fedray.weights import (
    RunningMean,
    Schema,
    Weights,
    mean_of_stack,
    mismatch,
    non_finite,
)

MAX_SAMPLES = 1 << 53  # a float counts that far without a gap

State = dict[str, Weights]  # what must survive between rounds, saved with checkpoints


class Fusion:
    """One fusion rule: pure functions of arrays.

    associative : may `combine` be applied in stages (group, node, aggregator)?
    admits : does `admit` look at the global weights or the state?
    by : what an update weighs by in a mean, "n_samples" or "n_parties"; None where
        `combine` is no plain weighted mean.
    """

    associative = True
    admits = False
    by: str | None = None

    def init(self, weights: Weights) -> State:
        """State before the first round."""
        return {}

    def in_round(self, round: int, weights: Weights, state: State) -> "Fusion":
        """The rule as the aggregator combines one round; itself where all are alike."""
        return self

    def admit(self, update: Update, weights: Weights, state: State) -> Update:
        """One party's weights as terms that add up; called once per party."""
        return update

    def combine(self, updates: Iterator[Update]) -> Update:
        """Many to one; takes them one at a time and keeps none.

        Raises
        ------
        TooFewUpdates
            If the rule is not defined for so few.
        """
        raise NotImplementedError

    def shares(self, n_samples: np.ndarray) -> np.ndarray:
        """What parties with so many samples weigh in a mean; for means only."""
        return n_samples if self.by == "n_samples" else np.ones(len(n_samples))

    def merge(self, stack: Weights, n_samples: np.ndarray) -> Update:
        """Combine parties whose weights lie in one array per tensor; for means only.

        Parameters
        ----------
        stack : arrays (S, *shape) of S parties
        n_samples : (S,)
        """
        mean = mean_of_stack(stack, self.shares(n_samples))
        return Update(mean, int(n_samples.sum()), len(n_samples))

    def step(
        self, weights: Weights, update: Update, state: State
    ) -> tuple[Weights, State]:
        """New global weights and state from the one update that is left."""
        return update.weights, state


def weighted_mean(updates: Iterator[Update], by: str, rule: str) -> Update:
    """Mean of the updates' weights, weighted `by` a count; itself an Update again."""
    mean, n_samples, n_parties = RunningMean(), 0, 0
    for update in updates:
        mean.add(update.weights, getattr(update, by))
        n_samples += update.n_samples
        n_parties += update.n_parties
        del update  # or two would be in memory while the next is fetched
    if not n_parties:
        raise TooFewUpdates(rule, 0, 1)
    return Update(mean.mean, n_samples, n_parties)


def refusal(update: Any, needed: Schema) -> str | None:
    """Say why one party's update must not count; None if it may."""
    if not isinstance(update, Update):
        return f"sent a {type(update).__name__}, not an Update"
    n_samples = update.n_samples
    if type(n_samples) is not int or not 1 <= n_samples <= MAX_SAMPLES:
        return f"n_samples must be a whole number from 1 to {MAX_SAMPLES}"
    if update.n_parties != 1:
        return f"a party speaks for itself, not for {update.n_parties}"
    different = mismatch(update.weights, needed)
    if different:
        return different
    return not_finite(update.weights)


def not_finite(weights: Weights) -> str | None:
    """Name the first tensor that holds NaN or infinity; None if all are finite."""
    name = non_finite(weights)
    return f"tensor {name!r} is not finite (NaN or infinity)" if name else None
