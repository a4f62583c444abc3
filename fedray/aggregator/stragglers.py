"""Straggler handling: late updates are discarded, or folded into a later round.

A late update that is folded counts by its age: see `rebase`.
"""

import time
from collections import defaultdict

import numpy as np
import ray

from fedray.aggregator.global_model import Broadcast
from fedray.aggregator.party_actors import PartyActors
from fedray.aggregator.round import LateUpdate, PendingUpdate
from fedray.config import FederationConfig
from fedray.fusion import move_base, staleness_weight
from fedray.messages import Update

SLACK = 0.05  # share of round_timeout_s: a round begins a little before it asks


class StragglerTracker:
    """Updates that were still pending when their round was closed.

    Their actors are asked for nothing else until they are done: no call queues behind
    another. An actor that is not done `round_timeout_s` after it was asked hangs: it is
    killed and restarted, and asked again in the next round.
    """

    def __init__(self, config: FederationConfig, actors: PartyActors):
        self.actors, self.timeout_s = actors, config.round_timeout_s
        self.are_folded = config.late == "next_round"
        self._pending: list[PendingUpdate] = []

    def add(self, pending: PendingUpdate) -> None:
        """A round has been closed without this update."""
        self._pending.append(pending)

    def busy_actors(self) -> dict[str, int]:
        """Actors that are still at work, and the first round that each still trains."""
        rounds: dict[str, int] = {}
        for pending in self._pending:
            actor = pending.item.actor
            rounds[actor] = min(pending.round, rounds.get(actor, pending.round))
        return rounds

    def late_parties(self, parties: np.ndarray) -> np.ndarray:
        """Those of a global model's parties whose late update is to be folded."""
        if not self.are_folded:
            return parties[:0]
        late = [pending.item.parties for pending in self._pending]
        own = [places for places in late if np.isin(places, parties).all()]
        return np.unique(np.concatenate([parties[:0], *own]))

    def take_due(self, chosen: np.ndarray, round: int) -> list[PendingUpdate]:
        """Updates that a round folds; they are not tracked here any more."""
        if not self.are_folded:
            return []
        ready = [
            pending
            for pending in self._pending
            if pending.round < round and np.isin(pending.item.parties, chosen).all()
        ]
        self._pending = [pending for pending in self._pending if pending not in ready]
        return ready

    def sweep(self) -> None:
        """Restart actors that hang, and free those that are done or have left."""
        present = self.actors.actors
        self._pending = [p for p in self._pending if p.item.actor in present]
        self._restart_hung()
        if not self.are_folded:
            self._free_finished()

    def _restart_hung(self) -> None:
        by_actor = defaultdict(list)
        for pending in self._pending:
            by_actor[pending.item.actor].append(pending)
        before = time.monotonic() - self.timeout_s * (1 - SLACK)
        for actor, own in by_actor.items():
            is_hung = min(pending.asked_at for pending in own) <= before
            if is_hung and not self.actors.stop.is_set():
                self.actors.restart(actor, [pending.call for pending in own])
                self._pending = [p for p in self._pending if p not in own]

    def _free_finished(self) -> None:
        refs = [pending.call.pending_ref for pending in self._pending]
        if refs:
            n_refs = len(refs)
            done, _ = ray.wait(refs, num_returns=n_refs, timeout=0, fetch_local=False)
            finished = set(done)
            self._pending = [
                p for p in self._pending if p.call.pending_ref not in finished
            ]


def discount_of(late: LateUpdate, round: int) -> float:
    """By what a late update counts: by the rounds that it is late."""
    return staleness_weight(round - late.round)


def rebase(update: Update, late: LateUpdate, now: Broadcast, round: int) -> Update:
    """A late update as if from today: its step, discounted, from today's weights."""
    scale = discount_of(late, round)
    return move_base(update, late.broadcast.weights, now.weights, scale)
