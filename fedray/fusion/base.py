"""What a fusion rule is, and the checks that an update passes before it counts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedray.errors import TooFewUpdates
from fedray.messages import Origin, Update
from fedray.weights import (
    RunningMean,
    Schema,
    Weights,
    distance,
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


@dataclass(frozen=True)
class Due:
    """What one party's update must say of itself.

    n_most : the training samples that the party declared when it joined.
    """

    origin: Origin
    n_most: int = MAX_SAMPLES


def refusal(update: Any, needed: Schema, due: Due | None = None) -> str | None:
    """Say why one party's update must not count; None if it may."""
    if not isinstance(update, Update):
        return f"sent a {type(update).__name__}, not an Update"
    if due and update.origin != due.origin:
        return f"is of {_told(update.origin)}, asked for was {_told(due.origin)}"
    n_samples, n_most = update.n_samples, due.n_most if due else MAX_SAMPLES
    if type(n_samples) is not int or not 1 <= n_samples <= n_most:
        got = repr(n_samples)[:40]
        return f"n_samples must be a whole number from 1 to {n_most}, got {got}"
    if type(update.n_parties) is not int or update.n_parties != 1:
        return f"a party speaks for itself, not for {update.n_parties}"
    different = mismatch(update.weights, needed)
    if different:
        return different
    return not_finite(update.weights)


def _told(origin: Any) -> str:
    if not isinstance(origin, Origin):
        return f"a {type(origin).__name__} instead of an origin"
    run, round, party = (repr(v)[:80] for v in vars(origin).values())
    return f"run {run}, round {round}, party at place {party}"


def too_long(weights: Weights, base: Weights, most: float | None) -> str | None:
    """Say that a party moved its weights too far from `base`; None if it did not.

    Over all float tensors together, buffers included.
    """
    if most is None:
        return None
    floats = [name for name, array in weights.items() if array.dtype.kind == "f"]
    norm = distance(weights, base, floats)
    if norm <= most:
        return None
    return f"its step of length {norm:.4g} is above max_update_norm {most:g}"


def not_finite(weights: Weights) -> str | None:
    """Name the first tensor that holds NaN or infinity; None if all are finite."""
    name = non_finite(weights)
    return f"tensor {name!r} is not finite (NaN or infinity)" if name else None
