"""One global model over the rounds: weights, state of its fusion rule, run folder."""

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import ray

from fedray import policy
from fedray.aggregator.releases import Releaser
from fedray.aggregator.validation import UpdateValidator, checkpoint_flaw
from fedray.checkpoint import Checkpoint, RunFolder
from fedray.config import FederationConfig
from fedray.config.schedulers import ReduceLROnPlateau
from fedray.errors import FedrayError, WeightsMismatch, format_count
from fedray.fusion import FusionRule, State
from fedray.messages import RoundReport, Update, is_budget_spent
from fedray.weights import Weights, cast, encoding, non_finite


class Broadcast:
    """One version of the global weights, put in the object store once as it travels.

    weights : the same before encoding: views of the store, not a copy, unless fewer
        bits travel. Steps go on from these; parties train from what was decoded.
    """

    def __init__(self, weights: Weights, dtype: str):
        payload = encoding.pack(weights, dtype)
        self.ref = ray.put(payload)
        self.weights: Weights = ray.get(self.ref) if payload is weights else weights
        self._nodes: set[str] = set()

    def count_bytes(self, node: str, size: int) -> int:
        """Bytes that a node pulled: `size` for its first actor, 0 for the others."""
        is_first = node not in self._nodes
        self._nodes.add(node)
        return size if is_first else 0


PENDING = "pending"  # part of a checkpoint: what is not over with its round
BASES = "bases"  # within it: the rounds from whose weights parties still train


class PlateauRate:
    """The learning rate of one global model, as ReduceLROnPlateau has it fall.

    last : the last round that is kept; None: before round 1.
    """

    def __init__(
        self, schedule: ReduceLROnPlateau, start: float, last: RoundReport | None
    ):
        self.schedule = schedule
        self.plateau = policy.restore_plateau(last.plateau if last else None, start)

    def record(self, report: RoundReport) -> tuple[RoundReport, list[str]]:
        """Go on after a round: its report with the new state, and a note of a fall."""
        before = self.plateau.learning_rate
        self.plateau = policy.next_plateau(self.schedule, self.plateau, report)
        after, of_group = self.plateau.learning_rate, ""
        if report.group:
            of_group = f" of {report.group}"
        note = f"learning_rate{of_group} falls from {before:g} to {after:g}: "
        note += f"{self.schedule.metric} has not improved"
        notes = [note] if after != before else []
        return replace(report, plateau=self.plateau._asdict()), notes


