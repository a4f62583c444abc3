"""A round in which everyone adopts the best model instead of a mean."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import ray
from ray import ObjectRef
from ray.exceptions import RayError

from fedray import policy
from fedray.aggregator.collector import FETCH_S
from fedray.aggregator.party_actors import Part, answers, reason
from fedray.aggregator.strategies.always import Always
from fedray.messages import FAILED, FUSED, Outcome, Rejection, Score, Update
from fedray.weights import n_bytes


class Best(Always):
    """Everyone trains; the best by their own tests are looked at by all others.

    Candidates stay where they were made and go by reference from there to whoever
    looks at them; only the best one comes to the aggregator.
    """

    def ask(self) -> None:
        """Ask for reports and everyone's own score."""
        round = self.record.round
        self.collection.ask(self.lineage.broadcast, self.lineage.state, round)

    def update(self, until: float) -> tuple[Update | None, str]:
        """The best of the candidates that may count; or say why there is none."""
        reports = self.collection.reports(until)
        n_needed = policy.needed(self.config.quorum, len(self.record.chosen))
        if self.record.n_reported < n_needed:
            return None, ""
        refs = self._candidates(policy.candidates(reports, self.config.candidates))
        if not refs:
            return None, "no party has test samples that tell how good its model is"
        until = time.monotonic() + self.config.round_timeout_s
        for place in self._ranked(refs, until):
            update = self._opened(place, refs[place])
            if update is not None:
                self.record.best = self.config.party_name(place)
                self.record.settle(np.array([place]), Outcome(FUSED))
                return update, ""
        return None, "no candidate could be adopted"

    def _candidates(self, places: list[int]) -> dict[int, ObjectRef]:
        """Where each candidate's update is going to be."""
        crew, base, refs = self.collection.crew, self.lineage.broadcast.ref, {}
        for place in places:
            part = next(p for p in self.collection.parts if place in p.parties)
            words = self.record.round, part.parties, base, place
            refs[place] = crew.actors[part.actor].candidate.remote(*words)
        return refs

    def _ranked(self, refs: dict[int, ObjectRef], until: float) -> list[int]:
        """Candidates, the best first, after every other party has looked at them."""
        crew, base = self.collection.crew, self.lineage.broadcast.ref
        calls: dict[ObjectRef, tuple[int, Part]] = {}
        for place, ref in refs.items():
            for part in self.collection.parts:
                others = part.parties[part.parties != place]
                if len(others):
                    call = crew.actors[part.actor].judge.remote(ref, base, others)
                    calls[call] = place, part
        if not calls:
            return list(refs)  # there is nobody else to ask
        judged: dict[int, list[Score]] = {place: [] for place in refs}
        reached = {place: {self._home(place)} for place in refs}
        for (place, part), answer in self._heard(calls, until):
            if isinstance(answer, Score):
                judged[place].append(answer)
                if answer.node not in reached[place]:
                    reached[place].add(answer.node)
                    self.record.bytes_moved += answer.n_bytes
            else:
                who = self.config.party_name(place)
                self.notes.append(f"{part.actor} did not judge {who}: {reason(answer)}")
        return policy.ranking(judged, self._sizes(refs))

    def _sizes(self, places: Iterable[int]) -> dict[int, int]:
        """Training samples of some parties, as they reported."""
        record = self.record
        at = np.searchsorted(record.chosen, list(places))
        return dict(zip(places, record.n_samples[at].tolist(), strict=True))

    def _heard(
        self, calls: dict[ObjectRef, Any], until: float
    ) -> Iterator[tuple[Any, Any]]:
        """Answers as they come; whoever hangs is killed and restarted."""
        crew = self.collection.crew
        yield from answers(calls, until, crew.stop)
        late = {part.actor: ref for ref, (_, part) in calls.items()}
        for name, ref in () if crew.stop.is_set() else late.items():
            self.notes.append(f"party {name} was late looking at candidates")
            crew.restart(name, ref)

    def _home(self, place: int) -> str:
        """The node on which a candidate was trained."""
        parts = self.collection.parts
        actor = next(part.actor for part in parts if place in part.parties)
        return self.collection.crew.nodes[actor]

    def _opened(self, place: int, ref: ObjectRef) -> Update | None:
        """A candidate's update here, after the checks."""
        record, party = self.record, np.array([place])
        part = next(p for p in self.collection.parts if place in p.parties)
        due = self.collection.due(part, int(np.searchsorted(part.parties, place)))
        try:
            update = ray.get(ref, timeout=FETCH_S)
        except RayError as error:
            record.settle(party, Outcome(FAILED, "lost", reason(error)))
            return None
        base = self.lineage.broadcast.weights
        opened = self.collection.terms.opened(update, base, due)
        if isinstance(opened, str):
            record.settle(party, Outcome.refused(Rejection.parse(opened)))
            return None
        record.bytes_moved += n_bytes(update.weights)
        return opened
