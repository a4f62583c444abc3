"""Receives reports and updates of a round, and folds the updates in config order."""

import time
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray
from ray import ObjectRef
from ray.exceptions import RayError

from fedray.aggregator.dispatch import Dispatch
from fedray.aggregator.global_model import Broadcast
from fedray.aggregator.node_combiner import NodeCombiner, ReadyUpdate
from fedray.aggregator.party_actors import PartyActors, WorkItem, reason
from fedray.aggregator.round import LateUpdate, PendingUpdate, RoundStep
from fedray.aggregator.stragglers import discount_of, rebase
from fedray.aggregator.validation import check_report
from fedray.fusion import Accumulator, ExpectedUpdate
from fedray.messages import (
    APART,
    FAILED,
    FUSED,
    Origin,
    Outcome,
    Rejection,
    Report,
    Update,
)
from fedray.weights import n_bytes
from fedray.weights.encoding import Sender

COLUMNS = ("parties", "n_samples", "loss", "drift", "learning_rate")  # of a report
FETCH_S = 60.0  # for one update that is reported and must only travel


def take_report(
    step: RoundStep,
    actors: PartyActors,
    pending: PendingUpdate,
    answer: Any,
    broadcast: Broadcast,
) -> Report | None:
    """Note what a call has returned; None if that is no report that is believed.

    broadcast : whose bytes count once for each node.
    """
    item, record = pending.item, step.record
    if isinstance(answer, Report) and answer.absent.keys() >= {*item.parties.tolist()}:
        for place in item.parties.tolist():  # edges that have not answered in time
            record.settle(np.array([place]), answer.absent[place])
        step.late_actors.add(item.actor)
        return None
    declared = actors.declared_samples(item.parties)
    trouble = check_report(answer, item, pending.round, declared)
    if trouble:
        record.settle(item.parties, trouble)
        return None
    record.add_report(answer)
    record.restarts += actors.record_contact(item.actor, answer)
    n_received = broadcast.count_bytes(answer.node, answer.n_bytes)
    record.bytes_moved += n_received + step.count_state_bytes(answer.node)
    report: Report = answer
    return report


def take_update(
    step: RoundStep,
    raw: Any,
    base: Broadcast,
    parties: np.ndarray,
    expected: ExpectedUpdate | None,
) -> Update | None:
    """Validate an update; None if it is refused, with the reason in the record.

    base : the weights that it was trained from.
    """
    if isinstance(raw, Update) and isinstance(raw.weights, dict):
        arrays = list(raw.weights.values())
        if all(isinstance(array, np.ndarray) for array in arrays):
            step.record.bytes_moved += n_bytes(raw.weights)
    update = step.model.validator.validate(raw, base.weights, expected)
    if isinstance(update, Rejection):
        step.record.settle(parties, Outcome.refused(update))
        return None
    return update


@dataclass(eq=False)
class Slot:
    """A place in the order of folding: one update, or those of one remote node.

    updates : (item, which of its updates), in config order.
    n_open : reports that are still waited for.
    """

    updates: list[tuple[WorkItem, int]] = field(default_factory=list)
    n_open: int = 0
    combiner: NodeCombiner | None = None

    @property
    def is_settled(self) -> bool:
        """Whether nothing more is waited for."""
        return not self.n_open


