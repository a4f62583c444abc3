"""Straggler handling: late updates are discarded, or folded into a later round.

A late update that is folded counts by its age: see `rebase`.
"""

import time
from collections import defaultdict
from dataclasses import replace

import numpy as np
import ray

from fedray.aggregator.global_model import Broadcast
from fedray.aggregator.party_actors import PartyActors
from fedray.aggregator.round import LateUpdate, PendingUpdate
from fedray.config import FederationConfig
from fedray.messages import Update

SLACK = 0.05  # share of round_timeout_s: a round begins a little before it asks


class StragglerTracker:
    """Calls that were still under way when their round was closed.

    Their actors are asked for nothing else until they are done: no call queues behind
    another. An actor that is not done `round_timeout_s` after it was asked hangs: it is
    killed and restarted, and asked again in the next round.
    """

    def __init__(self, config: FederationConfig, actors: PartyActors):
        self.actors, self.timeout_s = actors, config.round_timeout_s
        self.are_folded = config.late == "next_round"
        self._calls: list[PendingUpdate] = []

    def add(self, call: PendingUpdate) -> None:
        """A round has been closed without this call."""
        self._calls.append(call)

    def busy_actors(self) -> dict[str, int]:
        """Actors that are still at work, and the first round that each still trains."""
        rounds: dict[str, int] = {}
        for call in self._calls:
            actor = call.item.actor
            rounds[actor] = min(call.round, rounds.get(actor, call.round))
        return rounds

    def late_parties(self, parties: np.ndarray) -> np.ndarray:
        """Those of a global model's parties whose late update is to be folded."""
        if not self.are_folded:
            return parties[:0]
        late = [call.item.parties for call in self._calls]
        own = [places for places in late if np.isin(places, parties).all()]
        return np.unique(np.concatenate([parties[:0], *own]))

    def take_due(self, chosen: np.ndarray, round: int) -> list[PendingUpdate]:
        """Calls whose updates a round folds; they are not tracked here any more."""
        if not self.are_folded:
            return []
        ready = [
            call
            for call in self._calls
            if call.round < round and np.isin(call.item.parties, chosen).all()
        ]
        self._calls = [call for call in self._calls if call not in ready]
        return ready

    def sweep(self) -> None:
        """Restart actors that hang, and free those that are done or have left."""
        self._calls = [c for c in self._calls if c.item.actor in self.actors.actors]
        self._restart_hung()
        if not self.are_folded:
            self._free_finished()

    def _restart_hung(self) -> None:
        by_actor = defaultdict(list)
        for call in self._calls:
            by_actor[call.item.actor].append(call)
        before = time.monotonic() - self.timeout_s * (1 - SLACK)
        for actor, calls in by_actor.items():
            is_hung = min(call.asked_at for call in calls) <= before
            if is_hung and not self.actors.stop.is_set():
                self.actors.restart(actor, [pending.call for pending in calls])
                self._calls = [call for call in self._calls if call not in calls]

    def _free_finished(self) -> None:
        refs = [pending.call.pending_ref for pending in self._calls]
        if refs:
            n_calls = len(refs)
            done, _ = ray.wait(refs, num_returns=n_calls, timeout=0, fetch_local=False)
            finished = set(done)
            self._calls = [
                pending
                for pending in self._calls
                if pending.call.pending_ref not in finished
            ]


def rebase(update: Update, late: LateUpdate, now: Broadcast, round: int) -> Update:
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
