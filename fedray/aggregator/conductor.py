"""The conductor: the round loop, and the only caller of parties."""

import dataclasses
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray

from fedray import data, fusion, policy
from fedray.aggregator.collect import Collection
from fedray.aggregator.combine import Terms
from fedray.aggregator.crew import Broadcast, Crew, answers, reason
from fedray.aggregator.record import FUSED, TOLD, RoundRecord
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
from fedray.party import GroupPlan, PartyGroup
from fedray.placement import Site
from fedray.weights import Weights, cast, mismatch, non_finite


@dataclass(frozen=True)
class AggregatorPlan:
    """What an aggregator needs to know to start."""

    run: str
    config: FederationConfig
    blueprint: Blueprint
    handler: data.HandlerSource
    folder: str


def party_actor(run: str, name: str) -> str:
    """Name on the cluster of a party's actor, or of one that several share."""
    return f"party:{run}:{name}"


class Aggregator:
    """Runs the rounds of one federation; a restarted one goes on by itself."""

    def __init__(self, plan: AggregatorPlan, sites: list[Site]):
        self.plan, self.config = plan, plan.config
        self.folder = RunFolder(Path(plan.folder), plan.config.keep_checkpoints)
        here = ray.get_runtime_context().get_node_id()
        names = [name for site in sites for name in site.actors]
        actors = {name: ray.get_actor(party_actor(plan.run, name)) for name in names}
        self.crew = Crew(plan.run, here, sites, actors)
        self.rule = fusion.configured(plan.config, plan.blueprint.parameters)
        self.needed = plan.blueprint.schema
        self.terms = Terms(self.rule, self.needed, plan.config.wire_dtype)
        self.told: list[RoundReport] = []  # to whoever follows, without party lines
        self.notes: list[str] = []
        self.stage = "joining"
        self.record = RoundRecord(0, np.arange(0), plan.config)
        self.writer, self.saving = ThreadPoolExecutor(1), Future()
        self.saving.set_result(None)
        self.examiner: PartyGroup | None = None

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
        self._join()
        if self.config.test_data:
            self.examiner = self._examiner()
            self.examiner.join()
        self.broadcast = Broadcast(self.weights, self.config.wire_dtype)
        self.weights = self.broadcast.weights
        try:
            for round in range(self.done + 1, self.config.rounds + 1):
                self._round(round)
        finally:
            self.saving.result()
        self.stage = "done"

    @ray.method(concurrency_group="control")
    def progress(self, n_seen: int) -> Progress:
        """What happened since the follower had seen `n_seen` rounds."""
        record = self.record
        return Progress(
            reports=self.told[n_seen:],
            round=record.round,
            stage=self.stage,
            chosen=len(record.chosen),
            reported=record.n_reported,
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
        self.told = [_brief(report) for report in self.folder.rewind(checkpoint)]
        self.done = checkpoint.round if checkpoint else 0
        if len(self.told) != self.done:
            lost = self.done - len(self.told)
            self.notes.append(f"{lost} lines of history.jsonl are lost, no weights")
        if checkpoint:
            different = mismatch(checkpoint.weights, self.needed)
            if different:
                raise WeightsMismatch(f"checkpoint in {self.plan.folder}", different)
            self.weights, self.state = checkpoint.weights, checkpoint.state
            self.notes.append(f"going on after round {checkpoint.round}")

    def _join(self) -> None:
        """Hear from every actor how many samples its parties have.

        One whose node is gone now may come back; one that says it cannot take part is
        a mistake to be mended first.
        """
        until = time.monotonic() + self.config.round_timeout_s
        crew, refused = self.crew, {}
        crew.n_train = np.zeros(self.config.num_parties, np.int64)
        parties = {name: site.parties for site in crew.sites for name in site.actors}
        calls = {actor.join.remote(): n for n, actor in crew.actors.items()}
        for name, answer in answers(calls, until, crew.stop):
            if isinstance(answer, Joined):
                crew.nodes[name], crew.n_test[name] = answer.node, answer.n_test
                crew.n_train[parties[name]] = answer.n_train
            elif isinstance(answer, ray.exceptions.RayTaskError):
                refused[name] = reason(answer)
            else:
                self.notes.append(f"party {name} has not joined: {reason(answer)}")
        self._stop_if_asked()
        if refused or not crew.nodes:
            late = dict.fromkeys(calls.values(), "did not answer in round_timeout_s")
            raise JoinFailed(refused | late)

    def _round(self, round: int) -> None:
        started = time.monotonic()
        config = self.config
        chosen = policy.choose(
            config.num_parties, config.party_fraction, config.seed, round
        )
        self.record = record = RoundRecord(round, chosen, config)
        self.stage = "training"
        self._fuse(record, started + config.round_timeout_s)
        self.stage, evaluating = "evaluating", time.monotonic()
        score = self._evaluate(record)
        ended = time.monotonic()
        report = record.close(score, ended - started, ended - evaluating)
        self.notes += record.told()
        self.saving.result()  # a full disk is told here, one round late at most
        checkpoint = Checkpoint(round, self.weights, self.state, report)
        self.saving = self.writer.submit(self.folder.save, checkpoint)
        self.told.append(_brief(report))
        self.done = round

    def _fuse(self, record: RoundRecord, until: float) -> None:
        """Train, combine and step: from the old global weights to the new."""
        collection = Collection(self.crew, self.terms, record)
        collection.ask(self.broadcast, self.state)
        try:
            update = self.rule.combine(collection.arriving(self.state, until))
        except TooFewUpdates:
            update = None
        self._stop_if_asked()
        n_needed = policy.needed(self.config.quorum, len(record.chosen))
        if record.n_reported < n_needed:
            self._fail(record, f"{record.n_reported} reported, {n_needed} needed")
        if update is None:
            self._fail(record, "no update could be fused")
        weights, state = self.rule.step(self.weights, update, self.state)
        weights = cast(weights, self.needed)
        name = non_finite(weights)
        if name:
            self._fail(record, f"fused tensor {name!r} would not be finite")
        self.state, dtype = state, self.config.wire_dtype
        self.broadcast = Broadcast(weights, dtype)
        self.weights = self.broadcast.weights

    def _evaluate(self, record: RoundRecord) -> tuple[float | None, float | None, int]:
        every, last = self.config.evaluate_every, record.round == self.config.rounds
        if not last and (every == 0 or record.round % every):
            return None, None, 0
        if self.examiner is not None:
            sent = ray.get(self.broadcast.ref)
            return policy.overall([self.examiner.evaluate(sent)])
        crew, until = self.crew, time.monotonic() + self.config.round_timeout_s
        calls, scores = {}, {}
        for name, part in crew.examiners():
            if name not in record.late:  # waited for once a round, not twice
                call = crew.actors[name].evaluate.remote(self.broadcast.ref, part)
                calls[call], scores[name] = name, None
        for name, answer in answers(calls, until, crew.stop):
            if isinstance(answer, Score):
                scores[name] = answer
                size = self.broadcast.arrived(answer.node, answer.n_bytes)
                record.bytes_moved += size
            else:
                self.notes.append(f"party {name} did not evaluate: {reason(answer)}")
        self._stop_if_asked()
        for ref, name in calls.items():
            self.notes.append(f"party {name} was late evaluating")
            crew.restart(name, ref)
        return policy.overall(score for score in scores.values() if score)

    def _examiner(self) -> PartyGroup:
        """A party that never trains, in this process: it holds `test_data`."""
        spec = PartySpec("aggregator", self.config.test_data)
        config = dataclasses.replace(
            self.config, parties=(spec,), partition=None, num_parties=1
        )
        plan = self.plan
        name, only = spec.name, range(1)
        examiner = GroupPlan(name, only, config, plan.blueprint, plan.handler)
        return PartyGroup(examiner, lambda: Here(self.crew.here))

    def _stop_if_asked(self) -> None:
        if self.crew.stop.is_set():
            raise Stopped(self.done, self.config.rounds, self.plan.folder)

    def _fail(self, record: RoundRecord, needed: str) -> None:
        kept = f"{self.done} rounds are kept in {self.plan.folder}."
        raise RoundFailed(record.round, needed, record.troubled(), kept)


def _brief(report: RoundReport) -> RoundReport:
    """A round without its parties that did as they should: there may be very many."""
    lines = [line for line in report.parties if line.outcome != FUSED]
    return dataclasses.replace(report, parties=lines[:TOLD])
