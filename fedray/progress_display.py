"""What a terminal shows of a running federation."""

import shutil
import sys
import time
from typing import TextIO

from fedray.messages import APART, FUSED, Progress, RoundReport

BAR = 20  # characters
N_SHOWN = 3  # parties of a round under way, the slowest


class Board:
    """A line for every round done and, on a terminal, one that lives below them."""

    def __init__(
        self,
        n_rounds: int,
        out: TextIO | None = None,
        is_scored: bool = True,
        of: str = "group",
    ):
        self.of = of  # what a line with a name is of: a group, or a member
        self.is_scored = is_scored  # False: a model without loss and accuracy
        self.n_rounds, self.out = n_rounds, sys.stdout if out is None else out
        self.live = self.out.isatty()
        self.started, self.told = time.monotonic(), False
        self.notes: list[str] = []
        self.troubles: set[tuple[int, str]] = set()

    def __call__(self, progress: Progress) -> None:
        """Show what is new."""
        if progress.notes[: len(self.notes)] != self.notes:
            self.notes = []  # another aggregator speaks: the first one was killed
        for note in progress.notes[len(self.notes) :]:
            self._print(f"  {note}")
        self.notes = list(progress.notes)
        self._trouble(progress)
        for report in progress.reports:
            if not self.told:
                is_adaptive = report.threshold is not None
                more = "  disagreement" if is_adaptive else ""
                more += f"  {self.of}" if report.group is not None else ""
                self._print(head(self.is_scored) + more)
                self.told = True
            self._print(row(report, self.n_rounds, self.is_scored))
        if self.live and progress.stage != "done":
            self._redraw(progress)
        elif self.live:
            self.out.write("\r\x1b[K")
        self.out.flush()

    def _trouble(self, progress: Progress) -> None:
        seen = [(progress.round, name, why) for name, why in progress.troubled.items()]
        for report in progress.reports:
            lines = [(party.name, party.outcome) for party in report.parties]
            lines = [(name, why) for name, why in lines if why not in (FUSED, APART)]
            seen += [(report.round, name, why) for name, why in lines]
        for round, name, why in seen:
            if (round, name) not in self.troubles:
                self.troubles.add((round, name))
                self._print(f"  round {round}: party {name} {why}")

    def _redraw(self, progress: Progress) -> None:
        done = progress.round - 1 if progress.round else 0
        filled = BAR * done // self.n_rounds
        bar = "#" * filled + "." * (BAR - filled)
        parties = ""
        if progress.chosen:
            parties = f", {progress.reported} of {progress.chosen} parties reported"
        slowest = list(progress.working.items())[:N_SHOWN]
        working = "".join(f", {name} {share:.0%}" for name, share in slowest)
        elapsed = time.monotonic() - self.started
        where = f"round {progress.round} of {self.n_rounds}, {progress.stage}"
        line = f"[{bar}] {where}{parties}, {elapsed:.0f} s{working}"
        width = shutil.get_terminal_size().columns - 1  # a second line would stay
        self.out.write(f"\r\x1b[K{line[:width]}")

    def _print(self, line: str) -> None:
        self.out.write(("\r\x1b[K" if self.live else "") + line + "\n")


def head(is_scored: bool = True) -> str:
    """What the columns of the table are."""
    scores = f"  {'loss':>8}  {'accuracy':>8}" if is_scored else ""
    return (
        f"{'round':>9}  {'fused':>8}{scores}  {'moved':>9}  {'train':>8}  {'round':>8}"
    )


def row(report: RoundReport, n_rounds: int, is_scored: bool = True) -> str:
    """One round as a line of the table."""
    loss = "-" if report.loss is None else f"{report.loss:.4f}"
    accuracy = "-" if report.accuracy is None else f"{report.accuracy:.4f}"
    scores = f"  {loss:>8}  {accuracy:>8}" if is_scored else ""
    apart = ""
    if report.threshold is not None:
        apart = f"  {report.estimate:.3g}, fuse at {report.threshold:.3g}"
    if report.group is not None:
        apart += f"  {report.group}"
    return (
        f"{report.round:>4} of{n_rounds:>2}  {report.fused:>3} of{report.chosen:>2}"
        f"{scores}  {report.bytes_moved / 1e6:>6.1f} MB"
        f"  {report.train_seconds:>6.2f} s  {report.seconds:>6.2f} s{apart}"
    )
