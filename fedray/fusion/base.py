"""The interface of fusion rules, and accumulators that combine updates one at a time.

A round goes ``to_additive`` (once per update), ``accumulator``: ``add`` for each update
and ``result``, then ``step``. `combine` is the loop over one accumulator.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from fedray.errors import TooFewUpdates
from fedray.messages import Update
from fedray.weights import RunningMean, Schema, Weights, mean_of_stack

# of an update: what a gradient of 1 in every step would have moved a weight by
RATE_SUM = "/rate_sum"
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
    has_controls : do parties train by control variates, which they keep (SCAFFOLD)?
    n_parties : that share the model; kept up to date by the aggregator, 0 elsewhere.
    """

    name: str
    associative: bool = True
    needs_context: bool = False
    weight_by: Literal["n_samples", "n_parties"] | None = None
    needs_rounds: bool = True
    has_controls: bool = False
    n_parties: int = 0

    def init(self, weights: Weights) -> State:
        """State before the first round."""
        return {}

    def extra_schema(self, schema: Schema) -> Schema:
        """Tensors that a party's update has beside its weights, whose schema this is.

        They travel as they are, whatever `wire_dtype` says.
        """
        return {}

    def party_state(self, state: State) -> State:
        """What of the state `to_additive` and training look at: it alone travels."""
        return state

    def sum_schema(self, schema: Schema) -> Schema:
        """Tensors of several parties' update, where a rule sums integers; else none.

        They have names of their own, and travel as they are.
        """
        return {}

    def to_additive(self, update: Update, weights: Weights, state: State) -> Update:
        """One party's weights as terms that add up; called once per party."""
        return update

    def discount(self, update: Update, scale: float) -> Update:
        """A late update of several parties, whose weights count `scale` times already.

        What it has beside the weights: nothing that would have to.
        """
        return update

    def accumulator(self, context: RoundContext) -> Accumulator:
        """An empty accumulator for one round; the weighted mean by default."""
        if self.weight_by is None:
            raise NotImplementedError(f"{self.name} has no accumulator of its own")
        return Mean(self.weight_by, self.name)

    def n_withstood(self, n_updates: int) -> int:
        """Hostile ones among so many updates that the rule is made for."""
        return 0

    def shares(self, n_samples: np.ndarray) -> np.ndarray:
        """Weights in a mean of parties with (K,) training samples; for means only."""
        is_by_samples = self.weight_by == "n_samples"
        return n_samples if is_by_samples else np.ones(len(n_samples))

    @property
    def can_merge(self) -> bool:
        """Whether `merge` may stand for `to_additive` of each party."""
        return self.weight_by is not None and not self.needs_context

    def merge(
        self, stack: Weights, n_samples: np.ndarray, context: RoundContext
    ) -> Update:
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


class Mean:
    """Weighted mean of the updates' weights, in the memory of one model.

    weight_by : the count of an update that weights it.
    rule : name of the fusion rule, for the error where there is no update.
    """

    def __init__(self, weight_by: Literal["n_samples", "n_parties"], rule: str):
        self.weight_by, self.rule = weight_by, rule
        self._mean = RunningMean()
        self._n_samples = self._n_parties = 0

    def add(self, update: Update, scale: float = 1.0) -> None:
        """Move the mean towards this update; `scale` multiplies its weight."""
        self._mean.add(update.weights, getattr(update, self.weight_by) * scale)
        self._n_samples += update.n_samples
        self._n_parties += update.n_parties

    def result(self) -> Update:
        """The mean, which stands for all samples and parties behind it."""
        if not self._n_parties:
            raise TooFewUpdates(self.rule, 0, 1)
        return Update(self._mean.mean, self._n_samples, self._n_parties)


class Sum:
    """Sum of the updates' arrays, tensor by tensor, in the memory of one model."""

    def __init__(self, rule: str):
        self.rule = rule
        self._total: Weights = {}
        self._n_samples = self._n_parties = 0

    def add(self, update: Update, scale: float = 1.0) -> None:
        """Add an update's arrays, `scale` times."""
        is_first = not self._total
        for name, array in update.weights.items():
            term = array if scale == 1.0 else np.asarray(array * scale, array.dtype)
            if is_first:
                self._total[name] = term.copy() if term is array else term
            else:
                self._total[name] += term
        self._n_samples += update.n_samples
        self._n_parties += update.n_parties

    def result(self) -> Update:
        """The sums, and of how many samples and parties they are."""
        if not self._n_parties:
            raise TooFewUpdates(self.rule, 0, 1)
        return Update(self._total, self._n_samples, self._n_parties)


class AllUpdates:
    """Keeps every update, for rules that must see all of them at once.

    Their arrays are neither copied nor changed: views of shared memory stay views.

    fuse : makes one update of all, in the order in which they were added.
    """

    def __init__(self, fuse: Callable[[list[Update]], Update]):
        self._fuse = fuse
        self._updates: list[Update] = []

    def add(self, update: Update, scale: float = 1.0) -> None:
        """Keep one more; a rule that must see everyone knows no weights."""
        if scale != 1.0:
            raise ValueError("a rule that needs all updates at once cannot scale one")
        self._updates.append(update)

    def result(self) -> Update:
        """What `fuse` makes of them; raises what it raises."""
        return self._fuse(self._updates)


class SingleUpdate:
    """The first update as it is, for rules of which only one is expected."""

    def __init__(self, rule: str):
        self.rule = rule
        self._first: Update | None = None

    def add(self, update: Update, scale: float = 1.0) -> None:
        """Keep the first; of one update alone the weight does not matter."""
        if self._first is None:
            self._first = update

    def result(self) -> Update:
        """The first update."""
        if self._first is None:
            raise TooFewUpdates(self.rule, 0, 1)
        return self._first
