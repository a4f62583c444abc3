"""Central differential privacy: means of clipped differences, as integers with noise.

Parties' differences to the global weights are clipped and added up as integers. The
noise comes between the accumulator's result and the step: who makes the release adds it
to the integers (`fedray.privacy`); the rule's step gets them with noise.
"""

from dataclasses import replace

import numpy as np

from fedray.errors import TooFewUpdates
from fedray.fusion.base import Accumulator, FusionRule, RoundContext, State
from fedray.messages import Rejection, Update
from fedray.privacy import adaptive_clip
from fedray.privacy.grid import GRID, add_stack, from_grid, n_coordinates, to_grid
from fedray.weights import Form, Schema, Weights, mismatch

SUM = "/sum"  # in a sum of updates: (d,) of all float tensors; with a count (d + 1,)
MAX_NARROW = (2**31 - 1) // GRID  # parties whose sum int32 holds for sure: 2047
PRIVACY, CLIP_NORM = "privacy", "clip_norm"  # in the state: the next round's clip norm


class PrivateMean(FusionRule):
    """A rule that takes a mean, of clipped differences u_k = w_k − w, with noise.

    - to_additive: x_k = rint(u_k κ / S · min(1, S / ‖u_k‖)), integers with ‖x_k‖ <= 2²⁰
    - accumulator: T = Σ x_k, exact, in any order
    - step: the wrapped rule's, with the mean w + T̃ S / (κ m); T̃ is T with noise

    All parties count alike: with sample counts one party could move T further, and the
    counts would leak. Tensors that are not of floats stay as they are. m is a public
    number, never that of the parties that reported; who is absent adds 0.

    With an adaptive clip norm the last number of x_k is 1 where u_k was within S, else
    −1, and the noised sum of these decides the next S.

    rule : that takes the mean: fedavg and its variants, by `fedray.config`.
    clip_norm : S; None: adaptive.
    clip_start : S of round 1, if adaptive.
    n_expected : m, the parties that a round counts on; set by who makes the releases.
    """

    weight_by = "n_parties"
    needs_context = True

    def __init__(
        self,
        rule: FusionRule,
        clip_norm: float | None,
        clip_start: float = 1.0,
        n_expected: float = 0.0,
    ):
        self.rule, self.name = rule, rule.name
        self.fixed_clip_norm, self.clip_start = clip_norm, clip_start
        self.n_expected = n_expected

    @property
    def can_merge(self) -> bool:
        """Sums of whole stacks are the same integers."""
        return True

    @property
    def is_adaptive(self) -> bool:
        """Whether the clip norm follows the parties' steps."""
        return self.fixed_clip_norm is None

    def init(self, weights: Weights) -> State:
        """The wrapped rule's state, and the first clip norm if it is adaptive."""
        return self.rule.init(weights) | self._clip_state(self.clip_start)

    def clip_norm(self, state: State) -> float:
        """S of the round that this state is for."""
        if self.fixed_clip_norm is not None:
            return self.fixed_clip_norm
        return float(state[PRIVACY][CLIP_NORM][0])

    def party_state(self, state: State) -> State:
        """The clip norm alone: momentum stays at the aggregator."""
        return {name: state[name] for name in (PRIVACY,) if name in state}

    def sum_schema(self, schema: Schema) -> Schema:
        """One vector of integers, which int32 may hold too."""
        empty = {name: np.broadcast_to(np.empty((), form.dtype), form.shape)
                 for name, form in schema.items()}  # fmt: skip
        return {SUM: Form((n_coordinates(empty) + self.is_adaptive,), "int64")}

    def to_additive(self, update: Update, weights: Weights, state: State) -> Update:
        """The clipped difference as integers, and whether it was within the norm."""
        vector = to_grid(update.weights, weights, self.clip_norm(state))
        values = vector.values
        if self.is_adaptive:
            values = np.append(values, np.int32(1 if vector.is_within else -1))
        return replace(update, weights={SUM: values})

    def merge(
        self, stack: Weights, n_samples: np.ndarray, context: RoundContext
    ) -> Update:
        """The sum of what `to_additive` gives for each party of a stack."""
        base, n_parties = context.weights, len(n_samples)
        total = np.zeros(n_coordinates(base) + self.is_adaptive, np.int64)
        vector = total[:-1] if self.is_adaptive else total
        n_within = add_stack(stack, base, self.clip_norm(context.state), vector)
        if self.is_adaptive:
            total[-1] = 2 * n_within - n_parties
        return Update({SUM: _narrow(total, n_parties)}, int(n_samples.sum()), n_parties)

    def empty_sum(self, weights: Weights) -> Update:
        """The sum of a round in which nobody takes part.

        It is released with noise too, or all would see that nobody was drawn.
        """
        size = n_coordinates(weights) + self.is_adaptive
        return Update({SUM: np.zeros(size, np.int64)}, 0, 0)

    def discount(self, update: Update, scale: float) -> Update:
        """A late sum of several parties, times `scale`.

        Rounded again: one party moves a number of it by scale · x_k and less than one
        more, together scale · 2²⁰ + √d, which stays below 2²⁰ for any scale of a late
        update (up to 1/√2).
        """
        if SUM not in update.weights:
            return update  # one party's weights, which are discounted already
        values = update.weights[SUM]
        scaled = np.rint(values * scale).astype(values.dtype)
        return replace(update, weights={SUM: scaled})

    def accumulator(self, context: RoundContext) -> Accumulator:
        """The sum of integers."""
        return IntegerSum(self.name)

    def step(
        self, weights: Weights, update: Update, state: State
    ) -> tuple[Weights, State]:
        """The wrapped rule's step, with the mean that the noised sum stands for."""
        if not self.n_expected > 0:
            raise ValueError("a private mean needs the number of parties expected")
        total, clip_norm = update.weights[SUM], self.clip_norm(state)
        vector = total[:-1] if self.is_adaptive else total
        mean = from_grid(weights, vector, clip_norm, self.n_expected)
        own = {name: part for name, part in state.items() if name != PRIVACY}
        new, own = self.rule.step(weights, replace(update, weights=mean), own)
        if self.is_adaptive:
            count = float(total[-1])
            clip_norm = adaptive_clip.next_clip_norm(clip_norm, count, self.n_expected)
        return new, own | self._clip_state(clip_norm)

    def _clip_state(self, clip_norm: float) -> State:
        if not self.is_adaptive:
            return {}
        return {PRIVACY: {CLIP_NORM: np.array([clip_norm])}}


