"""One round's updates: asked for once, folded in config order as they come."""

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
from ray import ObjectRef
from ray.exceptions import RayError

from fedray.aggregator.combine import Chain, Terms
from fedray.aggregator.crew import Broadcast, Crew, Part, answers, reason
from fedray.aggregator.record import LATE, RoundRecord
from fedray.errors import TooFewUpdates
from fedray.fusion import State
from fedray.messages import APART, Report, Update
from fedray.weights import n_bytes, size_of

FETCH_S = 60.0  # for one update that is reported and must only travel

Turn = list[tuple[int, int]]  # (part, which of its updates)


class Collection:
    """Asks the chosen parties, and yields their updates each as its turn comes.

    A turn is one update, or those of all actors of one node other than the
    aggregator's: they are combined there as they come, so that one model per node
    travels. Turns follow the config and the sites, so that the same reporters give the
    same bits, also when a node is replaced.
    """

    def __init__(self, crew: Crew, terms: Terms, record: RoundRecord):
        self.crew, self.terms, self.record = crew, terms, record
        self.parts = crew.deal(record.chosen)
        self.record.model_bytes = size_of(terms.needed)
        self.calls: dict[ObjectRef, Part] = {}
        self.updates: dict[str, list[ObjectRef]] = {}
        self.refused: dict[str, dict[int, str]] = {}
        self.reported: dict[str, Report] = {}
        self.chains: dict[int, Chain] = {}

    def ask(self, broadcast: Broadcast, state: State, since: int | None = None) -> None:
        """Ask for all of them; nothing is waited for.

        since : the round after the last fusion, if only reports are asked for.
        """
        self.broadcast = broadcast
        self.state_ref = ray.put(state) if self.terms.rule.admits else None
        for part in self.parts:
            self._call(part, "train", since, 0 if since else len(self._sent(part)))

    def reports(self, until: float) -> list[Report]:
        """What was reported by then (monotonic clock), in config order.

        Only the parts that have reported are left, and nothing of theirs has moved.
        """
        arrivals = answers(self.calls, until, self.crew.stop)
        started = time.monotonic()
        while self.calls:
            self._next(arrivals)
        self.record.wait_seconds += time.monotonic() - started
        self.parts = [part for part in self.parts if part.actor in self.updates]
        for part in self.parts:
            self.record.settle_but(part.parties, self.refused[part.actor], APART)
        return [self.reported[part.actor] for part in self.parts]

    def ask_updates(self, since: int) -> None:
        """Ask those that have reported for what they keep."""
        for part in self.parts:
            self._call(part, "update", since, len(self._sent(part)))

    def _call(self, part: Part, method: str, since: int | None, n_sent: int) -> None:
        words = self.record.round, part.parties, self.broadcast.ref, self.state_ref
        call = getattr(self.crew.actors[part.actor], method)
        refs = call.options(num_returns=1 + n_sent).remote(*words, since)
        report_ref, *update_refs = refs if n_sent else [refs]
        self.calls[report_ref], self.updates[part.actor] = part, update_refs

    def combined(self, state: State, until: float) -> tuple[Update | None, str]:
        """All updates in one, or why there is none."""
        rule = self.terms.rule.in_round(
            self.record.round, self.broadcast.weights, state
        )
        try:
            return rule.combine(self.arriving(state, until)), ""
        except TooFewUpdates as error:
            return None, f"no update could be fused: {error}"

    def arriving(self, state: State, until: float) -> Iterator[Update]:
        """Updates in their order, each dropped here once it is handed over."""
        turns, arrivals = self._turns(), answers(self.calls, until, self.crew.stop)
        for i, turn in enumerate(turns):
            while self._is_open(turn):
                waiting = time.monotonic()
                self._next(arrivals)
                self.record.wait_seconds += time.monotonic() - waiting
                self._chain(turns)
            if i in self.chains:
                update = self._combined(self.chains.pop(i))
            else:
                update = self._single(turn, state)
            if update is not None:
                yield update
            del update

    def _sent(self, part: Part) -> range:
        """One update for a part, or where the rule must see everyone one for each."""
        return range(1 if self.terms.rule.associative else len(part.parties))

    def _turns(self) -> list[Turn]:
        groups = defaultdict(list)
        for i, part in enumerate(self.parts):
            away = self.terms.rule.associative and part.node != self.crew.here
            for k in self._sent(part):
                groups[part.node if away else (i, k)].append((i, k))
        return list(groups.values())

    def _is_open(self, turn: Turn) -> bool:
        waiting = set(self.calls.values())
        return any(self.parts[i] in waiting for i, _ in turn)

    def _next(self, arrivals: Iterator[tuple[Part, Any]]) -> None:
        part, answer = next(arrivals, (None, None))
        if part is None:
            return self._give_up()
        name = part.actor
        if isinstance(answer, Report) and self._is_expected(answer, part):
            self.record.report(answer)
            self.refused[name], self.reported[name] = answer.refused, answer
            if answer.drifted is not None and not self.updates[name]:
                self.record.bytes_moved += answer.drifted.sketch.nbytes
            self.record.restarts += self.crew.heard(name, answer)
            arrived = self.broadcast.arrived(answer.node, answer.n_bytes)
            self.record.bytes_moved += arrived
        else:
            del self.updates[name]
            wrong = isinstance(answer, Exception) and reason(answer)
            self.record.settle(
                part.parties, f"failed: {wrong or 'sent something else'}"
            )

    def _is_expected(self, report: Report, part: Part) -> bool:
        same = np.array_equal(report.parties, part.parties)
        return same and report.round == self.record.round

    def _give_up(self) -> None:
        """Time is up: who has not reported is late; its actor is killed, and anew."""
        for ref, part in self.calls.items():
            del self.updates[part.actor]
            self.record.settle(part.parties, LATE)
            self.record.late.add(part.actor)
            if not self.crew.stop.is_set():
                self.crew.restart(part.actor, ref)
        self.calls.clear()

    def _chain(self, turns: list[Turn]) -> None:
        """Let each node fold what has come, in order; alone, an update just travels."""
        for i, turn in enumerate(turns):
            chain = self.chains.get(i)
            if len(turn) < 2 or (chain and chain.is_over):
                continue
            ready, is_over = self._ready(turn), not self._is_open(turn)
            if not (chain and (ready or is_over)) and len(ready) < 2:
                continue
            if chain is None:
                refs = self.broadcast.ref, self.state_ref
                chain = self.chains[i] = Chain(self.crew.run, self.terms, refs)
            last = (chain.parts + ready)[-1]
            node = self.crew.nodes[last.actor]  # where the first ones were may be lost
            refs = [self.updates.pop(part.actor)[0] for part in ready]
            chain.fold(list(zip(ready, refs, strict=True)), node, is_over)

    def _ready(self, turn: Turn) -> list[Part]:
        """Parts of a turn that have come, as all before them have; not yet folded."""
        waiting, found = set(self.calls.values()), []
        for i, _ in turn:
            part = self.parts[i]
            if part in waiting:
                break
            if part.actor in self.updates:
                found.append(part)
        return found

    def _combined(self, chain: Chain) -> Update | None:
        try:
            update, refused = chain.result(FETCH_S)
        except RayError as error:
            for part in chain.parts:
                wrong = f"failed: combining: {reason(error)}"
                self.record.settle(part.parties, wrong)
            return None
        for part in chain.parts:
            bad = self.refused[part.actor] | refused
            mine = {int(p): bad[p] for p in part.parties if p in bad}
            self.record.settle_but(part.parties, mine)
        parties = np.concatenate([part.parties for part in chain.parts])
        return update and self._opened(update, parties, False)

    def _single(self, turn: Turn, state: State) -> Update | None:
        there = [(self.parts[i], k) for i, k in turn]
        there = [(part, k) for part, k in there if part.actor in self.updates]
        if not there:
            return None
        part, k = there[0]
        is_whole = self.terms.rule.associative
        parties = part.parties if is_whole else part.parties[k : k + 1]
        refs = self.updates[part.actor]
        ref, refs[k] = refs[k], None
        try:
            update = ray.get(ref, timeout=FETCH_S)
        except RayError as error:
            self.record.settle(parties, f"failed: update lost: {reason(error)}")
            return None
        self.record.settle_but(parties, self.refused[part.actor])
        if update is None and not part.is_single:
            return None  # all of its parties were refused
        is_one = part.is_single or not is_whole
        update = self._opened(update, parties, is_one)
        if update is None or not is_one:
            return update
        return self.terms.rule.admit(update, self.broadcast.weights, state)

    def _opened(self, update: Any, parties: np.ndarray, is_one: bool) -> Update | None:
        """An update as it is folded; None, and said in the record, if it may not."""
        if isinstance(update, Update) and isinstance(update.weights, dict):
            arrays = list(update.weights.values())
            if all(isinstance(array, np.ndarray) for array in arrays):
                self.record.bytes_moved += n_bytes(update.weights)
        opened = self.terms.opened(update, self.broadcast.weights, is_one)
        if isinstance(opened, Update):
            waits = not self.terms.rule.associative  # for all others
            is_private = waits and opened.weights is not update.weights
            return ray.get(ray.put(opened)) if is_private else opened
        self.record.settle(parties, f"refused: {opened}")
        return None
