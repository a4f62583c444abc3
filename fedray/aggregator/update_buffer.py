"""UpdateBuffer: the updates of one asynchronous step, weighed by their staleness."""

import ray
from ray.exceptions import RayError

from fedray.aggregator.collector import FETCH_S, take_report, take_update
from fedray.aggregator.party_actors import PartyActors, WorkItem, reason
from fedray.aggregator.round import PendingUpdate, RoundStep
from fedray.fusion import ExpectedUpdate, RoundContext, StalenessWeights
from fedray.messages import FAILED, FUSED, LATE, Origin, Outcome, Rejection, Update


class UpdateBuffer:
    """Adds updates as they come, each as a step from today's weights; one model.

    order : place and version of each, in the order in which they were added.
    """

    def __init__(self, step: RoundStep, actors: PartyActors):
        self.step, self.model, self.actors = step, step.model, actors
        config = step.config
        self.weights = StalenessWeights(config.staleness, config.normalise)
        self.max_staleness = config.max_staleness
        today = self.model.last_broadcast.weights
        context = RoundContext(step.round, today, self.model.state)
        self.accumulator = self.model.rule.accumulator(context)
        self.order: list[list[int]] = []

    @property
    def version(self) -> int:
        """Steps that the global weights have taken."""
        return self.step.round - 1

    @property
    def n_updates(self) -> int:
        """Updates that count."""
        return len(self.order)

    def take(self, pending: PendingUpdate, answer: object) -> bool:
        """Add what a call has sent; False if none of it counts, which is recorded."""
        record, item = self.step.record, pending.item
        report = take_report(self.step, self.actors, pending, answer, pending.broadcast)
        if report is None:
            return False
        version = pending.round - 1
        if self.version - version > self.max_staleness:
            stale = describe_stale(self.version - version, self.max_staleness)
            record.settle(item.parties, Outcome(LATE, detail=stale))
            return False
        try:
            raw = ray.get(pending.call.refs[1], timeout=FETCH_S)
        except RayError as error:
            record.settle(item.parties, Outcome(FAILED, "lost", reason(error)))
            return False
        record.settle(item.parties, Outcome(FUSED), report.refused)
        update = self._validated(pending, raw, report.refused)
        if update is None:
            return False
        self._add(update, pending)
        places = [p for p in item.parties.tolist() if p not in report.refused]
        self.order += [[place, version] for place in places]
        return True

    def _validated(
        self, pending: PendingUpdate, raw: object, refused: dict[int, Rejection]
    ) -> Update | None:
        item = pending.item
        expected = self._expected(item, pending.round)
        is_refused = int(item.parties[0]) in refused
        if raw is None and (expected is None or is_refused):
            return None  # its actor has refused all of its parties
        base = pending.broadcast
        return take_update(self.step, raw, base, item.parties, expected)

    def _add(self, update: Update, pending: PendingUpdate) -> None:
        model, then = self.model, pending.broadcast.weights
        update = model.rule.to_additive(update, then, model.state)
        staleness = self.step.round - pending.round
        today = model.last_broadcast.weights
        self.weights.add(self.accumulator, update, then, today, staleness)

    def _expected(self, item: WorkItem, round: int) -> ExpectedUpdate | None:
        """Metadata that an update must have; None if it is of several parties."""
        if not item.is_single:
            return None
        place = int(item.parties[0])
        declared = self.actors.declared_samples(item.parties)
        return ExpectedUpdate(Origin(self.actors.run, round, place), int(declared[0]))


def describe_stale(staleness: int, most: int) -> str:
    """Why an update does not count that was trained from old weights."""
    return f"its update is {staleness} steps old, more than max_staleness: {most}"
