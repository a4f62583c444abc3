"""One round's updates: asked for once, folded in config order as they come."""

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
from ray import ObjectRef
from ray.exceptions import RayError

from fedray.aggregator.checks import declare, failure, report_flaw
from fedray.aggregator.combine import Chain, Terms
from fedray.aggregator.crew import Broadcast, Crew, Part, answers, reason
from fedray.aggregator.late import Latecomers, Pending, caught_up
from fedray.aggregator.record import LATE, RoundRecord
from fedray.errors import TooFewUpdates
from fedray.fusion import Due, State
from fedray.messages import Origin, Update
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
        self.refused: dict[str, dict[int, str]] = {}
        self.chains: dict[int, Chain] = {}

    def ask(self, broadcast: Broadcast, state: State) -> None:
        """Ask for all of them; nothing is waited for."""
        self.broadcast = broadcast
        self.state_ref = ray.put(state) if self.terms.rule.admits else None
        self._take_late()
        self.asked_at = time.monotonic()
        for part in self.parts:
            if part.actor in self.stale:
                continue
            train = self.crew.actors[part.actor].train
            words = self.record.round, part.parties, broadcast.ref, self.state_ref
            count = 1 + len(self._sent(part))
            report_ref, *update_refs = train.options(num_returns=count).remote(*words)
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
                if self.record.n_reported >= self.record.n_wanted:
                    self._give_up()
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
            away = away and part.actor not in self.stale
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
        n_train = self.crew.n_train
        wrong = failure(answer) or report_flaw(answer, part, self._round(part), n_train)
        if not wrong:
            declare(answer, n_train)
            self.record.report(answer)
            self.refused[name] = answer.refused
            self.record.restarts += self.crew.heard(name, answer)
            arrived = self.broadcast.arrived(answer.node, answer.n_bytes)
            self.record.bytes_moved += arrived
        else:
            del self.updates[name]
            self.record.settle(part.parties, wrong)

    def _round(self, part: Part) -> int:
        """The round that a part trains."""
        return (self.stale.get(part.actor) or self.record).round

    def _give_up(self) -> None:
        """The round is closed: who has not reported is late, and may hang."""
        for ref, part in self.calls.items():
            refs = self.updates.pop(part.actor)
            self.record.settle(part.parties, LATE)
            self.record.late.add(part.actor)
            late = self.stale.get(part.actor) or Pending(
                part, ref, refs, self.record.round, self.broadcast, self.asked_at
            )
            self.latecomers.add(self.crew, late)
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
            dues = [self._due(part) for part in ready]
            chain.fold(list(zip(ready, dues, refs, strict=True)), node, is_over)

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
        return update and self._opened(update, self.broadcast, parties, None)

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
        late = self.stale.get(part.actor)
        self.record.settle_but(parties, self.refused[part.actor], late and late.round)
        if update is None and not part.is_single:
            return None  # all of its parties were refused
        due = self._due(part, k)
        update = self._opened(update, (late or self).broadcast, parties, due)
        if update is not None and late:
            update = caught_up(update, late, self.broadcast, self.record.round)
        if update is None or due is None:
            return update
        return self.terms.rule.admit(update, self.broadcast.weights, state)

    def _due(self, part: Part, k: int = 0) -> Due | None:
        """What a part's k-th update must say of itself; None if it is of several."""
        if self.terms.rule.associative and not part.is_single:
            return None
        party = int(part.parties[k])
        origin = Origin(self.crew.run, self._round(part), party)
        return Due(origin, int(self.crew.n_train[party]))

    def _opened(
        self, update: Any, base: Broadcast, parties: np.ndarray, due: Due | None
    ) -> Update | None:
        """An update as it is folded; None, and said in the record, if it may not."""
        if isinstance(update, Update) and isinstance(update.weights, dict):
            arrays = list(update.weights.values())
            if all(isinstance(array, np.ndarray) for array in arrays):
                self.record.bytes_moved += n_bytes(update.weights)
        opened = self.terms.opened(update, base.weights, due)
        if isinstance(opened, Update):
            waits = not self.terms.rule.associative  # for all others
            is_private = waits and opened.weights is not update.weights
            return ray.get(ray.put(opened)) if is_private else opened
        self.record.settle(parties, f"refused: {opened}")
        return None
