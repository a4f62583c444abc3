"""One round of one global model: what a strategy works on, and what it returns."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import ray

from fedray import policy
from fedray.aggregator.disclosure import Disclosure
from fedray.aggregator.global_model import Broadcast, GlobalModel
from fedray.aggregator.party_actors import ActorCall, WorkItem
from fedray.aggregator.releases import RoundSum
from fedray.aggregator.round_record import Evaluation, RoundRecord
from fedray.config import FederationConfig
from fedray.errors import RoundFailed
from fedray.fusion.private_mean import SUM, PrivateMean
from fedray.messages import LATE, Outcome, RoundReport, Update
from fedray.privacy.release_files import Release
from fedray.weights import n_bytes, size_of


class Disagreement(NamedTuple):
    """How far parties that train apart are from each other; see `policy.adaptive`."""

    estimate: float
    threshold: float  # above which they fuse
    growth: float  # of the disagreement of one round, which they may have


@dataclass(frozen=True, eq=False)
class Fused:
    """All updates in one, from which the global model steps on.

    adopted_from : the party whose model it is, where one was chosen.
    """

    update: Update
    adopted_from: str | None = None
    disagreement: Disagreement | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class NotFused:
    """The parties train on from their own weights; the global model stays."""

    disagreement: Disagreement
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failed:
    """No update to step on with, and why."""

    reason: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """The global model stays, and the round is never run again; and why."""

    reason: str
    notes: tuple[str, ...] = ()


RoundResult = Fused | NotFused | Failed | Skipped


@dataclass(frozen=True, eq=False)
class PendingUpdate:
    """A call for a report and updates that is under way.

    call : returns the report, then each update that is sent.
    broadcast : the weights from which it trains.
    asked_at : monotonic clock, seconds.
    """

    item: WorkItem
    call: ActorCall
    round: int
    broadcast: Broadcast
    asked_at: float


class Base(NamedTuple):
    """What a call for an update trains from, which may be older than the weights now.

    round : that the parties train, for their seeds: the version of the weights + 1.
    learning_rate : where the aggregator decides on it.
    """

    round: int
    broadcast: Broadcast
    learning_rate: float | None = None


class LateUpdate(NamedTuple):
    """An update of an earlier round that is to be folded into this one.

    It holds no reference to what is sent, which would stay in the object store.
    """

    item: WorkItem
    round: int
    broadcast: Broadcast


@dataclass(eq=False)
class RoundStep:
    """One round of one global model while it runs.

    items : what actors are asked for, in config order.
    n_wanted : reports after which the round is closed.
    tested : places of the parties whose test samples count; None: everyone's.
    kept_rounds : which rounds are safe, for the error of a round that fails.
    release : of this round, if one was made before a crash: nobody is asked again.
    disclosure : what of the round all may read.
    opened_tag : under which the sum was counted before it was opened; else empty.
    """

    round: int
    config: FederationConfig
    model: GlobalModel
    strategy: "RoundStrategy"
    record: RoundRecord
    items: list[WorkItem]
    n_wanted: int
    tested: np.ndarray | None
    kept_rounds: str
    disclosure: Disclosure
    late_actors: set[str] = field(default_factory=set)
    state_nodes: set[str] = field(default_factory=set)  # that the rule's state went to
    release: Release | None = None
    opened_tag: str = ""
    # by actor: what it is asked beside the weights, instead of the rule's state
    requests: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.since = self.model.done + 1  # the first round since the last fusion
        rule, state = self.model.rule, self.model.state
        self.state_ref = (
            ray.put(rule.party_state(state)) if rule.needs_context else None
        )

    def count_state_bytes(self, node: str) -> int:
        """Bytes of control variates that a node pulled: for its first actor alone."""
        if node in self.state_nodes or not self.model.rule.has_controls:
            return 0
        self.state_nodes.add(node)
        return n_bytes(self.model.state["control"])

    @property
    def n_counted(self) -> int:
        """Reports that count toward the quorum.

        Those whose update was refused do not, but for as many as the fusion rule
        withstands, or where `max_refused` says how many a run may have. Under noise
        for parties they do: it would show that an update was refused.
        """
        if self.config.bears_refusals:
            return self.record.n_reported
        n_borne = self.model.rule.n_withstood(self.n_wanted)
        return self.record.n_reported - max(0, self.record.n_refused - n_borne)

    @property
    def n_missing(self) -> int:
        """Reports that the quorum still needs; none of a round that asks nobody."""
        if self.model.releaser and not self.n_wanted:
            return 0
        if self.record.n_wanted is not None:
            return 0  # the strategy has waited for as many as a step needs
        n_needed = policy.needed(self.config.quorum, self.n_wanted)
        return max(0, n_needed - self.n_counted)

    def n_updates(self, item: WorkItem) -> int:
        """Updates that an actor sends: one, or one for each party."""
        return 1 if self.model.rule.associative else len(item.parties)

    def mark_busy(self, items: Sequence[WorkItem], busy: Mapping[str, int]) -> None:
        """Note of which round actors still train, that are not asked therefore."""
        for item in items:
            if item.actor in busy:
                still = Outcome(LATE, "busy", str(busy[item.actor]))
                self.record.settle(item.parties, still)

    def mark_late(self, item: WorkItem, detail: str = "") -> None:
        """Note that an actor is not waited for in this round any more, and why."""
        self.record.settle(item.parties, Outcome(LATE, detail=detail))
        self.late_actors.add(item.actor)

    def require_quorum(self, result: RoundResult) -> None:
        """Fail a round that is not skipped if too few parties have sent what counts.

        Raises
        ------
        RoundFailed
        """
        if self.n_missing and not isinstance(result, Skipped):
            n_reported, n_refused = self.record.n_reported, self.record.n_refused
            is_shown = n_refused and not self.config.hides_parties
            refused = f", {n_refused} of them refused" if is_shown else ""
            n_needed = self.n_counted + self.n_missing
            raise self._failure(f"{n_reported} reported{refused}, {n_needed} needed")

    def apply(self, result: RoundResult) -> None:
        """Move the global model, or leave it as it is; note in the record which.

        Raises
        ------
        RoundFailed
            If there is no update, or the new weights would not be finite.
        """
        if isinstance(result, Failed):
            raise self._failure(result.reason)
        if not isinstance(result, Skipped) and result.disagreement:
            self.record.note_disagreement(*result.disagreement)
        if isinstance(result, Skipped):
            self.record.skipped = result.reason
            if self.model.releaser:
                self.record.privacy |= self.model.releaser.spent
        if isinstance(result, NotFused | Skipped):
            self.record.aggregated = False
            return
        self.record.best = result.adopted_from
        name = self.model.advance(self._released(result.update))
        if name:
            advice = "lower learning_rate"
            raise self._failure(f"fused tensor {name!r} would not be finite: {advice}")

    def empty_sum(self) -> Update | None:
        """The sum of a round without an update that counts, if it is released too."""
        if not self.model.releaser:
            return None
        return self._private_rule().empty_sum(self.model.weights)

    def _released(self, update: Update) -> Update:
        """What may leave of the updates' sum: with noise, and on disk by now."""
        releaser, model = self.model.releaser, self.model
        if releaser is None:
            return update
        if self.release is None:
            clip_norm = self._private_rule().clip_norm(model.state)
            total, base = update.weights[SUM], model.last_broadcast.weights
            of = RoundSum(
                self.round, total, base, clip_norm, self.record, self.opened_tag
            )
            self.release = releaser.release(of)
        self.record.privacy |= releaser.spent
        return replace(update, weights=self.release.total)

    def _private_rule(self) -> PrivateMean:
        if not isinstance(self.model.rule, PrivateMean):
            raise TypeError(f"{self.model.rule.name} makes no sum that may have noise")
        return self.model.rule

    def close(
        self, evaluation: Evaluation, seconds: float, writer: ThreadPoolExecutor
    ) -> RoundReport:
        """End the round after so many seconds: its report, which is being saved."""
        model_bytes = size_of(self.model.validator.schema)
        before = self.model.last.privacy if self.model.last else {}
        self.record.note_samples(before.get("samples"))
        whole = self.record.close(evaluation, seconds, model_bytes)
        report = self.disclosure.report(whole)
        if self.model.rate is not None:
            report, self.record.rate_notes = self.model.rate.record(report)
        report = self.model.conclude(report)
        self.model.save(report, writer)
        return report

    def _failure(self, needed: str) -> RoundFailed:
        failures, has_more = self.record.troubled(), self.record.has_failures
        log = self.config.errors_log if has_more else ""
        return RoundFailed(self.round, needed, failures, self.kept_rounds, log)


class RoundStrategy(Protocol):
    """How rounds go: what parties are asked, when they fuse, what replaces the weights.

    It lives as long as its global model, and may leave calls open between rounds.
    """

    def restore(self, last: RoundReport | None) -> None:
        """Go on after the last round that is kept; None: before round 1."""

    def n_wanted(self, n_present: int, n_chosen: int) -> int:
        """Reports after which a round is closed, of the chosen of those present."""

    def dispatch(self, step: RoundStep) -> None:
        """Ask the parties of a round; nothing is waited for."""

    def collect(self, step: RoundStep, until: float) -> RoundResult:
        """Receive what parties send until then (monotonic clock), and decide."""
