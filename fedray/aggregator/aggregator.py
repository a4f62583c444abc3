"""The conductor: the round loop, and the only caller of parties."""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ray

from fedray import fusion, metrics, policy
from fedray.aggregator.clustering import Groups, compare, known, write
from fedray.aggregator.collector import Collection
from fedray.aggregator.evaluation import Exam, examiner
from fedray.aggregator.gathering import gather
from fedray.aggregator.global_model import Lineage
from fedray.aggregator.membership import JoinReply, Turnover
from fedray.aggregator.node_combiner import Terms
from fedray.aggregator.party_actors import Broadcast, Crew, living
from fedray.aggregator.plan import AggregatorPlan
from fedray.aggregator.round_record import FINE, TOLD, RoundRecord, so_far
from fedray.aggregator.stragglers import Latecomers
from fedray.aggregator.strategies.adopt_best import Best
from fedray.aggregator.strategies.always import Adaptive, Always
from fedray.aggregator.validation import end_if_refused
from fedray.checkpoint import RunFolder
from fedray.config import FederationConfig, PartySpec
from fedray.data import HandlerSource
from fedray.errors import RoundFailed, Stopped
from fedray.messages import Progress, RoundReport
from fedray.models import Blueprint
from fedray.placement import ActorPool
from fedray.weights import Weights


