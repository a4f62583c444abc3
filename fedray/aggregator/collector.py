"""One round's updates: asked for once, folded in config order as they come."""

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from fedray import fusion
from fedray.aggregator.asking import Asking
from fedray.aggregator.node_combiner import Chain, Terms
from fedray.aggregator.party_actors import Broadcast, Crew, Part, answers, reason
from fedray.aggregator.round_record import RoundRecord
from fedray.aggregator.stragglers import Latecomers, caught_up
from fedray.errors import TooFewUpdates
from fedray.fusion import ExpectedUpdate, RoundContext, State
from fedray.messages import FAILED, FUSED, Origin, Outcome, Rejection, Update
from fedray.weights import n_bytes

FETCH_S = 60.0  # for one update that is reported and must only travel

Turn = list[tuple[int, int]]  # (part, which of its updates)


class Collection(Asking):
    """Asks the chosen parties, and yields their updates each as its turn comes.

    A turn is one update, or those of all actors of one node other than the
    aggregator's: they are combined there as they come, so that one model per node
    travels. Turns follow the config and the sites, so that the same reporters give the
    same bits, also when a node is replaced.
    """

    def __init__(
        self, crew: Crew, terms: Terms, record: RoundRecord, latecomers: Latecomers
    ):
        super().__init__(crew, terms, record, latecomers)
        self.chains: dict[int, Chain] = {}

    def combined(self, state: State, until: float) -> tuple[Update | None, str]:
        """All updates in one, or why there is none."""
        context = RoundContext(self.record.round, self.broadcast.weights, state)
        updates = self.arriving(state, until)
        try:
            return fusion.combine(self.terms.rule, updates, context), ""
        except TooFewUpdates as error:
            return None, f"no update could be fused: {error}"

    def arriving(self, state: State, until: float) -> Iterator[Update]:
        """Updates in their order, each dropped here once it is handed over."""
        turns, arrivals = self._turns(), answers(self.calls, until, self.crew.stop)
        for i, turn in enumerate(turns):
            while self._is_open(turn):
                waiting = time.monotonic()
                self._next(arrivals)
                self._close_if_enough()
                self.record.wait_seconds += time.monotonic() - waiting
                self._chain(turns)
            if i in self.chains:
                update = self._combined(self.chains.pop(i))
            else:
                update = self._single(turn, state)
            if update is not None:
                yield update
            del update

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
            dues = [self.due(part) for part in ready]
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
                wrong = Outcome(FAILED, "combine", reason(error))
                self.record.settle(part.parties, wrong)
            return None
        for part in chain.parts:
            bad = self.refused[part.actor] | refused
            mine = {int(p): bad[p] for p in part.parties if p in bad}
            self.record.settle(part.parties, Outcome(FUSED), mine)
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
            self.record.settle(parties, Outcome(FAILED, "lost", reason(error)))
            return None
        late = self.stale.get(part.actor)
        fused = Outcome(FUSED, "late", str(late.round)) if late else Outcome(FUSED)
        self.record.settle(parties, fused, self.refused[part.actor])
        if update is None and not part.is_single:
            return None  # all of its parties were refused
        due = self.due(part, k)
        update = self._opened(update, (late or self).broadcast, parties, due)
        if update is not None and late:
            update = caught_up(update, late, self.broadcast, self.record.round)
        if update is None or due is None:
            return update
        return self.terms.rule.to_additive(update, self.broadcast.weights, state)

    def due(self, part: Part, k: int = 0) -> ExpectedUpdate | None:
        """What a part's k-th update must say of itself; None if it is of several."""
        if self.terms.rule.associative and not part.is_single:
            return None
        party = int(part.parties[k])
        origin = Origin(self.crew.run, self._round(part), party)
        return ExpectedUpdate(origin, int(self.crew.n_train[party]))

    def _opened(
        self,
        update: Any,
        base: Broadcast,
        parties: np.ndarray,
        due: ExpectedUpdate | None,
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
        self.record.settle(parties, Outcome.refused(Rejection.parse(opened)))
        return None
