"""What of a run leaves the aggregator, and what only its operator may read.

Under differential privacy for parties all that leaves has to follow from noised sums.
The noise does not cover how a single party did: its loss, how far it moved, its sample
count and times, what became of its update, errors of its code and its data. That
goes to operator.jsonl. History, checkpoints, progress, metrics, reports and errors get
what `Disclosure` lets through, and nothing passes it by.
"""

import dataclasses
import re
import traceback
from collections.abc import Iterable
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from fedray.checkpoint import append_for_operator
from fedray.checkpoint.operator_log import FILE
from fedray.config import FederationConfig
from fedray.errors import (
    ClusterError,
    FedrayError,
    JoinFailed,
    OutOfMemory,
    PartyError,
    RoundFailed,
)
from fedray.messages import PartyLine, Progress, RoundReport
from fedray.observers import Guard

COUNTS = re.compile(r"\d+ reported, \d+ needed")  # of a failed round's error
HIDDEN = f"only {FILE} in the run's folder says why"
OF_CHOICE = ("chosen", "reported", "fused")
# fields of a round's report that tell nothing of single parties, or are made so here:
# of test_data, of noised sums, of the config, of the clock; all others are hidden
PUBLIC = {
    *("round", "group", "aggregated", "joined", "left", "notes", "stop_reason"),
    *("loss", "accuracy", "metrics", "evaluated", "plateau", "learning_rate"),
    *("seconds", "evaluate_seconds", "privacy", "skipped", "parties", *OF_CHOICE),
}


class Disclosure:
    """Divides what is noted of a run into what all may read and its operator alone.

    Without differential privacy for parties all is for all, and no file is written.

    folder : of the run.
    guard : what to do where operator.jsonl cannot be written: the run goes on.
    """

    def __init__(self, config: FederationConfig, folder: Path, guard: Guard):
        self.config, self.folder, self.guard = config, folder, guard

    def report(self, whole: RoundReport) -> RoundReport:
        """A round's report for all; the whole of it is written for the operator."""
        if self.config.hides_parties:
            self._write(whole.to_json())
            return public_report(whole, self.config)
        return without_counts(whole) if self.config.secure_aggregation else whole

    def notes(self, of_parties: Iterable[str]) -> list[str]:
        """Those of these notes, which tell of single parties, that all may read."""
        lines = [*of_parties]
        if not self.config.hides_parties or not lines:
            return lines
        self._write({"notes": lines})
        return []

    def progress(self, whole: Progress) -> Progress:
        """The state of the round under way, as followers may see it."""
        if not self.config.hides_parties:
            return whole
        progress = dataclasses.replace(whole, troubled={}, working={})
        if not self.config.hides_choice:
            return progress
        return dataclasses.replace(progress, chosen=0, reported=0)

    def error(self, error: Exception) -> Exception:
        """What a run fails with, as all may read it."""
        if not self.config.hides_parties or HIDDEN in str(error):
            return error
        text = "".join(traceback.format_exception(error))
        is_own = isinstance(error, FedrayError)
        self._write({"error": f"{type(error).__name__}: {error}" if is_own else text})
        return public_error(error, self.config)

    def _write(self, line: dict[str, Any]) -> None:
        self.guard.call(append_for_operator, self.folder, line)


def public_report(whole: RoundReport, config: FederationConfig) -> RoundReport:
    """A round's report without what tells of single parties.

    Every party that reported counts as fused: what is not finite adds 0 to the sum, as
    who is absent does, and that it was refused is for the operator.
    """
    is_cut = whole.summary is not None  # to those that were in trouble first
    lines = [] if is_cut else whole.parties
    names = [PartyLine(line.name, outcome=None) for line in lines]
    hidden: dict[str, Any] = {
        field.name: None
        if field.default_factory is MISSING
        else field.default_factory()
        for field in dataclasses.fields(RoundReport)
        if field.name not in PUBLIC
    }
    # that of samples goes by how many the party has
    spent = {name: own for name, own in whole.privacy.items() if name != "samples"}
    hidden["privacy"] = spent | {"weights": "equal"}  # of the parties
    if config.hides_choice:
        hidden |= dict.fromkeys(OF_CHOICE)
        names = []
    else:
        hidden["fused"] = 0 if whole.skipped else whole.reported
    if whole.skipped:
        hidden["skipped"] = HIDDEN
    if config.scheduler_every == "step":  # as many as a party has batches
        hidden["learning_rate"] = None
    return dataclasses.replace(whole, **hidden, parties=names)


def without_counts(whole: RoundReport) -> RoundReport:
    """A round's report without sample counts, which masks hide beside the updates."""
    lines = [dataclasses.replace(line, n_samples=None) for line in whole.parties]
    summary = whole.summary and whole.summary | {"n_samples": None}
    return dataclasses.replace(whole, parties=lines, summary=summary)


def public_error(error: Exception, config: FederationConfig) -> Exception:
    """What a run fails with, without the parties' reasons."""
    if isinstance(error, RoundFailed):
        is_shown = COUNTS.fullmatch(error.needed) and not config.hides_choice
        needed = error.needed if is_shown else "there is no sum of enough parties"
        return RoundFailed(error.round, f"{needed}; {HIDDEN}", {}, error.note)
    if isinstance(error, JoinFailed):
        return JoinFailed(dict.fromkeys(error.reasons, HIDDEN))
    if isinstance(error, PartyError):
        party = "?" if config.hides_choice else error.party
        return PartyError(party, error.stage, "failed", HIDDEN, "")
    if isinstance(error, OutOfMemory):
        return OutOfMemory("a process of the run", f"needs more memory; {HIDDEN}")
    if isinstance(error, FedrayError | MemoryError):
        return error
    return ClusterError("the aggregator failed", f"{HIDDEN}.")