class IntegerSum:
    """Exact sum of the parties' integers, in the memory of one model.

    Its result travels as int32 where that holds any sum of so many parties.
    """

    def __init__(self, rule: str):
        self.rule = rule
        self._total: np.ndarray | None = None
        self._n_samples = self._n_parties = 0

    def add(self, update: Update, scale: float = 1.0) -> None:
        """Add one party's integers, or a sum of several's."""
        if scale != 1.0:
            raise ValueError("a rounded sum is discounted by its rule, not here")
        values = update.weights[SUM]
        if self._total is None:
            self._total = values.astype(np.int64)
        else:
            np.add(self._total, values, out=self._total)
        self._n_samples += update.n_samples
        self._n_parties += update.n_parties

    def result(self) -> Update:
        """The sum, and of how many parties it is."""
        if self._total is None:
            raise TooFewUpdates(self.rule, 0, 1)
        total = _narrow(self._total, self._n_parties)
        return Update({SUM: total}, self._n_samples, self._n_parties)


def _narrow(total: np.ndarray, n_parties: int) -> np.ndarray:
    return total.astype(np.int32) if n_parties <= MAX_NARROW else total


def sum_rejection(update: Update, needed: Schema) -> Rejection | None:
    """Say why a sum of several parties' integers cannot be one; None if it may be.

    needed : by `PrivateMean.sum_schema`.
    """
    n_parties = update.n_parties
    if type(n_parties) is not int or n_parties < 1:
        return Rejection("count", f"is a sum of {n_parties!r:.40} parties")
    size = needed[SUM].shape
    narrow = {SUM: Form(size, "int32")}
    if mismatch(update.weights, narrow) and (
        different := mismatch(update.weights, needed)
    ):
        return Rejection("schema", different)
    values, most = update.weights[SUM], n_parties * GRID
    if values.size and not -most <= values.min() <= values.max() <= most:
        detail = f"has numbers that no clipped updates of {n_parties} parties add up to"
        return Rejection("other", detail)
    return None
