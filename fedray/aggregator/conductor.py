"""The conductor: the round loop, and the only caller of parties."""

import dataclasses
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import ray

from fedray import data, fusion, policy
from fedray.aggregator.collect import Broadcast, Collection, Crew, answers, reason
from fedray.aggregator.record import LATE, RoundRecord
from fedray.checkpoint import Checkpoint, RunFolder
from fedray.config import FederationConfig, PartySpec
from fedray.errors import (
    JoinFailed,
    RoundFailed,
    Stopped,
    TooFewUpdates,
    WeightsMismatch,
)
from fedray.messages import Here, Joined, Progress, RoundReport, Score
from fedray.models import Blueprint
from fedray.party import Party, PartyPlan
from fedray.weights import Weights, cast, mismatch, non_finite


@dataclass(frozen=True)
class AggregatorPlan:
    """What an aggregator needs to know to start."""

    run: str
    config: FederationConfig
    blueprint: Blueprint
    handler: data.HandlerSource
    folder: str


def party_actor(run: str, party: str) -> str:
    """Name of a party's actor on the cluster."""
    return f"party:{run}:{party}"


class Aggregator:
    """Runs the rounds of one federation; a restarted one goes on by itself."""

    def __init__(self, plan: AggregatorPlan, seats: dict[str, str]):
        self.plan, self.config = plan, plan.config
        self.folder = RunFolder(Path(plan.folder), plan.config.keep_checkpoints)
        here = ray.get_runtime_context().get_node_id()
        names = plan.config.party_names()
        parties = {name: ray.get_actor(party_actor(plan.run, name)) for name in names}
        self.crew = Crew(plan.run, here, parties, seats)
        self.rule = fusion.configured(plan.config, plan.blueprint.parameters)
        self.needed = plan.blueprint.schema
        self.reports: list[RoundReport] = []
        self.notes: list[str] = []
        self.stage, self.record = "joining", RoundRecord(0, [])
        self.writer, self.saving = ThreadPoolExecutor(1), Future()
        self.saving.set_result(None)
        self.examiner: Party | None = None

    def __repr__(self) -> str:
        plan = getattr(self, "plan", None)  # Ray asks before __init__ too
        return f"aggregator:{plan.run if plan else '?'}"

    def run(self, weights: Weights) -> None:
        """Train until the last round is done and saved; goes on where it was left.

        `weights` are the initial model's, used where there is no checkpoint.

        Raises
        ------
        JoinFailed, RoundFailed, CheckpointError, Stopped
            What was done until then is kept in the run's folder.
        """
        self.weights, self.state = weights, self.rule.init(weights)
        self._go_on()
        tested = self._join()
        if self.config.test_data:
            self.examiner = self._examiner()
            self.examiner.join()
        self.broadcast = Broadcast(self.weights)
        self.weights = self.broadcast.weights
        try:
            for round in range(self.done + 1, self.config.rounds + 1):
                self._round(round, tested)
        finally:
            self.saving.result()
        self.stage = "done"

    @ray.method(concurrency_group="control")
    def progress(self, n_seen: int) -> Progress:
        """What happened since the follower had seen `n_seen` rounds."""
        record = self.record
        return Progress(
            reports=self.reports[n_seen:],
            round=record.round,
            stage=self.stage,
            chosen=len(record.chosen),
            reported=len(record.reported),
            troubled=record.troubled(),
            notes=self.notes,
        )

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Give up the round under way; `run` then raises Stopped."""
        self.crew.stop.set()

    def _go_on(self) -> None:
        """Start from the newest checkpoint, if there is one."""
        checkpoint, wrong = self.folder.newest()
        self.notes += wrong
        self.reports = self.folder.rewind(checkpoint)
        self.done = checkpoint.round if checkpoint else 0
        if len(self.reports) != self.done:
            lost = self.done - len(self.reports)
            self.notes.append(f"{lost} lines of history.jsonl are lost, no weights")
        if checkpoint:
            different = mismatch(checkpoint.weights, self.needed)
            if different:
                raise WeightsMismatch(f"checkpoint in {self.plan.folder}", different)
            self.weights, self.state = checkpoint.weights, checkpoint.state
            self.notes.append(f"going on after round {checkpoint.round}")

    def _join(self) -> list[str]:
        """Hear from every party; the names of those that may have test samples.

        A party whose node is gone now may come back; one that says it cannot take
        part is a mistake to be mended first.
        """
        until = time.monotonic() + self.config.round_timeout_s
        calls = {party.join.remote(): n for n, party in self.crew.parties.items()}
        refused, untested = {}, set()
        for name, answer in answers(calls, until, self.crew.stop):
            if isinstance(answer, Joined):
                self.crew.nodes[name] = answer.node
                untested |= set() if answer.n_test else {name}
            elif isinstance(answer, ray.exceptions.RayTaskError):
                refused[name] = reason(answer)
            else:
                self.notes.append(f"party {name} has not joined: {reason(answer)}")
        self._stop_if_asked()
        if refused or not self.crew.nodes:
            late = dict.fromkeys(calls.values(), "did not answer in round_timeout_s")
            raise JoinFailed(refused | late)
        return [name for name in self.crew.parties if name not in untested]

    def _round(self, round: int, tested: list[str]) -> None:
        started = time.monotonic()
        names = list(self.crew.parties)
        fraction, seed = self.config.party_fraction, self.config.seed
        chosen = policy.choose(names, fraction, seed, round)
        self.record = record = RoundRecord(round, chosen)
        self.stage = "training"
        self._fuse(record, started + self.config.round_timeout_s)
        self.stage, evaluating = "evaluating", time.monotonic()
        score = self._evaluate(record, tested)
        ended = time.monotonic()
        report = record.close(score, ended - started, ended - evaluating)
        self.saving.result()  # a full disk is told here, one round late at most
        checkpoint = Checkpoint(round, self.weights, self.state, report)
        self.saving = self.writer.submit(self.folder.save, checkpoint)
        self.reports.append(report)
        self.done = round

    def _fuse(self, record: RoundRecord, until: float) -> None:
        """Train, combine and step: from the old global weights to the new."""
        collection = Collection(self.crew, self.rule, record, self.needed)
        collection.ask(self.broadcast)
        try:
            arriving = collection.arriving(self.weights, self.state, until)
            update = self.rule.combine(arriving)
        except TooFewUpdates:
            update = None
        self._stop_if_asked()
        n_needed = policy.needed(self.config.quorum, len(record.chosen))
        if len(record.reported) < n_needed:
            self._fail(record, f"{len(record.reported)} reported, {n_needed} needed")
        if update is None:
            self._fail(record, "no update could be fused")
        weights, state = self.rule.step(self.weights, update, self.state)
        weights = cast(weights, self.needed)
        name = non_finite(weights)
        if name:
            self._fail(record, f"fused tensor {name!r} would not be finite")
        self.state, self.broadcast = state, Broadcast(weights)
        self.weights = self.broadcast.weights

    def _evaluate(
        self, record: RoundRecord, tested: list[str]
    ) -> tuple[float | None, float | None, int]:
        every, last = self.config.evaluate_every, record.round == self.config.rounds
        if not last and (every == 0 or record.round % every):
            return None, None, 0
        if self.examiner is not None:
            return policy.overall([self.examiner.evaluate(self.weights)])
        until = time.monotonic() + self.config.round_timeout_s
        ref = self.broadcast.ref
        late = record.with_outcome(LATE)  # waited for once a round, not twice
        asked = [name for name in tested if name not in late]
        calls = {self.crew.parties[n].evaluate.remote(ref): n for n in asked}
        scores = {}
        for name, answer in answers(calls, until, self.crew.stop):
            if isinstance(answer, Score):
                scores[name] = answer
                size = self.broadcast.arrived(answer.node, answer.n_bytes)
                record.bytes_moved += size
            else:
                self.notes.append(f"party {name} did not evaluate: {reason(answer)}")
        self._stop_if_asked()
        for ref, name in calls.items():
            self.notes.append(f"party {name} was late evaluating")
            self.crew.restart(name, ref)
        return policy.overall(scores[name] for name in asked if name in scores)

    def _examiner(self) -> Party:
        """A party that never trains, in this process: it holds `test_data`."""
        spec = PartySpec("aggregator", self.config.test_data)
        config = dataclasses.replace(
            self.config, parties=(spec,), partition=None, num_parties=1
        )
        plan = self.plan
        examiner = PartyPlan(spec.name, config, plan.blueprint, plan.handler)
        return Party(examiner, lambda: Here(self.crew.here))

    def _stop_if_asked(self) -> None:
        if self.crew.stop.is_set():
            raise Stopped(self.done, self.config.rounds, self.plan.folder)

    def _fail(self, record: RoundRecord, needed: str) -> None:
        kept = f"{self.done} rounds are kept in {self.plan.folder}."
        raise RoundFailed(record.round, needed, record.troubled(), kept)
