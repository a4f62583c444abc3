"""AdoptBest: everyone goes on from the best party's model instead of from a mean."""

import time
from collections.abc import Iterable, Mapping

import numpy as np
from ray import ObjectRef
from ray.actor import ActorMethod

from fedray import policy
from fedray.aggregator.party_actors import (
    ActorCall,
    WorkItem,
    reason,
    wait_for_answers,
    with_rate,
)
from fedray.aggregator.round import Failed, Fused, RoundResult, RoundStep
from fedray.aggregator.strategies.always import AlwaysFuse, collect_reports
from fedray.messages import Score, Scores

N_CANDIDATE_RETRIES = 20  # of some 1.3 s
Candidates = Mapping[int, tuple[WorkItem, ObjectRef]]  # by place in the config


class AdoptBest(AlwaysFuse):
    """Everyone trains; the best by their own tests are tested by all others.

    Candidates stay where they were made and go by reference from there to whoever
    tests them; only the best one comes to the aggregator.
    """

    def dispatch(self, step: RoundStep) -> None:
        """Ask for reports with everyone's score on its own tests."""
        self.calls.ask(step, step.items, "train", are_sent=False, since=step.round)

    def collect(self, step: RoundStep, until: float) -> RoundResult:
        """The best of the candidates that may be fused; or why there is none."""
        collector = collect_reports(step, self.calls, until)
        if isinstance(collector, Failed):
            return collector
        reported = collector.reported
        places = policy.candidates(list(reported.values()), self.config.candidates)
        if not places:
            return Failed("no party has test samples that tell how good its model is")
        candidates = self._ask_for(step, places, reported)
        until = time.monotonic() + self.config.round_timeout_s
        ranked, notes = self._rank(step, candidates, reported, until)
        for place in ranked:
            item, ref = candidates[place]
            k = int(np.searchsorted(item.parties, place))
            update = collector.fetch(item, k, ref)
            if update is not None:
                return Fused(update, step.config.party_name(place), notes=tuple(notes))
        return Failed("no candidate could be adopted", tuple(notes))

    def _ask_for(
        self, step: RoundStep, places: list[int], reported: Iterable[WorkItem]
    ) -> Candidates:
        """Each candidate's actor, and where its update is going to be."""
        actors, base = self.calls.actors, step.model.last_broadcast.ref
        candidates: dict[int, tuple[WorkItem, ObjectRef]] = {}
        for place in places:
            item = next(item for item in reported if place in item.parties)
            # others test it by reference, so it is repeated by Ray: until a node that
            # is lost has been declared dead
            rate, question = step.model.learning_rate, (step.round, item.parties)
            call = with_rate(rate, "candidate", *question, base, place)
            method, *arguments = actors.with_frozen(item.actor, *call)
            ask: ActorMethod = getattr(actors.actors[item.actor], method)
            ask = ask.options(max_task_retries=N_CANDIDATE_RETRIES)
            ref = ask.remote(*arguments)
            candidates[place] = item, ref
        return candidates

    def _rank(
        self,
        step: RoundStep,
        candidates: Candidates,
        reported: Iterable[WorkItem],
        until: float,
    ) -> tuple[list[int], list[str]]:
        """Candidates, the best first, after all others have tested them; and notes."""
        calls = self._ask_judges(step, candidates, reported)
        if not calls:
            return list(candidates), []  # there is nobody else to ask
        actors, notes = self.calls.actors, []
        scores: dict[int, list[Scores]] = {place: [] for place in candidates}
        nodes = {k: {actors.nodes[item.actor]} for k, (item, _) in candidates.items()}
        for (place, actor), answer in wait_for_answers(calls, until, actors.stop):
            if isinstance(answer, Score):
                scores[place].append(answer.scores)
                if answer.node not in nodes[place]:
                    nodes[place].add(answer.node)
                    step.record.bytes_moved += answer.n_bytes
            else:
                name = step.config.party_name(place)
                notes.append(f"{actor} did not judge {name}: {reason(answer)}")
        if not actors.stop.is_set():
            notes += self._restart_late(calls)
        sizes = step.record.samples_of(list(candidates))
        return policy.ranking(scores, dict(zip(candidates, sizes, strict=True))), notes

    def _ask_judges(
        self, step: RoundStep, candidates: Candidates, reported: Iterable[WorkItem]
    ) -> dict[ActorCall, tuple[int, str]]:
        """Calls that test a candidate on others' samples: (its place, whose actor)."""
        actors, base = self.calls.actors, step.model.last_broadcast.ref
        calls: dict[ActorCall, tuple[int, str]] = {}
        for place, (_, ref) in candidates.items():
            for item in reported:
                others = item.parties[item.parties != place]
                if len(others):
                    call = actors.call(item.actor, "judge", ref, base, others)
                    calls[call] = place, item.actor
        return calls

    def _restart_late(self, calls: Mapping[ActorCall, tuple[int, str]]) -> list[str]:
        """Kill and restart actors that hang while they test candidates; notes of it."""
        late: dict[str, list[ActorCall]] = {}
        for call, (_, actor) in calls.items():
            late.setdefault(actor, []).append(call)
        for actor, own in late.items():
            self.calls.actors.restart(actor, own)
        return [f"party {actor} was late looking at candidates" for actor in late]
