"""Where the updates of an asynchronous step come from, and in which order.

Real arrivals; arrivals by a virtual clock, known before any update is trained; or the
recorded order of an earlier run. Each fills an `UpdateBuffer`.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from fedray.aggregator.dispatch import Dispatch
from fedray.aggregator.party_actors import POLL_S, ActorCall, PartyActors, WorkItem
from fedray.aggregator.round import Base, PendingUpdate, RoundStep
from fedray.aggregator.update_buffer import UpdateBuffer, describe_stale
from fedray.checkpoint.recorded_order import RecordedOrder
from fedray.config import lease_of
from fedray.messages import LATE, Outcome
from fedray.policy import Arrival, Leases, Simulation
from fedray.weights import Weights

Bases = Mapping[int, Base]  # by version: steps that the weights have taken
Task = tuple[int, int]  # a party's place, and the version that it trains from


class UpdateSource(Protocol):
    """Asks parties for updates, and adds those of one step to a buffer.

    n_expired : leases that were over in this step.
    virtual_s : time of a virtual clock, if it goes by one.
    """

    n_expired: int

    @property
    def virtual_s(self) -> float | None: ...

    def begin_step(self, step: RoundStep, bases: Bases) -> None:
        """Begin a step: `step.record.chosen` are the parties that are there."""

    def fill(self, buffer: UpdateBuffer, size: int, bases: Bases) -> str:
        """Add so many updates to a buffer; why there are fewer, if so."""

    def to_arrays(self, round: int) -> Weights:
        """What a resumed run needs after a round: see `GlobalModel.pending`."""

    def restore(self, arrays: Weights) -> None:
        """Go on from what `to_arrays` gave."""


class RealArrivals:
    """Parties train in their own time; updates count in the order in which they come.

    A party that has not sent when its lease is over is given up, and another one is
    asked. Its actor is asked again once it is done, or was restarted as hung.
    """

    virtual_s = None

    def __init__(self, calls: Dispatch, leases: Leases):
        self.calls, self.actors, self.leases = calls, calls.actors, leases
        self.lease_s, self.n_expired = lease_of(leases.config), 0

    def begin_step(self, step: RoundStep, bases: Bases) -> None:
        """Give up what is too old or has left, and ask parties until enough are."""
        self.n_expired = 0
        leavers = set(self.leases.begin_step(step.record.chosen))
        pending = {_place(one): one for one in self.calls.pending(step)}
        for place in leavers & pending.keys():
            self.calls.give_up(step, pending[place], is_gone=True)
        most = self.leases.config.max_staleness
        for place, version in list(self.leases.version_of.items()):
            if (staleness := step.round - 1 - version) > most:
                why = describe_stale(staleness, most)
                self._give_up(step, place, pending.get(place), why)
        self._top_up(step, bases)

    def fill(self, buffer: UpdateBuffer, size: int, bases: Bases) -> str:
        """Wait for updates, however long they take."""
        step, stop = buffer.step, self.actors.stop
        while buffer.n_updates < size and not stop.is_set():
            self._top_up(step, bases)
            pending = self.calls.pending(step)
            if not pending and not self._busy_places():
                return describe_shortage(buffer, size)
            started = time.monotonic()
            if pending:
                ends = min(call.asked_at for call in pending) + self.lease_s
                answer = self.calls.next_answer(step, ends)
            else:
                stop.wait(POLL_S)  # until an actor is done that nobody waits for
                answer = None
            step.record.wait_seconds += time.monotonic() - started
            if answer is None:
                self._expire(step)
            else:
                buffer.take(*answer)
                self.leases.end(_place(answer[0]))
            self.calls.stragglers.sweep()
        return ""

    def to_arrays(self, round: int) -> Weights:
        """Who trains from which version."""
        places = sorted(self.leases.version_of)
        versions = [self.leases.version_of[place] for place in places]
        return {
            "counts": np.array([self.leases.n_draws], np.int64),
            "place": np.array(places, np.int64),
            "version": np.array(versions, np.int64),
        }

    def restore(self, arrays: Weights) -> None:
        """Those who trained are asked again, for the same updates."""
        self.leases.n_draws = int(arrays["counts"][0])
        places, versions = arrays["place"].tolist(), arrays["version"].tolist()
        self.leases.version_of = dict(zip(places, versions, strict=True))

    def _top_up(self, step: RoundStep, bases: Bases) -> None:
        """Ask parties until as many are at work as may be."""
        self.leases.draw(step.round - 1, self._busy_places())
        waits = set(map(_place, self.calls.pending(step)))
        tasks = [t for t in self.leases.version_of.items() if t[0] not in waits]
        for version, item in items_of(self.actors, tasks):
            for place in item.parties:
                one = replace(item, parties=np.array([place]))
                self.calls.ask_from(step, one, bases[version])

    def _busy_places(self) -> set[int]:
        """Parties whose actors still train what is not waited for any more."""
        busy = self.calls.stragglers.busy_actors().keys()
        if not busy:
            return set()
        pools = (pool for pool in self.actors.pools if not busy.isdisjoint(pool.actors))
        return {place for pool in pools for place in pool.parties}

    def _expire(self, step: RoundStep) -> None:
        """Give up parties whose lease is over."""
        before = time.monotonic() - self.lease_s
        for pending in self.calls.pending(step):
            if pending.asked_at <= before:
                why = describe_lease(self.lease_s)
                self._give_up(step, _place(pending), pending, why)
                self.n_expired += 1

    def _give_up(
        self, step: RoundStep, place: int, pending: PendingUpdate | None, why: str
    ) -> None:
        """Wait no more for a party; pending : its call, if it was made."""
        step.record.settle(np.array([place]), Outcome(LATE, detail=why))
        self.leases.give_up(place)
        if pending is not None:
            self.calls.give_up(step, pending, is_gone=False)


class PlannedUpdates:
    """Trains updates of which it is known before that they count, in a given order.

    Parties of one actor that train from the same version do so in one call, stacked
    where that is possible.
    """

    def __init__(self, calls: Dispatch):
        self.calls, self.actors, self.n_expired = calls, calls.actors, 0

    def train(
        self,
        buffer: UpdateBuffer,
        items: Iterable[tuple[int, WorkItem]],
        bases: Bases,
    ) -> None:
        """Add updates in the order of these items, however they come."""
        step, config = buffer.step, buffer.step.config
        for version, item in items:
            self.calls.ask_from(step, item, bases[version])
        waiting = deque(pending.call for pending in self.calls.pending(step))
        answers: dict[ActorCall, tuple[PendingUpdate, Any]] = {}
        started = time.monotonic()
        until = started + config.round_timeout_s
        while answer := self.calls.next_answer(step, until):
            answers[answer[0].call] = answer
            step.record.wait_seconds += time.monotonic() - started
            while waiting and waiting[0] in answers:
                buffer.take(*answers.pop(waiting.popleft()))
            started = time.monotonic()
        for pending in self.calls.close(step):
            step.mark_late(pending.item, config.late_text)
        for call in waiting:
            if call in answers:
                buffer.take(*answers.pop(call))


class SimulatedArrivals(PlannedUpdates):
    """Updates in the order of a virtual clock."""

    def __init__(self, calls: Dispatch, simulation: Simulation):
        super().__init__(calls)
        self.simulation = simulation

    @property
    def virtual_s(self) -> float | None:
        """Time of the clock."""
        return self.simulation.clock.now_s

    def begin_step(self, step: RoundStep, bases: Bases) -> None:
        """Take in who is there; nobody is asked before its update is due."""
        self.simulation.begin_step(step.record.chosen)

    def fill(self, buffer: UpdateBuffer, size: int, bases: Bases) -> str:
        """Let virtual time go on until as many updates have come as count."""
        simulation, record = self.simulation, buffer.step.record
        while buffer.n_updates < size and not self.actors.stop.is_set():
            n_open = size - buffer.n_updates
            updates, others = simulation.next_updates(n_open, buffer.version)
            self.n_expired = simulation.n_expired
            for arrival in others:
                place = np.array([arrival.place])
                record.settle(
                    place, Outcome(LATE, detail=self._describe(arrival, buffer))
                )
            if not updates:
                return describe_shortage(buffer, size)
            tasks = [(one.place, one.version) for one in updates]
            self.train(buffer, items_of(self.actors, tasks), bases)
        return ""

    def to_arrays(self, round: int) -> Weights:
        """The clock, and whose updates are still to come."""
        return self.simulation.to_arrays()

    def restore(self, arrays: Weights) -> None:
        """Go on with the same arrivals."""
        self.simulation.restore(arrays)

    def _describe(self, arrival: Arrival, buffer: UpdateBuffer) -> str:
        """Why an arrival does not count."""
        if arrival.is_lost:
            return describe_lease(self.simulation.clock.lease_s)
        staleness = buffer.version - arrival.version
        return describe_stale(staleness, buffer.max_staleness)


class RecordedArrivals(PlannedUpdates):
    """The updates of an earlier run, in its order.

    are_together : whether parties of one version trained together, by a virtual clock.
    """

    virtual_s = None

    def __init__(self, calls: Dispatch, order: RecordedOrder, are_together: bool):
        super().__init__(calls)
        self.order, self.are_together = order, are_together

    def begin_step(self, step: RoundStep, bases: Bases) -> None:
        """Nothing to ask before."""

    def fill(self, buffer: UpdateBuffer, size: int, bases: Bases) -> str:
        """Train what a round's record says."""
        tasks = self.order.rounds.get(buffer.step.round, [])
        if self.are_together:
            items = items_of(self.actors, tasks)
        else:
            each = (items_of(self.actors, [task]) for task in tasks)
            items = (item for one in each for item in one)
        if tasks:
            self.train(buffer, items, bases)
        if not tasks or buffer.n_updates < len(tasks):
            n_got = f"{buffer.n_updates} of {len(tasks)} recorded updates"
            return f"a replay needs the same updates, got {n_got}"
        return ""

    def to_arrays(self, round: int) -> Weights:
        """From which versions later updates are trained."""
        return {"version": np.array(self.order.later_versions(round), np.int64)}

    def restore(self, arrays: Weights) -> None:
        """The order is in the folder."""


def items_of(
    actors: PartyActors, tasks: Sequence[Task]
) -> Iterator[tuple[int, WorkItem]]:
    """What actors are asked for, with the version; by version, then in config order."""
    by_version: dict[int, list[int]] = {}
    for place, version in tasks:
        by_version.setdefault(version, []).append(place)
    for version in sorted(by_version):
        for item in actors.assign(np.array(sorted(by_version[version]))):
            yield version, item


def describe_lease(lease_s: float) -> str:
    """Why a party is given up."""
    return f"no update within its lease of {lease_s:g} s"


def describe_shortage(buffer: UpdateBuffer, size: int) -> str:
    """Why a step cannot be made."""
    return (
        f"{buffer.n_updates} of {size} updates came, and no party is left to ask in "
        "this step: raise lease_s, or lower buffer_size"
    )


def _place(pending: PendingUpdate) -> int:
    """Of the one party of a call."""
    return int(pending.item.parties[0])
