"""The interface of fusion rules: how parties' updates become new global weights.

A round goes ``to_additive`` (once per update), ``accumulator``: ``add`` for each update
and ``result``, then ``step``. `combine` is the loop over one accumulator.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from fedray.fusion.accumulators import Mean
from fedray.messages import Update
from fedray.weights import Weights, mean_of_stack

State = dict[str, Weights]  # what must survive between rounds, saved with checkpoints


@dataclass(frozen=True, eq=False)
class RoundContext:
    """What a rule may look at beside the updates of one round.

    round : 1 for the first; 0 where models are fused without a federation.
    weights : the global weights that the parties trained from.
    state : the rule's, as `FusionRule.step` returned it in the last round.
    """

    round: int = 0
    weights: Weights = field(default_factory=dict)
    state: State = field(default_factory=dict)


class Accumulator(Protocol):
    """Combines updates that are added one at a time.

    An accumulator of an associative rule holds one model, however many updates are
    added, and its result is an update again: a new accumulator that adds it first goes
    on with the bits of one that never stopped.
    """

    def add(self, update: Update, scale: float = 1.0) -> None:
        """Fold in one update, which is neither changed nor, where possible, kept.

        scale : multiplies what the update weighs, such as a discount for staleness. For
            the last stage only: a result does not remember it.
        """

    def result(self) -> Update:
        """All updates in one; nothing can be added afterwards.

        Raises
        ------
        TooFewUpdates
            If the rule is not defined for so few.
        """


class FusionRule:
    """One fusion rule: pure functions of arrays.

    name : as in a config, for error messages.
    associative : may updates be combined in stages (group, node, aggregator)?
    needs_context : does `to_additive` look at the global weights or the state?
    weight_by : the count by which an update is weighted in a mean; None where the rule
        takes no plain weighted mean.
    needs_rounds : does it mean nothing outside a federation? `fedray fuse` offers the
        rules that do not.
    """

    name: str
    associative: bool = True
    needs_context: bool = False
    weight_by: Literal["n_samples", "n_parties"] | None = None
    needs_rounds: bool = True

    def init(self, weights: Weights) -> State:
        """State before the first round."""
        return {}

    def to_additive(self, update: Update, weights: Weights, state: State) -> Update:
        """One party's weights as terms that add up; called once per party."""
        return update

    def accumulator(self, context: RoundContext) -> Accumulator:
        """An empty accumulator for one round; the weighted mean by default."""
        if self.weight_by is None:
            raise NotImplementedError(f"{self.name} has no accumulator of its own")
        return Mean(self.weight_by, self.name)

    def shares(self, n_samples: np.ndarray) -> np.ndarray:
        """Weights in a mean of parties with (K,) training samples; for means only."""
        is_by_samples = self.weight_by == "n_samples"
        return n_samples if is_by_samples else np.ones(len(n_samples))

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
        """New global weights and state from the combined update."""
        return update.weights, state


def combine(
    rule: FusionRule, updates: Iterable[Update], context: RoundContext | None = None
) -> Update:
    """Combine updates in their order; each is dropped before the next is fetched.

    Raises
    ------
    TooFewUpdates
        If the rule is not defined for so few.
    """
    accumulator = rule.accumulator(context or RoundContext())
    for update in updates:
        accumulator.add(update)
        del update  # or two would be in memory while the next is fetched
    return accumulator.result()
