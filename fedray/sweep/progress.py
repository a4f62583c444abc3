"""State of a sweep while it runs: what each run is at, and when the last one ends."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedray.messages import Progress, RoundReport
from fedray.sweep.record import DONE, FAILED, End

WAITING, RUNNING, STOPPED = "waiting", "running", "stopped"
MAX_REASON = 300  # characters of why a run has failed, in a line


@dataclass
class RunProgress:
    """What one run is at.

    round : the last that is over, of `rounds`.
    values : by metric the last that was measured.
    """

    name: str
    rounds: int
    state: str = WAITING
    round: int = 0
    values: Mapping[str, float] | None = None
    reason: str = ""
    seconds: float = 0.0

    @property
    def score(self) -> tuple[str, float] | None:
        """What runs are compared by: accuracy, or else loss."""
        values = self.values or {}
        name = next((n for n in ("accuracy", "loss") if n in values), None)
        return (name, values[name]) if name else None

    def take(self, reports: Sequence[RoundReport]) -> None:
        """Take up rounds that are over."""
        for report in reports:
            self.round = max(self.round, report.round)
            own = {"accuracy": report.accuracy, "loss": report.loss}
            measured = {n: value for n, value in own.items() if value is not None}
            self.values = {**(self.values or {}), **measured}

    @property
    def one_line(self) -> str:
        """Why it failed, in one line."""
        text = " ".join(self.reason.split())
        return text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 3]}..."


class SweepProgress:
    """All runs of a sweep; threads of runs write, one thread shows.

    n_side_by_side : 0 while that is not known.
    """

    def __init__(self, name: str, folder: Path, runs: Mapping[str, int]):
        self.name, self.folder = name, folder
        self.runs = {run: RunProgress(run, rounds) for run, rounds in runs.items()}
        self.n_side_by_side = 0
        self.is_ending = False
        self.started = time.monotonic()
        self._n_before: int | None = None  # rounds that were over when training began

    def end(self, run: str, end: End) -> None:
        """Note how a run has ended."""
        own = self.runs[run]
        own.state, own.reason = end
        if end.state == DONE:
            own.round = own.rounds  # it may have stopped earlier

    def take(self, run: str, progress: Progress) -> None:
        """Take up what a run has done."""
        if self._n_before is None and progress.round:
            self.started = time.monotonic()
            self._n_before = self._n_rounds_over
        self.runs[run].take(progress.reports)

    def count(self) -> Counter[str]:
        """How many runs are in each state."""
        return Counter(run.state for run in self.runs.values())

    def best(self) -> RunProgress | None:
        """The run with the best value so far, of those that have one."""
        scored = [run for run in self.runs.values() if run.score]
        if not scored:
            return None
        name = scored[0].score[0] if scored[0].score else ""
        sign = -1 if name == "loss" else 1
        same = [run for run in scored if run.score and run.score[0] == name]
        return max(same, key=lambda run: sign * (run.score[1] if run.score else 0.0))

    def seconds_left(self) -> float | None:
        """Seconds until the last run ends, as rounds have gone so far."""
        n_over = self._n_rounds_over
        n_done = n_over - (self._n_before or 0)
        if self._n_before is None or not n_done:
            return None
        open_runs = [r for r in self.runs.values() if r.state in (WAITING, RUNNING)]
        n_left = sum(run.rounds - run.round for run in open_runs)
        return n_left * (time.monotonic() - self.started) / n_done

    @property
    def _n_rounds_over(self) -> int:
        return sum(run.round for run in self.runs.values() if run.state != FAILED)
