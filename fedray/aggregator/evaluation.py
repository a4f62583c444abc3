"""How good global weights are, on the parties' test samples or on `test_data`."""

import dataclasses
import time

import numpy as np
import ray

from fedray import policy
from fedray.aggregator.party_actors import Broadcast, Crew, answers, reason
from fedray.aggregator.round_record import RoundRecord
from fedray.config import FederationConfig, PartySpec
from fedray.messages import ActorLocation, Score
from fedray.party import GroupPlan, PartyGroup


class Exam:
    """Evaluates on test samples of the parties, or on `test_data` in this process.

    notes : what went wrong is added to them.
    """

    def __init__(self, crew: Crew, plan: GroupPlan, notes: list[str]):
        self.crew, self.config, self.notes = crew, plan.config, notes
        self.examiner: PartyGroup | None = None
        if self.config.test_data:
            self.examiner = PartyGroup(plan, lambda: ActorLocation(crew.here))
            self.examiner.join()

    def is_due(self, since: int, round: int) -> bool:
        """Is the result of these rounds evaluated?"""
        every = self.config.evaluate_every
        met = every and round // every > (since - 1) // every
        return round == self.config.rounds or bool(met)

    def score(
        self,
        broadcast: Broadcast,
        record: RoundRecord,
        parties: np.ndarray | None = None,
    ) -> tuple[float | None, float | None, int]:
        """Loss and accuracy over all test samples, and their number.

        parties : on whose samples; None: everyone's.
        """
        if self.examiner is not None:
            sent = ray.get(broadcast.ref)
            return policy.overall([self.examiner.evaluate(sent)])
        crew, until = self.crew, time.monotonic() + self.config.round_timeout_s
        calls, scores = {}, {}
        for name, *which in crew.examiners(parties):
            if name not in record.late:  # waited for once a round, not twice
                call = crew.actors[name].evaluate.remote(broadcast.ref, *which)
                calls[call], scores[name] = name, None
        for name, answer in answers(calls, until, crew.stop):
            if isinstance(answer, Score):
                scores[name] = answer
                size = broadcast.arrived(answer.node, answer.n_bytes)
                record.bytes_moved += size
            else:
                self.notes.append(f"party {name} did not evaluate: {reason(answer)}")
        for ref, name in () if crew.stop.is_set() else calls.items():
            self.notes.append(f"party {name} was late evaluating")
            crew.restart(name, ref)
        return policy.overall(score for score in scores.values() if score)


def examiner(config: FederationConfig, plan: GroupPlan) -> GroupPlan:
    """The plan of a party that never trains: it holds `test_data`."""
    spec = PartySpec(name="aggregator", data=config.test_data or "")
    config = config.with_changes(parties=(spec,), partition=None, num_parties=1)
    return dataclasses.replace(plan, name=spec.name, parties=range(1), config=config)
