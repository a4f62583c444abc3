"""Calls of party actors: asked by a strategy, answered in time or handed on as late."""

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from fedray.aggregator.party_actors import (
    ActorCall,
    PartyActors,
    WorkItem,
    wait_for_one,
    with_rate,
)
from fedray.aggregator.round import Base, LateUpdate, PendingUpdate, RoundStep
from fedray.aggregator.stragglers import StragglerTracker

Answer = tuple[PendingUpdate, Any]  # a call that has ended, its report or its error


class Dispatch:
    """All calls for reports and updates that are under way, of every global model.

    It belongs to the run and not to a round: a call may outlive the round that made it.
    """

    def __init__(self, actors: PartyActors, stragglers: StragglerTracker):
        self.actors, self.stragglers = actors, stragglers
        self._open: dict[str | None, dict[ActorCall, PendingUpdate]]
        self._open = defaultdict(dict)  # by group

    def ask(
        self,
        step: RoundStep,
        items: Iterable[WorkItem],
        method: str,
        are_sent: bool,
        since: int | None = None,
    ) -> None:
        """Call a method of each item's actor; nothing is waited for.

        Parameters
        ----------
        method : `train` or `update` of a party group.
        are_sent : whether updates follow the report.
        since : the first round since the last fusion, if parties train apart.
        """
        base = Base(step.round, step.model.last_broadcast, step.model.learning_rate)
        for item in items:
            n_updates = step.n_updates(item) if are_sent else 0
            own = step.requests.get(item.actor, (step.state_ref, since))
            arguments = step.round, item.parties, base.broadcast.ref, *own
            self._call(step, item, base, (method, *arguments), 1 + n_updates)

    def ask_from(self, step: RoundStep, item: WorkItem, base: Base) -> None:
        """Call for an update that is trained from weights of this round or earlier."""
        arguments = base.round, item.parties, base.broadcast.ref, step.state_ref, None
        self._call(step, item, base, ("train", *arguments), 1 + step.n_updates(item))

    def _call(
        self,
        step: RoundStep,
        item: WorkItem,
        base: Base,
        words: tuple[Any, ...],
        n_returns: int,
    ) -> None:
        method, *arguments = words
        call = self.actors.call(
            item.actor,
            *with_rate(base.learning_rate, method, *arguments),
            n_returns=n_returns,
        )
        self._open[step.record.group][call] = PendingUpdate(
            item, call, base.round, base.broadcast, time.monotonic()
        )

    def take_due_updates(self, step: RoundStep) -> list[LateUpdate]:
        """Let a round wait for calls of earlier ones whose updates it is to fold."""
        pending = self.stragglers.take_due(step.record.chosen, step.round)
        self._open[step.record.group] |= {update.call: update for update in pending}
        return [LateUpdate(late.item, late.round, late.broadcast) for late in pending]

    def next_answer(self, step: RoundStep, until: float) -> Answer | None:
        """The next call of a round to end, with what it returned or raised.

        None once the time is over (monotonic clock), the run is to stop, or no call of
        the round is open. What has arrived by `until` still counts afterwards.
        """
        calls = self._open[step.record.group]
        ended = wait_for_one(calls, until, self.actors.stop)
        return None if ended is None else (calls.pop(ended[0]), ended[1])

    def pending(self, step: RoundStep) -> list[PendingUpdate]:
        """The open calls of a round's model, the oldest first."""
        return list(self._open[step.record.group].values())

    def give_up(self, step: RoundStep, pending: PendingUpdate, is_gone: bool) -> None:
        """Wait no more for one open call.

        is_gone : its party has left, and its actor has ended; otherwise it is late.
        """
        self._open[step.record.group].pop(pending.call)
        if not is_gone:
            # or weights would stay that nobody needs any more
            broadcast = step.model.last_broadcast
            self.stragglers.add(replace(pending, broadcast=broadcast))

    def close(self, step: RoundStep) -> list[PendingUpdate]:
        """Wait no more for a round's open calls, which are returned: they are late."""
        late = list(self._open.pop(step.record.group, {}).values())
        for pending in late:
            self.stragglers.add(pending)
        return late