class UpdateCollector:
    """Waits for the open calls of one round, and folds the updates that they send.

    Updates enter the accumulator in slots, which follow the config and the placement,
    so that the same reporters give the same bits, also when a node is replaced. A slot
    is one update, or those of all actors of one node other than the aggregator's: they
    are combined there as they arrive, so that one model per node travels.

    items : what is waited for.
    late : those of earlier rounds among them, by actor.
    can_close_early : whether the round is closed once enough have reported.
    """

    def __init__(
        self,
        step: RoundStep,
        dispatch: Dispatch,
        items: Iterable[WorkItem],
        late: Mapping[str, LateUpdate] | None = None,
        can_close_early: bool = True,
    ):
        self.step, self.record, self.model = step, step.record, step.model
        self.dispatch, self.actors = dispatch, dispatch.actors
        self.late, self.can_close_early = late or {}, can_close_early
        self.items = sorted(items, key=lambda item: int(item.parties[0]))
        self.reports: dict[str, Report] = {}  # by actor
        self._refs: dict[str, dict[int, ObjectRef]] = {}  # of updates, by actor
        # edges that have not answered, by actor
        self._absent: dict[str, list[int]] = {}
        self._open = {item.actor for item in self.items}  # reports not there yet
        self._slots_of: dict[str, list[Slot]] = defaultdict(list)  # by actor

    def collect(self, into: Accumulator, until: float) -> None:
        """Fold updates in slot order, until all have arrived or the time is over.

        until : monotonic clock, seconds.
        """
        slots = deque(self._make_slots())
        of_nodes = [slot for slot in slots if len(slot.updates) > 1]
        while slots:
            while slots and slots[0].is_settled:
                self._fold(slots.popleft(), into)
            if slots:
                self._receive(until)
                self._advance_nodes(of_nodes)

    def collect_reports(self, until: float) -> None:
        """Receive reports without updates, until then; see `reported`."""
        while self._open:
            self._receive(until)
        for item in self.reported:
            self.record.settle(item.parties, Outcome(APART), self._refused_by(item))

    @property
    def reported(self) -> dict[WorkItem, Report]:
        """Reports that have come, by item in config order."""
        there = [item for item in self.items if item.actor in self.reports]
        return {item: self.reports[item.actor] for item in there}

    def fetch(self, item: WorkItem, k: int, ref: ObjectRef) -> Update | None:
        """Fetch and validate an item's k-th update; None if it may not be fused."""
        parties = item.parties
        if not self.model.rule.associative:
            parties = parties[k : k + 1]
        parties = parties[~np.isin(parties, self._absent.get(item.actor, []))]
        if not len(parties):
            return None
        try:
            raw = ray.get(ref, timeout=FETCH_S)
        except RayError as error:
            self.record.settle(parties, Outcome(FAILED, "lost", reason(error)))
            return None
        late = self.late.get(item.actor)
        outcome = Outcome(FUSED, "late", str(late.round)) if late else Outcome(FUSED)
        self.record.settle(parties, outcome, self._refused_by(item))
        expected = self._expected(item, k)
        is_refused = int(parties[0]) in self._refused_by(item)
        if raw is None and (expected is None or is_refused):
            return None  # its actor has refused all of its parties
        base = late.broadcast if late else self.model.last_broadcast
        return self._validated(raw, base, parties, expected)

    def _make_slots(self) -> Iterable[Slot]:
        """One slot for each update, or for each remote node; in config order."""
        slots: dict[Any, Slot] = defaultdict(Slot)
        for i, item in enumerate(self.items):
            is_remote = self.model.rule.associative and item.node != self.actors.here
            is_combined = is_remote and item.actor not in self.late  # of another base
            for k in range(self.step.n_updates(item)):
                slot = slots[item.node if is_combined else (i, k)]
                slot.updates.append((item, k))
                slot.n_open += 1
                self._slots_of[item.actor].append(slot)
        return slots.values()

    def _receive(self, until: float) -> None:
        """Take one report, or close the round: who has not reported is late."""
        started = time.monotonic()
        answer = self.dispatch.next_answer(self.step, until)
        if answer is not None:
            self._take_report(*answer)
        if answer is None or self._has_enough():
            why = self._late_text() if answer is None else ""
            for pending in self.dispatch.close(self.step):
                self.step.mark_late(pending.item, why)
                self._count_answered(pending.item)
        self.record.wait_seconds += time.monotonic() - started

    def _late_text(self) -> str:
        """Why parties are late that nobody but the clock has cut off."""
        config = self.step.config
        is_timeout = config.closes_after_s == config.round_timeout_s
        return config.late_text if is_timeout else ""

    def _has_enough(self) -> bool:
        """Whether the first reports that count are as many as are wanted."""
        return self.can_close_early and self.step.n_counted >= self.step.n_wanted

    def _count_answered(self, item: WorkItem) -> None:
        self._open.discard(item.actor)
        for slot in self._slots_of[item.actor]:
            slot.n_open -= 1

    def _take_report(self, pending: PendingUpdate, answer: Any) -> None:
        item, update_refs = pending.item, pending.call.refs[1:]
        self._count_answered(item)
        if isinstance(answer, Report) and 0 < len(answer.absent) < len(item.parties):
            item, answer = self._without_absent(item, answer)
            pending = replace(pending, item=item)
        broadcast = self.model.last_broadcast
        report = take_report(self.step, self.actors, pending, answer, broadcast)
        if report is None:
            return
        self.reports[item.actor] = report
        self._refs[item.actor] = dict(enumerate(update_refs))
        if report.drifted is not None and not update_refs:
            self.record.bytes_moved += report.drifted.levels.nbytes

    def _without_absent(
        self, item: WorkItem, report: Report
    ) -> tuple[WorkItem, Report]:
        """What an item's edges have answered; the others are settled here."""
        self._absent[item.actor] = [*report.absent]
        for place, outcome in report.absent.items():
            self.record.settle(np.array([place]), outcome)
        is_there = ~np.isin(report.parties, [*report.absent])
        columns = {name: getattr(report, name) for name in COLUMNS}
        rows: dict[str, Any]
        rows = {k: c if c is None else c[is_there] for k, c in columns.items()}
        if (spent := report.spending) is not None:
            own = {k: c[is_there] for k, c in spent._asdict().items() if k != "delta"}
            rows["spending"] = spent._replace(**own)
        answered = replace(report, absent={}, **rows)
        return replace(item, parties=answered.parties), answered

    def _advance_nodes(self, slots: Iterable[Slot]) -> None:
        """Let each remote node combine the updates that have arrived, in order.

        A single update is not combined: it travels as it is.
        """
        for slot in slots:
            combiner = slot.combiner
            if combiner and combiner.is_over:
                continue
            ready = self._ready_items(slot)
            if combiner and not ready and not slot.is_settled:
                continue
            if not combiner and len(ready) < 2:
                continue
            self._combine(slot, ready)

    def _ready_items(self, slot: Slot) -> list[WorkItem]:
        """Items that wait to be combined: theirs and all reports before are there."""
        ready = []
        for item, _ in slot.updates:
            if item.actor in self._open:
                break
            if item.actor in self._refs:
                ready.append(item)
        return ready

    def _combine(self, slot: Slot, ready: list[WorkItem]) -> None:
        if slot.combiner is None:
            model, state_ref = self.model, self.step.state_ref
            config = self.step.config
            first = config.party_name(int(slot.updates[0][0].parties[0]))
            slot.combiner = NodeCombiner(
                self.actors.run,
                model.rule,
                model.validator,
                model.last_broadcast.ref,
                state_ref,
                Sender(config.seed, self.step.round, first, is_node=True),
            )
        updates = [
            ReadyUpdate(item, self._expected(item, 0), self._refs.pop(item.actor)[0])
            for item in ready
        ]
        # where the last one was trained: the node of the first ones may be lost
        last = (slot.combiner.items + ready)[-1]
        node = self.actors.nodes[last.actor]
        slot.combiner.add(updates, node, is_last=slot.is_settled)

    def _fold(self, slot: Slot, into: Accumulator) -> None:
        """Add a settled slot's update, if there is one; it is dropped at once."""
        combiner, slot.combiner = slot.combiner, None
        update = self._combined(combiner) if combiner else self._single(slot)
        if update is not None:
            into.add(update)

    def _combined(self, combiner: NodeCombiner) -> Update | None:
        """Fetch the one update into which a node's were combined."""
        try:
            update, refused = combiner.result(FETCH_S)
        except RayError as error:
            for item in combiner.items:
                outcome = Outcome(FAILED, "combine", reason(error))
                self.record.settle(item.parties, outcome)
            return None
        for item in combiner.items:
            by_party = refused | self._refused_by(item)
            own = {int(p): by_party[p] for p in item.parties if p in by_party}
            self.record.settle(item.parties, Outcome(FUSED), own)
        if update is None:
            return None
        parties = np.concatenate([item.parties for item in combiner.items])
        return self._validated(update, self.model.last_broadcast, parties, None)

    def _single(self, slot: Slot) -> Update | None:
        """Fetch the one update of a slot, in the form in which it adds up."""
        present = [(item, k) for item, k in slot.updates if item.actor in self._refs]
        if not present:
            return None
        item, k = present[0]
        update = self.fetch(item, k, self._refs[item.actor].pop(k))
        late = self.late.get(item.actor)
        if update is not None and late:
            update = rebase(update, late, self.model.last_broadcast, self.step.round)
            scale = discount_of(late, self.step.round)
            update = self.model.rule.discount(update, scale)
        if update is None or self._expected(item, k) is None:
            return update
        model = self.model
        return model.rule.to_additive(update, model.last_broadcast.weights, model.state)

    def _refused_by(self, item: WorkItem) -> dict[int, Rejection]:
        """Parties whose updates their own actor has refused."""
        return self.reports[item.actor].refused

    def _expected(self, item: WorkItem, k: int) -> ExpectedUpdate | None:
        """Metadata that an item's k-th update must have; None if it is of several."""
        if self.model.rule.associative and not item.is_single:
            return None
        late = self.late.get(item.actor)
        round = late.round if late else self.step.round
        place = int(item.parties[k])
        declared = self.actors.declared_samples(item.parties[k : k + 1])
        return ExpectedUpdate(Origin(self.actors.run, round, place), int(declared[0]))

    def _validated(
        self,
        raw: Any,
        base: Broadcast,
        parties: np.ndarray,
        expected: ExpectedUpdate | None,
    ) -> Update | None:
        """Validate an update; None if it is refused, with the reason in the record."""
        update = take_update(self.step, raw, base, parties, expected)
        if update is None:
            return None
        # decoded arrays of a rule that waits for all others go back into the store:
        # the aggregator's own memory would hold all of them
        is_kept = not self.model.rule.associative
        if is_kept and update.weights is not raw.weights:
            update = ray.get(ray.put(update))
        return update