class GlobalModel:
    """The weights that a group of parties shares, and what is kept of them.

    parties : the group's, ascending places in the config.
    done : the last round whose result is fused, and saved or being saved.
    last : report of the last round that is over; None before round 1.
    best : report of the best round whose weights are kept, by `keep_best`.
    stop_reason : why it is trained no further; empty while it is.
    last_broadcast : the weights as parties get them, since the last `broadcast`.
    rate : the learning rate, where the aggregator decides on it.
    releaser : adds noise to the sum that a step goes by, where parties are to have it.
    pending : of calls that outlive their round, saved with it; empty if none do. Under
        `BASES` the rounds from whose weights they train.
    bases : after `restore`, these weights by round.
    """

    last_broadcast: Broadcast
    weights: Weights
    state: State
    rate: PlateauRate | None = None
    releaser: Releaser | None = None

    def __init__(
        self,
        parties: np.ndarray,
        rule: FusionRule,
        validator: UpdateValidator,
        folder: RunFolder,
        config: FederationConfig | None = None,
    ):
        self.parties, self.rule = parties, rule
        self.validator, self.folder = validator, folder
        self.config, self.done = config, 0
        self.last: RoundReport | None = None
        self.best: RoundReport | None = None
        self.stop_reason = ""
        self.pending: Weights = {}
        self.bases: dict[int, Weights] = {}
        n_kept = config.keep_checkpoints if config else 1
        self._base_rounds = deque[set[int]](maxlen=n_kept)  # of the newest checkpoints
        self._history: list[RoundReport] = []  # that goals are judged by
        self._seconds = 0.0  # that all rounds have taken
        self._saving: Future = Future()
        self._saving.set_result(None)

    @property
    def group(self) -> str | None:
        """Name of the group that shares this model; None: all parties."""
        return self.folder.group

    @property
    def learning_rate(self) -> float | None:
        """What parties train by instead of the config's; None: as the config says."""
        return self.rate.plateau.learning_rate if self.rate else None

    def past_rates(self) -> dict[int, float]:
        """The learning rate of each round that is over, where it is decided on here."""
        if self.rate is None:
            return {}
        lines = (line for line in self.folder.history() if line.group == self.group)
        return policy.plateau_rates(lines)

    def restore(self, initial: Weights) -> tuple[list[RoundReport], list[str]]:
        """Start from the newest checkpoint, or from `initial` if there is none.

        Returns
        -------
        Reports of the rounds that are done, and notes about them for people.

        Raises
        ------
        CheckpointError, WeightsMismatch, LedgerError
            If the run cannot go on from what its folder holds.
        """
        self.weights, self.state = initial, self.rule.init(initial)
        checkpoint, notes = self.folder.newest_checkpoint()
        notes += self.folder.missing_rounds(checkpoint)
        reports = self.folder.rewind(checkpoint)
        self.done = checkpoint.round if checkpoint else 0
        if len(reports) != self.done:
            lost = format_count(self.done - len(reports), "line is", "lines are")
            notes.append(f"{lost} lost from history.jsonl, no weights")
        if checkpoint:
            flaw = checkpoint_flaw(checkpoint, self.validator.schema, self.state)
            if flaw:
                raise WeightsMismatch(f"checkpoint in {self.folder.path}", flaw)
            if self.releaser:
                self.releaser.require(checkpoint.anchor, checkpoint.round)
            self.weights, self.state = checkpoint.weights, dict(checkpoint.state)
            self.pending = self.state.pop(PENDING, {})
            notes += self._restore_bases(initial)
            before, self.last = checkpoint.report, self._judge(reports)
            if self.last.stop_reason != before.stop_reason:
                reports = self.folder.rewind(replace(checkpoint, report=self.last))
            notes += self._restore_notes(before)
        elif self.releaser:
            self.releaser.require_budget()
        return reports, notes

    def _restore_bases(self, initial: Weights) -> list[str]:
        """Read the weights from which parties still train; what of them is lost."""
        needed = set(self.pending.get(BASES, np.zeros(0)).tolist())
        by_round = {0: initial, self.done: self.weights}
        notes = list[str]()
        for version in sorted(needed - by_round.keys()):
            try:
                whole = self.folder.checkpoint_of(version).weights
            except FedrayError:
                notes.append(
                    f"the weights of round {version} are lost, from which parties "
                    f"train: they train from those of round {self.done} instead"
                )
            else:
                own = {name: whole[name] for name in self.validator.schema}
                by_round[version] = own
        self.bases = {
            version: by_round.get(version, self.weights) for version in needed
        }
        return notes

    def _judge(self, reports: list[RoundReport]) -> RoundReport:
        """The last of the rounds done, as goals that may have changed see it."""
        last = reports[-1]
        self._seconds = sum(report.seconds for report in reports)
        if self.config:
            self._history = [_scores_of(report) for report in reports]
            self.stop_reason = self._find_stop_reason(self.config)
            rounds = self.folder.saved_rounds()
            self.best = self._best_of(r for r in self._history if r.round in rounds)
        return replace(last, stop_reason=self.stop_reason)

    def _restore_notes(self, before: RoundReport) -> list[str]:
        """Where the run goes on, or that it does not; `before`: as it ended."""
        last, notes = self.last, list[str]()
        if last is None:
            return notes
        if last.stop_reason:
            keys = "early_stopping or target"
            limit_s = self.config.max_training_s if self.config else None
            if is_budget_spent(last.stop_reason):
                keys = "privacy.epsilon (a higher one protects less)"
            if limit_s and last.stop_reason == policy.describe_time_limit(limit_s):
                keys = "max_training_s"
            return [f"{last.stop_note}; change {keys} to go on from there"]
        of_group = f" of {self.group}" if self.group else ""
        notes.append(f"going on after round {last.round}{of_group}")
        if before.stop_reason:
            notes[0] += f", where it had stopped: {before.stop_reason}"
        best = self._best_of(self._history)
        if best and self.best is not best:
            notes.append(
                f"the model of round {best.round}, the best until now{of_group}, is "
                "not among the checkpoints: keep_best takes the best of those that are"
            )
        return notes

    def broadcast(self) -> None:
        """Put the weights into the object store, where parties find them."""
        self.last_broadcast = Broadcast(self.weights, self.validator.wire_dtype)
        self.weights = self.last_broadcast.weights

    def advance(self, update: Update) -> str | None:
        """Step from the old global weights to new ones, and broadcast these.

        Returns
        -------
        The name of a tensor that would not be finite: then nothing has changed.
        """
        weights, state = self.rule.step(self.weights, update, self.state)
        weights = cast(weights, self.validator.schema)
        name = non_finite(weights)
        if name:
            return name
        self.weights, self.state = weights, state
        self.broadcast()
        return None

    def save(self, report: RoundReport, writer: ThreadPoolExecutor) -> None:
        """Write a round down while the next one runs; waits for the one before.

        Raises
        ------
        CheckpointError
            If the round before could not be written.
        """
        self._saving.result()
        self.last = report
        if not report.aggregated and not report.skipped:
            self._saving = writer.submit(self.folder.append_line, report)
            return
        anchor = None
        if self.releaser:
            anchor = self.releaser.anchor
            self.releaser.remove_old(self.folder.saved_rounds())
        state = self.state | ({PENDING: self.pending} if self.pending else {})
        checkpoint = Checkpoint(report.round, self.weights, state, report, anchor)
        self._base_rounds.append({*self.pending.get(BASES, np.zeros(0)).tolist()})
        keep = {self.best.round} if self.best else set[int]()
        keep = keep.union(*self._base_rounds)
        self._saving = writer.submit(self.folder.save, checkpoint, keep)
        self.done = report.round

    def conclude(self, report: RoundReport) -> RoundReport:
        """The report of a round that is over, with why training stops there, if so."""
        if self.config is None:
            return report
        self._seconds += report.seconds
        scores = _scores_of(report)
        if not self.config.goals():
            self._history.clear()  # nothing goes by rounds before
        self._history.append(scores)
        self.best = self._best_of(filter(None, [self.best, scores]))
        self.stop_reason = self._find_stop_reason(self.config)
        return replace(report, stop_reason=self.stop_reason)

    def _find_stop_reason(self, config: FederationConfig) -> str:
        reason = policy.stop_reason(config, self._history, self._seconds)
        if reason or not self.releaser:
            return reason
        return self.releaser.spent_reason(self._history[-1].round + 1)

    def require_measured(self) -> None:
        """See that rounds that were evaluated have what goals go by.

        Raises
        ------
        ConfigError
        """
        if self.config is not None:
            policy.require_measured(self.config, self._history)

    def _best_of(self, reports: Iterable[RoundReport]) -> RoundReport | None:
        """The best of some rounds; None without `keep_best`."""
        goal = self.config.keep_best if self.config else None
        return policy.best_report(goal, reports) if goal else None

    def wait_until_saved(self) -> None:
        """Wait for the last `save`; raises what went wrong with it."""
        self._saving.result()


def _scores_of(report: RoundReport) -> RoundReport:
    """A round without its parties, of which there may be very many."""
    return replace(report, parties=[], summary=None)