class Aggregator:
    """Runs the rounds of one federation; a restarted one goes on by itself."""

    def __init__(self, plan: AggregatorPlan, pools: list[ActorPool]):
        self.plan = plan
        context = ray.get_runtime_context()
        self.is_anew = context.was_current_actor_reconstructed
        seats = living(plan.run, pools, self.is_anew)
        self.crew = Crew(plan.run, context.get_node_id(), *seats)
        self.lineages: list[Lineage] = []
        self.turnover = Turnover(plan, self.crew, self.lineages)
        self.told: list[RoundReport] = []  # to whoever follows, without party lines
        self.notes: list[str] = fusion.notes(plan.config)
        self.stage, self.round = "joining", 0
        self.records: list[RoundRecord] = []  # of the round under way
        self.n_before = 0  # bytes that moved before round 1, counted with it
        self.writer = ThreadPoolExecutor(1)
        self.latecomers = Latecomers(plan.config)

    def __repr__(self) -> str:
        plan = getattr(self, "plan", None)  # Ray asks before __init__ too
        return f"aggregator:{plan.run if plan else '?'}"

    @property
    def config(self) -> FederationConfig:
        """With the parties that are there in the round under way."""
        return self.plan.config

    @property
    def done(self) -> int:
        """The last round that is done and kept, whatever happens."""
        return min((lineage.done for lineage in self.lineages), default=0)

    def run(self, weights: Weights) -> None:
        """Train until the last round is done and saved; goes on where it was left.

        `weights` are the initial model's, used where there is no checkpoint; of an
        ensemble each member's, by name.

        Raises
        ------
        JoinFailed, RoundFailed, TooManyRefused, CheckpointError, Stopped
            What was done until then is kept in the run's folder.
        """
        if self.is_anew:
            self.plan = self.turnover.restore()
        groups = known(self.config, Path(self.plan.folder))
        self._go_on(groups or {}, weights)
        self.turnover.open(self.done)
        end_if_refused(self.told, self.config.max_refused, self.plan.folder)
        self.notes += gather(self.crew, self.config, self.plan.folder)
        self._stop_if_asked()
        if groups is None:
            self._go_on(self._compared(weights), weights)
        self.exams = {
            group: Exam(self.crew, examiner(mould.config, mould), self.notes)
            for group, mould in self.plan.moulds().items()
        }
        for lineage in self.lineages:
            lineage.send()
        try:
            for round in range(self.done + 1, self.config.rounds + 1):
                self._round(round)
            self.turnover.begin(self.config.rounds + 1)  # to write down who left
        finally:
            for lineage in self.lineages:
                lineage.saving.result()
        self.stage = "done"

    @ray.method(concurrency_group="control")
    def progress(self, n_seen: int) -> Progress:
        """What happened since the follower had seen `n_seen` rounds; -1: the last."""
        return Progress(
            reports=self.told[n_seen:],
            stage=self.stage,
            notes=self.notes,
            rounds=self.config.rounds,
            folder=self.plan.folder,
            working=self.crew.slowest(TOLD),
            **so_far(self.round, self.records),
        )

    @ray.method(concurrency_group="control")
    def working(self, actor: str, share: float) -> None:
        """Hear from a party's actor how far its training is."""
        self.crew.working[actor] = share

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Give up the round under way; `run` then raises Stopped."""
        self.crew.stop.set()

    @ray.method(concurrency_group="turnover")
    def join(self, party: PartySpec, handler: HandlerSource | None) -> JoinReply:
        """Let a party in with the next round; see `Turnover.join`."""
        return self.turnover.join(party, handler)

    @ray.method(concurrency_group="turnover")
    def leave(self, name: str) -> int:
        """Let a party go after the round under way; see `Turnover.leave`."""
        return self.turnover.leave(name)

    def _go_on(self, groups: Groups, weights: Weights) -> None:
        """Take up each group's global model where it was left."""
        path, keep = Path(self.plan.folder), self.config.keep_checkpoints
        for group, parties in groups.items():
            terms = self._terms(self.plan.of(parties[0])[1])
            lineage = Lineage(parties, terms, RunFolder(path, keep, group))
            start = weights[group] if self.plan.members else weights
            told, notes = lineage.go_on(start)
            self.lineages.append(lineage)
            self.told += map(_brief, told)
            self.notes += notes
        self.told.sort(key=lambda report: report.round)

    def _terms(self, blueprint: Blueprint) -> Terms:
        config = self.config
        rule = fusion.configured(config, blueprint.parameters)
        return Terms(rule, blueprint.schema, config.wire_dtype, config.max_update_norm)

    def _compared(self, weights: Weights) -> Groups:
        """Find out who learns alike, before round 1."""
        self.stage, config = "comparing", self.config
        sent = Broadcast(weights, config.wire_dtype)
        groups, self.n_before = compare(self.crew, sent, config)
        self._stop_if_asked()
        write(groups, Path(self.plan.folder))
        for name, places in groups.items():
            names = ", ".join(map(config.party_name, places[:TOLD].tolist()))
            self.notes.append(f"{name}: {len(places)} parties, {names}")
        return groups

    def _round(self, round: int) -> None:
        """Ask for all lineages at once, then fuse, evaluate and save one by one."""
        started, self.stage = time.monotonic(), "training"
        self.plan = self.turnover.begin(round)
        behind = [lineage for lineage in self.lineages if lineage.done < round]
        ways = [self._way(lineage, round) for lineage in behind]
        self.records, self.round = [way.record for way in ways], round
        self.records[0].bytes_moved, self.n_before = self.n_before, 0
        self.crew.working.clear()
        for way in ways:
            way.ask()
        for way in ways:
            self._fuse(way, started + self.config.closes_after_s)
        self.stage = "evaluating"
        for way in ways:
            self._close(way, started)

    def _way(self, lineage: Lineage, round: int) -> Always:
        config, since = self.config, lineage.done + 1
        parties = self.turnover.there(lineage, since)
        n_parties, fraction = len(parties), config.party_fraction
        asked = min(1.0, fraction * config.over_select)
        # who is chosen after a fusion stays until the next, or until it leaves
        chosen = parties[policy.choose(n_parties, asked, config.seed, since)]
        if since < round:
            chosen = self.turnover.still_there(lineage, chosen, round)
        self.latecomers.look(self.crew)
        chosen = self.latecomers.join(chosen, lineage.parties)
        record = RoundRecord(round, chosen, config, lineage.group)
        if config.over_select > 1:
            record.n_wanted = policy.count_chosen(n_parties, fraction)
        record.joined, record.left = self.turnover.moved(lineage)
        collection = Collection(self.crew, lineage.terms, record, self.latecomers)
        if config.fusion_algorithm == "best_model":
            return Best(lineage, collection, config)
        way = Adaptive if config.aggregation == "adaptive" else Always
        return way(lineage, collection, config)

    def _fuse(self, way: Always, until: float) -> None:
        """Train, combine and step: from the old global weights to the new."""
        record, (update, wrong) = way.record, way.update(until)
        self.notes += way.notes
        self._stop_if_asked()
        n_needed = policy.needed(self.config.quorum, record.n_wanted)
        if record.n_reported < n_needed:
            self._fail(record, f"{record.n_reported} reported, {n_needed} needed")
        if not record.aggregated:
            return
        if update is None:
            self._fail(record, wrong)
        name = way.lineage.advance(update)
        if name:
            self._fail(record, f"fused tensor {name!r} would not be finite")

    def _close(self, way: Always, started: float) -> None:
        record, lineage = way.record, way.lineage
        score, evaluating = (None, None, 0), time.monotonic()
        exam = self.exams.get(lineage.group) or self.exams[None]
        if record.aggregated and exam.is_due(lineage.done + 1, record.round):
            own = self.turnover.whose_tests(lineage, record.round)
            score = exam.score(lineage.broadcast, record, own)
            self._stop_if_asked()
        ended = time.monotonic()
        report = record.close(score, ended - started, ended - evaluating)
        lineage.save(report, self.writer)
        self.notes += record.told()
        self.told.append(_brief(report))
        run = self.plan.run + (f":{report.group}" if report.group else "")
        metrics.publish(run, self.config, report)
        end_if_refused(self.told, self.config.max_refused, self.plan.folder)

    def _stop_if_asked(self) -> None:
        if self.crew.stop.is_set():
            raise Stopped(self.done, self.config.rounds, self.plan.folder)

    def _fail(self, record: RoundRecord, needed: str) -> None:
        kept = f"{self.done} rounds are kept in {self.plan.folder}."
        raise RoundFailed(record.round, needed, record.troubled(), kept)


def _brief(report: RoundReport) -> RoundReport:
    """A round without its parties that did as they should: there may be very many."""
    lines = [line for line in report.parties if line.result not in FINE]
    return dataclasses.replace(report, parties=lines[:TOLD])
