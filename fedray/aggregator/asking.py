"""One round's parties: asked for once, and heard as they report."""

import time
from collections.abc import Iterator
from typing import Any

import ray
from ray import ObjectRef

from fedray.aggregator.node_combiner import Terms
from fedray.aggregator.party_actors import Broadcast, Crew, Part, answers
from fedray.aggregator.round_record import RoundRecord
from fedray.aggregator.stragglers import Latecomers, Pending
from fedray.aggregator.validation import declare, failure, report_flaw
from fedray.fusion import State
from fedray.messages import APART, LATE, Outcome, Rejection, Report
from fedray.weights import size_of


class Asking:
    """Calls of one round that are under way, and what came of those that are not.

    parts : what actors are asked for, in config order.
    updates : by actor: where its updates are, or will be.
    """

    def __init__(
        self, crew: Crew, terms: Terms, record: RoundRecord, latecomers: Latecomers
    ):
        self.crew, self.terms, self.record = crew, terms, record
        self.latecomers = latecomers
        self.stale: dict[str, Pending] = {}  # by actor: from a round closed before
        self.parts = crew.deal(record.chosen)
        self.record.model_bytes = size_of(terms.needed)
        self.calls: dict[ObjectRef, Part] = {}
        self.updates: dict[str, list[ObjectRef]] = {}
        self.refused: dict[str, dict[int, Rejection]] = {}
        self.reported: dict[str, Report] = {}
        self.is_sending = False  # what was reported before

    def ask(self, broadcast: Broadcast, state: State, since: int | None = None) -> None:
        """Ask for all of them; nothing is waited for.

        since : the round after the last fusion, if only reports are asked for.
        """
        self.broadcast = broadcast
        self.state_ref = ray.put(state) if self.terms.rule.needs_context else None
        self._take_late()
        self.asked_at = time.monotonic()
        for part in self.parts:
            if part.actor not in self.stale:
                n_sent = 0 if since else len(self._sent(part))
                self._call(part, "train", since, n_sent)

    def reports(self, until: float) -> list[Report]:
        """What was reported by then (monotonic clock), in config order.

        Only the parts that have reported are left, and nothing of theirs has moved.
        """
        arrivals = answers(self.calls, until, self.crew.stop)
        started = time.monotonic()
        while self.calls:
            self._next(arrivals)
            self._close_if_enough()
        self.record.wait_seconds += time.monotonic() - started
        self.parts = [part for part in self.parts if part.actor in self.updates]
        for part in self.parts:
            self.record.settle(part.parties, Outcome(APART), self.refused[part.actor])
        return [self.reported[part.actor] for part in self.parts]

    def ask_updates(self, since: int) -> None:
        """Ask those that have reported for what they keep; all of them count."""
        self.is_sending, self.asked_at = True, time.monotonic()
        for part in self.parts:
            self._call(part, "update", since, len(self._sent(part)))

    def _call(self, part: Part, method: str, since: int | None, n_sent: int) -> None:
        words = self.record.round, part.parties, self.broadcast.ref, self.state_ref
        call = getattr(self.crew.actors[part.actor], method)
        refs = call.options(num_returns=1 + n_sent).remote(*words, since)
        report_ref, *update_refs = refs if n_sent else [refs]
        self.calls[report_ref], self.updates[part.actor] = part, update_refs

    def _take_late(self) -> None:
        """Who still trains for a closed round is not asked again, but waited for."""
        busy, due = self.latecomers.sort_out(self.record, self.parts)
        free = [part for part in self.parts if part.actor not in busy]
        self.parts = [*free, *(late.part for late in due)]
        self.parts.sort(key=lambda part: part.parties[0])
        for late in due:
            self.stale[late.part.actor] = late
            self.calls[late.report_ref] = late.part
            self.updates[late.part.actor] = late.update_refs

    def _sent(self, part: Part) -> range:
        """One update for a part, or where the rule must see everyone one for each."""
        return range(1 if self.terms.rule.associative else len(part.parties))

    def _next(self, arrivals: Iterator[tuple[Part, Any]]) -> None:
        part, answer = next(arrivals, (None, None))
        if part is None:
            return self._give_up()
        name = part.actor
        n_train = self.crew.n_train
        wrong = failure(answer) or report_flaw(answer, part, self._round(part), n_train)
        if not wrong:
            declare(answer, n_train)
            self.record.report(answer)
            self.refused[name], self.reported[name] = answer.refused, answer
            if answer.drifted is not None and not self.updates[name]:
                self.record.bytes_moved += answer.drifted.levels.nbytes
            self.record.restarts += self.crew.heard(name, answer)
            arrived = self.broadcast.arrived(answer.node, answer.n_bytes)
            self.record.bytes_moved += arrived
        else:
            del self.updates[name]
            self.record.settle(part.parties, wrong)

    def _round(self, part: Part) -> int:
        """The round that a part trains."""
        return (self.stale.get(part.actor) or self.record).round

    def _close_if_enough(self) -> None:
        """Of more than are wanted the first ones count."""
        is_enough = self.record.n_reported >= self.record.n_wanted
        if is_enough and not self.is_sending:
            self._give_up()

    def _give_up(self) -> None:
        """The round is closed: who has not reported is late, and may hang."""
        for ref, part in self.calls.items():
            refs = self.updates.pop(part.actor)
            self.record.settle(part.parties, Outcome(LATE))
            self.record.late.add(part.actor)
            late = self.stale.get(part.actor) or Pending(
                part, ref, refs, self.record.round, self.broadcast, self.asked_at
            )
            self.latecomers.add(self.crew, late)
        self.calls.clear()
