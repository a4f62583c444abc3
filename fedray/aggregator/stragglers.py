"""Parties that had not reported when their round closed: what becomes of their work."""

import time
from dataclasses import dataclass, replace

import numpy as np
import ray
from ray import ObjectRef

from fedray.aggregator.party_actors import Broadcast, Crew, Part
from fedray.aggregator.round_record import RoundRecord
from fedray.config import FederationConfig
from fedray.messages import LATE, Outcome, Update

SLACK = 0.05  # share of round_timeout_s: a round begins a little before it asks


@dataclass(frozen=True, eq=False)
class Pending:
    """A call that a round did not wait for.

    broadcast : the weights that it trains from.
    asked_at : monotonic clock, seconds.
    """

    part: Part
    report_ref: ObjectRef
    update_refs: list[ObjectRef]
    round: int
    broadcast: Broadcast
    asked_at: float


class Latecomers:
    """Actors that are still at work for a round that is closed.

    They are asked for nothing else until they are done: no call queues behind another.
    One that is not done `round_timeout_s` after it was asked hangs: it is killed and
    restarted, and asked again in the next round.
    """

    def __init__(self, config: FederationConfig):
        self.timeout_s = config.round_timeout_s
        self.are_folded = config.late == "next_round"
        self.pending: dict[str, Pending] = {}

    def add(self, crew: Crew, pending: Pending) -> None:
        """A round has closed without this one."""
        self.pending[pending.part.actor] = pending
        self._restart_hung(crew)

    def look(self, crew: Crew) -> None:
        """Before a round: who hangs is restarted, who is done is free again."""
        there = crew.actors  # not of those who have left
        self.pending = {n: late for n, late in self.pending.items() if n in there}
        self._restart_hung(crew)
        if self.are_folded or not self.pending:
            return
        by_ref = {late.report_ref: name for name, late in self.pending.items()}
        refs = list(by_ref)
        done, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
        for ref in done:
            del self.pending[by_ref[ref]]

    def join(self, chosen: np.ndarray, parties: np.ndarray) -> np.ndarray:
        """Who takes part in a round: the chosen, and who still owes it an update.

        parties : all that share the round's global model.
        """
        if not self.are_folded:
            return chosen
        owing = [late.part.parties for late in self.pending.values()]
        mine = [some for some in owing if np.isin(some, parties).all()]
        return np.unique(np.concatenate([chosen, *mine]))

    def sort_out(
        self, record: RoundRecord, parts: list[Part]
    ) -> tuple[set[str], list[Pending]]:
        """Actors that a round must not ask, and calls whose updates it folds instead.

        Says in the record that parties of the first are late; the second are pending
        no longer.
        """
        busy = set(self.pending)
        for part in parts:
            if part.actor in busy:
                since = self.pending[part.actor].round
                record.settle(part.parties, Outcome(LATE, "busy", str(since)))
        record.late.update(busy)
        if not self.are_folded:
            return busy, []
        mine = [
            name
            for name, late in self.pending.items()
            if late.round < record.round
            and np.isin(late.part.parties, record.chosen).all()
        ]
        return busy, [self.pending.pop(name) for name in mine]

    def _restart_hung(self, crew: Crew) -> None:
        before = time.monotonic() - self.timeout_s * (1 - SLACK)
        for name, late in list(self.pending.items()):
            if late.asked_at <= before and not crew.stop.is_set():
                crew.restart(name, late.report_ref)
                del self.pending[name]


def caught_up(update: Update, late: Pending, now: Broadcast, round: int) -> Update:
    """A late update as if from today: its step, by 1/√(1+τ), from today's weights.

    τ : rounds that it is late. Tensors that are not of floats stay as they are.

    Source: Nguyen et al. 2022 (FedBuff), arXiv:2106.06639, section 5 (its s(τ)).
    """
    scale = np.float32((1 + round - late.round) ** -0.5)
    then, moved = late.broadcast.weights, dict(update.weights)
    for name, array in now.weights.items():
        if array.dtype.kind == "f":
            moved[name] = array + scale * (update.weights[name] - then[name])
    return replace(update, weights=moved)
