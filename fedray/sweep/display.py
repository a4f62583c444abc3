"""Terminal display of a sweep: one table that is drawn anew; elsewhere plain lines."""

import shutil
import sys
import time
from typing import TextIO

from fedray.errors import format_count
from fedray.report.formatting import format_duration
from fedray.sweep.progress import RUNNING, WAITING, RunProgress, SweepProgress
from fedray.sweep.record import DONE, FAILED
from fedray.untrusted_text import LINE_UP, Terminal, cut_to_width

UPDATE_S = 0.5
N_RUNNING, N_FAILED = 8, 5  # rows of the table


class SweepDisplay:
    """Shows a sweep's progress.

    out : default: standard output.
    """

    def __init__(self, out: TextIO | None = None):
        self.out = Terminal(sys.stdout if out is None else out)
        self.is_live = self.out.isatty()
        self.n_drawn, self.drawn_at = 0, 0.0
        self.shown: set[str] = set()  # runs whose end was printed
        self.has_title = self.has_ending = False

    def __call__(self, progress: SweepProgress) -> None:
        """Show what is new."""
        if not self.has_title:
            self._print_title(progress)
        if self.is_live:
            if time.monotonic() - self.drawn_at >= UPDATE_S:
                self._draw(progress)
            return
        if progress.is_ending and not self.has_ending:
            self.has_ending = True
            self._print("finishing the rounds under way; once more stops at once")
        for run in progress.runs.values():
            if run.state in (DONE, FAILED) and run.name not in self.shown:
                self.shown.add(run.name)
                self._print(describe_end(run, progress))
        self.out.flush()

    def end(self, progress: SweepProgress) -> None:
        """Leave the last state; who failed is named with the reason."""
        if self.is_live:
            self._draw(progress)
            for run in progress.runs.values():
                if run.state == FAILED:
                    self._print(f"failed   {run.name}: {run.one_line}")
        self.out.flush()

    def _print_title(self, progress: SweepProgress) -> None:
        self.has_title = True
        counts = progress.count()
        n_before = counts[DONE] + counts[FAILED]
        before = f", {counts[DONE]} done before" if counts[DONE] else ""
        failed = f", {counts[FAILED]} failed before" if counts[FAILED] else ""
        runs = format_count(len(progress.runs), "run")
        self._print(f"{progress.name}: {runs}{before}{failed}, in {progress.folder}")
        if n_before:
            ended = {DONE, FAILED}
            names = (r.name for r in progress.runs.values() if r.state in ended)
            self.shown |= {*names}
        for run in progress.runs.values():
            if run.state == FAILED:
                self._print(f"failed before: {run.name}: {run.one_line}")

    def _print(self, line: str) -> None:
        self.out.write(line + "\n")

    def _draw(self, progress: SweepProgress) -> None:
        for _ in range(self.n_drawn):
            self.out.write(LINE_UP)
        width = shutil.get_terminal_size().columns - 1  # a wrapped line would stay
        height = shutil.get_terminal_size().lines - 1
        lines = table(progress)[:height]
        for line in lines:
            self._print(cut_to_width(line, width))
        self.out.flush()
        self.n_drawn, self.drawn_at = len(lines), time.monotonic()


def table(progress: SweepProgress) -> list[str]:
    """The state of a sweep as rows: counts, the best, what runs, what failed."""
    counts, runs = progress.count(), progress.runs.values()
    numbers = [f"{counts[state]} {state}" for state in (DONE, RUNNING, WAITING, FAILED)]
    rows = [("runs", ", ".join(numbers) + _time_left(progress))]
    if best := progress.best():
        rows.append(("best", f"{_score(best)}  {best.name}"))
    running = [run for run in runs if run.state == RUNNING]
    for run in running[:N_RUNNING]:
        at = f"round {run.round} of {run.rounds}" if run.round else "starting"
        rows.append(("running", f"{run.name}  {at}  {_score(run)}".rstrip()))
    if len(running) > N_RUNNING:
        rows.append(("", f"and {len(running) - N_RUNNING} more"))
    failed = [run for run in runs if run.state == FAILED]
    for run in failed[-N_FAILED:]:
        rows.append(("failed", f"{run.name}: {run.one_line}"))
    if progress.is_ending:
        rows.append(("ending", "with the rounds under way; once more stops at once"))
    return [f"{title:<8} {text}" for title, text in rows]


def describe_end(run: RunProgress, progress: SweepProgress) -> str:
    """A run that has ended, as a line: ``12 of 30: learning_rate=0.1: ...``."""
    counts = progress.count()
    place = f"{counts[DONE] + counts[FAILED]} of {len(progress.runs)}"
    if run.state == FAILED:
        return f"{place}: {run.name} failed: {run.one_line}"
    took = format_duration(run.seconds)
    scores = f"{_score(run)}, " if run.score else ""
    return f"{place}: {run.name}: {scores}{took}{_time_left(progress)}"


def _score(run: RunProgress) -> str:
    return f"{run.score[0]} {run.score[1]:.4f}" if run.score else ""


def _time_left(progress: SweepProgress) -> str:
    seconds = progress.seconds_left()
    return f", about {format_duration(seconds)} left" if seconds else ""
