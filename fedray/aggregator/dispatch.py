"""Calls of party actors: asked by a strategy, answered in time or handed on as late."""

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ray import ObjectRef

from fedray.aggregator.party_actors import (
    PartyActors,
    WorkItem,
    answer_of,
    wait_for_one,
)
from fedray.aggregator.round import PendingUpdate, RoundStep
from fedray.aggregator.stragglers import StragglerTracker

Answer = tuple[PendingUpdate, Any]  # a call that has ended, its report or its error


class Dispatch:
    """All calls for reports and updates that are under way, of every global model.

    It belongs to the run and not to a round: a call may outlive the round that made it.
    """

    def __init__(self, actors: PartyActors, stragglers: StragglerTracker):
        self.actors, self.stragglers = actors, stragglers
        self._open: dict[str | None, dict[ObjectRef, PendingUpdate]]
        self._open = defaultdict(dict)  # by group, then by report

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
        broadcast = step.model.last_broadcast
        asked_at = time.monotonic()
        for item in items:
            n_updates = step.n_updates(item) if are_sent else 0
            call = getattr(self.actors.actors[item.actor], method)
            refs = call.options(num_returns=1 + n_updates).remote(
                step.round, item.parties, broadcast.ref, step.state_ref, since
            )
            report_ref, *update_refs = refs if n_updates else [refs]
            self._open[step.record.group][report_ref] = PendingUpdate(
                item, report_ref, tuple(update_refs), step.round, broadcast, asked_at
            )

    def take_due_updates(self, step: RoundStep) -> list[PendingUpdate]:
        """Let a round wait for calls of earlier ones whose updates it is to fold.

        Returns
        -------
        These calls, without what would keep their updates in the object store.
        """
        late_calls = self.stragglers.take_due(step.record.chosen, step.round)
        self._open[step.record.group] |= {call.report_ref: call for call in late_calls}
        return [replace(call, update_refs=()) for call in late_calls]

    def next_answer(self, step: RoundStep, until: float) -> Answer | None:
        """The next call of a round to end, with what it returned or raised.

        None once the time is over (monotonic clock), the run is to stop, or no call of
        the round is open. What has arrived by `until` still counts afterwards.
        """
        calls = self._open[step.record.group]
        ref = wait_for_one(list(calls), until, self.actors.stop) if calls else None
        return None if ref is None else (calls.pop(ref), answer_of(ref))

    def close(self, step: RoundStep) -> list[PendingUpdate]:
        """Wait no more for a round's open calls, which are returned: they are late."""
        calls = list(self._open.pop(step.record.group, {}).values())
        for call in calls:
            self.stragglers.add(call)
        return calls
