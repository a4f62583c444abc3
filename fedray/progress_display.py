"""Terminal display of a running federation: a line per round and a progress bar."""

import shutil
import sys
import time
from collections.abc import Mapping
from typing import TextIO

from fedray.errors import format_count
from fedray.messages import APART, FUSED, Progress, RoundReport
from fedray.untrusted_text import CLEAR_LINE, Terminal, cut_to_width

BAR_WIDTH = 20  # characters
N_SLOWEST = 3  # parties of the round under way that are named
N_METRICS = 5  # numbers beside loss and accuracy that a line shows
LATER = ("training", "evaluating", "done")  # stages that have lines of their own
STAGES = {"joining": "parties load their data"}  # where the stage is all there is


class ProgressDisplay:
    """Prints a line for every finished round; on a terminal also a live progress bar.

    Parameters
    ----------
    n_rounds : int
        Rounds that the run was asked for.
    out : text file
        Default: standard output.
    is_scored : bool
        False: a model without loss and accuracy, whose columns are left out.
    group_title : str
        Title of the column with a line's group: "group", or "member" of an ensemble.
    """

    def __init__(
        self,
        n_rounds: int,
        out: TextIO | None = None,
        is_scored: bool = True,
        group_title: str = "group",
    ):
        self.n_rounds, self.out = n_rounds, Terminal(sys.stdout if out is None else out)
        self.is_scored, self.group_title = is_scored, group_title
        self.is_live = self.out.isatty()
        self.started, self.has_header = time.monotonic(), False
        self.notes: list[str] = []
        self.stage = ""  # that was printed last
        self.printed_troubles: set[tuple[int, str]] = set()

    def __call__(self, progress: Progress) -> None:
        """Print what is new since the last call."""
        self._print_stage(progress)
        self._print_notes(progress.notes)
        for report in progress.reports:
            self._print_troubles(report.round, troubles_of(report))
            if not self.has_header:
                self._print(self._header(report))
                self.has_header = True
            self._print(round_line(report, self.n_rounds, self.is_scored))
            if report.stop_note:
                self._print(f"  {report.stop_note}")
        self._print_troubles(progress.round, progress.troubled)
        if self.is_live and progress.stage != "done":
            self._redraw(progress)
        elif self.is_live:
            self.out.write(CLEAR_LINE)
        self.out.flush()

    def _header(self, report: RoundReport) -> str:
        more = "  disagreement" if report.threshold is not None else ""
        more += f"  {self.group_title}" if report.group is not None else ""
        return header(self.is_scored) + more

    def _print_stage(self, progress: Progress) -> None:
        """Without a live line: print once what is waited for before round 1."""
        if self.is_live or progress.round or progress.stage in (self.stage, *LATER):
            return
        self.stage = progress.stage
        self._print(f"  {STAGES.get(self.stage, self.stage)}")

    def _print_notes(self, notes: list[str]) -> None:
        if notes[: len(self.notes)] != self.notes:
            self.notes = []  # those of a restarted aggregator, from its first on
        for note in notes[len(self.notes) :]:
            self._print(f"  {note}")
        self.notes = list(notes)

    def _print_troubles(self, number: int, troubled: Mapping[str, str]) -> None:
        """Print who was late, failed or was refused in a round, each once."""
        for name, outcome in troubled.items():
            if (number, name) not in self.printed_troubles:
                self.printed_troubles.add((number, name))
                one_line = " ".join(outcome.split())
                self._print(f"  round {number}: party {name} {one_line}")

    def _redraw(self, progress: Progress) -> None:
        elapsed_s = time.monotonic() - self.started
        if not progress.round:
            stage = STAGES.get(progress.stage, progress.stage)
            if progress.timeout_s:
                stage += f", {progress.waited_s:.0f} of {progress.timeout_s:.0f} s"
            else:
                stage += f", {elapsed_s:.0f} s"
            self._write_line(stage)
            return
        n_done = progress.round - 1
        filled = BAR_WIDTH * n_done // self.n_rounds
        bar = "#" * filled + "." * (BAR_WIDTH - filled)
        parties = ""
        if progress.chosen:
            n_chosen = format_count(progress.chosen, "party", "parties")
            parties = f", {progress.reported} of {n_chosen} reported"
        slowest = list(progress.working.items())[:N_SLOWEST]
        working = "".join(f", {name} {share:.0%}" for name, share in slowest)
        stage = f"round {progress.round} of {self.n_rounds}, {progress.stage}"
        self._write_line(f"[{bar}] {stage}{parties}, {elapsed_s:.0f} s{working}")

    def _write_line(self, line: str) -> None:
        width = shutil.get_terminal_size().columns - 1  # a wrapped line would stay
        self.out.write(CLEAR_LINE)
        self.out.write(cut_to_width(line, width))

    def _print(self, line: str) -> None:
        if self.is_live:
            self.out.write(CLEAR_LINE)
        self.out.write(line + "\n")


def troubles_of(report: RoundReport) -> dict[str, str]:
    """Parties that were late, failed or were refused in a round, and why."""
    return {
        party.name: party.outcome
        for party in report.parties
        if party.outcome not in (FUSED, APART, None)
    }


def header(is_scored: bool = True) -> str:
    """Column titles of the table of rounds."""
    scores = f"  {'loss':>8}  {'accuracy':>8}" if is_scored else ""
    return (
        f"{'round':>9}  {'fused':>8}{scores}  {'moved':>9}  {'train':>8}  {'round':>8}"
    )


def round_line(report: RoundReport, n_rounds: int, is_scored: bool = True) -> str:
    """One finished round as a line of the table."""
    scores = ""
    if is_scored:
        values = (report.loss, report.accuracy)
        texts = ["-" if value is None else f"{value:.4f}" for value in values]
        scores = "".join(f"  {text:>8}" for text in texts)
    more = ""
    if report.threshold is not None:
        more = f"  {report.estimate:.3g}, fuse at {report.threshold:.3g}"
    if report.staleness is not None:
        more += f"  staleness {report.staleness:.2g}"
    if report.virtual_s is not None:
        more += f"  at {report.virtual_s:.4g} virtual s"
    if report.group is not None:
        more += f"  {report.group}"
    for name, value in report.numbers[:N_METRICS]:
        more += f"  {name} {'-' if value is None else f'{value:.4g}'}"
    for unit, epsilon in report.epsilons.items():
        more += f"  epsilon {epsilon:.3g} a {unit}"
    rounds = f"{report.round} of {n_rounds}"
    fused = "-" if report.fused is None else f"{report.fused} of {report.chosen}"
    moved, train = report.bytes_moved, report.train_seconds
    moved_text = "-" if moved is None else f"{moved / 1e6:.1f} MB"
    train_text = "-" if train is None else f"{train:.2f} s"
    return (
        f"{rounds:>9}  {fused:>8}{scores}  {moved_text:>9}"
        f"  {train_text:>8}  {report.seconds:>6.2f} s{more}"
    )
