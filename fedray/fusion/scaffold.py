"""SCAFFOLD: control variates correct the drift of parties whose data is unlike."""

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from fedray.fusion.base import (
    RATE_SUM,
    Accumulator,
    FusionRule,
    Mean,
    RoundContext,
    State,
)
from fedray.fusion.fedavg import tensors_to_move
from fedray.messages import Update
from fedray.weights import Form, Schema, Weights, size_of

CONTROL = "/control"  # after a tensor's name: by what a party's c_i changed
COUNTED = "/counted"  # (parties, 2) int64: place of each, round that it trained
ROUNDS = "rounds"  # in the state: (places,) int64, by `rounds_counted`


class Scaffold(FusionRule):
    """Every party adds c − c_i to its gradients, so that all move along the mean.

    c_i is about a party's own gradient at the global weights, c the mean of them over
    all N parties. A party trains y_i ← y_i − η (g_i(y_i) − c_i + c), then

    - c_i⁺ = c_i − c + (x − y_i) / (K η), option II, K its steps (and K η, where rates
      change, the sum of them)
    - x ← x + η_g mean(y_i − x) and c ← c + |S|/N mean(c_i⁺ − c_i), over the parties S
      of the round. All count alike, however many samples they have.

    c is this rule's state; c_i stays at its party, and c_i⁺ − c_i travels beside the
    weights. Whose change has been added to c, and of which round, is state too: a party
    whose update was not fused goes on from the c_i that the aggregator counts with.
    Buffers take the mean.

    learning_rate : η_g, of the aggregator.
    n_parties : N; kept up to date by the aggregator, as parties come and go.

    Source: Karimireddy et al. 2020, arXiv:1910.06378, Algorithm 1.
    """

    name = "scaffold"
    weight_by = "n_parties"
    needs_context = True
    has_controls = True

    def __init__(
        self, learning_rate: float = 1.0, parameters: Collection[str] | None = None
    ):
        self.learning_rate, self.parameters = learning_rate, parameters

    def init(self, weights: Weights) -> State:
        """c is zero, and nobody has been counted."""
        names = tensors_to_move(weights, self.parameters)
        return {
            "control": {
                n: np.zeros(weights[n].shape, _wide(weights[n])) for n in names
            },
            "counted": {ROUNDS: np.zeros(0, np.int64)},
        }

    def extra_schema(self, schema: Schema) -> Schema:
        """The change of c_i, of each tensor that trains; and the sum of the rates."""
        empty = {name: np.empty(0, form.dtype) for name, form in schema.items()}
        changes = {
            name + CONTROL: Form(schema[name].shape, str(_wide(empty[name])))
            for name in tensors_to_move(empty, self.parameters)
        }
        return {RATE_SUM: Form((), "float64"), **changes}

    def to_additive(self, update: Update, weights: Weights, state: State) -> Update:
        """The update, and whose it is: of which round at which place."""
        if update.origin is None:
            raise ValueError("SCAFFOLD counts parties: an update without origin")
        counted = np.array([[update.origin.party, update.origin.round]], np.int64)
        return replace(update, weights=update.weights | {COUNTED: counted})

    def accumulator(self, context: RoundContext) -> Accumulator:
        """Plain means of weights and changes, and a list of whose they are."""
        return _CountedMean(self.name)

    def step(
        self, weights: Weights, update: Update, state: State
    ) -> tuple[Weights, State]:
        """Move the weights by the mean step, and c by the change of the mean c_i."""
        names = tensors_to_move(weights, self.parameters)
        new = {name: update.weights[name] for name in weights}
        share = update.n_parties / max(self.n_parties, update.n_parties)
        control = {}
        for name in names:
            if self.learning_rate != 1:
                step = new[name] - weights[name]
                new[name] = weights[name] + step.dtype.type(self.learning_rate) * step
            old, change = state["control"][name], update.weights[name + CONTROL]
            control[name] = old + old.dtype.type(share) * change
        counted = _with_rounds(state["counted"][ROUNDS], update.weights[COUNTED])
        return new, {"control": control, "counted": {ROUNDS: counted}}


def control_bytes(rule: FusionRule, schema: Schema) -> int:
    """Bytes of one control variate of a model of this schema; 0 for other rules."""
    if not rule.has_controls:
        return 0
    forms = rule.extra_schema(schema)
    return size_of({name: forms[name] for name in forms if name.endswith(CONTROL)})


def rounds_counted(state: State, places: np.ndarray) -> np.ndarray:
    """The last round of each party whose change is in c; 0: none.

    places : of the parties in the config, (K,).
    """
    rounds = state["counted"][ROUNDS]
    is_there = places < len(rounds)
    counted = np.zeros(len(places), np.int64)
    counted[is_there] = rounds[places[is_there]]
    return counted


def find_correction(control: Weights, own: Weights | None) -> Weights:
    """What a party adds to each gradient: c − c_i; c where c_i is zero (None)."""
    if own is None:
        return dict(control)
    return {name: c - own[name] for name, c in control.items()}


def find_change(
    control: Weights, start: Weights, trained: Weights, rate_sum: float
) -> Weights:
    """By what a party's training changes its c_i: (x − y_i) / (K η) − c.

    Zero where no rate was above 0, so that nothing has moved.

    start : x, the global weights that it trained from.
    trained : y_i.
    rate_sum : K η, the sum of the steps' learning rates.
    """
    if not rate_sum:
        return {name: np.zeros_like(c) for name, c in control.items()}
    changes = {}
    for name, c in control.items():
        moved = np.subtract(start[name], trained[name], dtype=c.dtype)
        changes[name] = np.asarray(moved / c.dtype.type(rate_sum) - c)
    return changes


class _CountedMean:
    """Mean of additive updates in which all parties count alike, and their list."""

    def __init__(self, rule: str):
        self._mean = Mean("n_parties", rule)
        self._counted: list[np.ndarray] = []

    def add(self, update: Update, scale: float = 1.0) -> None:
        """Move the mean towards this update."""
        weights = dict(update.weights)
        self._counted.append(weights.pop(COUNTED))
        self._mean.add(replace(update, weights=weights), scale)

    def result(self) -> Update:
        """The mean, and all parties behind it."""
        mean = self._mean.result()
        counted = {COUNTED: np.concatenate(self._counted)}
        return replace(mean, weights=mean.weights | counted)


def _with_rounds(rounds: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """The last round of each place, with those that a round has added."""
    n_places = max(len(rounds), int(counted[:, 0].max(initial=-1)) + 1)
    new = np.zeros(n_places, np.int64)
    new[: len(rounds)] = rounds
    new[counted[:, 0]] = counted[:, 1]
    return new


def _wide(array: np.ndarray) -> np.dtype:
    """The dtype of a tensor's control variate: float32 or wider."""
    return np.promote_types(array.dtype, np.float32)
