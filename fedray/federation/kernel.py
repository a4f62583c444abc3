"""Notebooks and other interactive sessions of IPython: how a run is shown there."""

import contextlib
import functools
import sys
import time
from collections.abc import Iterator
from typing import Any

from fedray.config import FederationConfig
from fedray.errors import Stopped
from fedray.federation.actors import Watch
from fedray.messages import Progress, RoundReport
from fedray.observers import Guard
from fedray.progress_display import STAGES, ProgressDisplay, round_line, troubles_of
from fedray.report import progress_html

UPDATE_S = 0.5  # between two updates of what a notebook shows
N_LINES = 5  # of what went wrong, the last ones


def shell() -> Any:
    """The interactive session of IPython that this process is; None if it is none."""
    module = sys.modules.get("IPython")  # there, it is imported
    get_ipython = getattr(module, "get_ipython", None)
    return get_ipython() if get_ipython else None


def is_interactive() -> bool:
    """Whether this process is a notebook's kernel or an IPython session."""
    return shell() is not None


def is_notebook() -> bool:
    """Whether what is displayed here is shown by a notebook."""
    return hasattr(shell(), "kernel")


@contextlib.contextmanager
def following(config: FederationConfig, watch: Watch | None) -> Iterator[Watch]:
    """The function that follows a run: the caller's, else what shows it here.

    An exception in it is said once and ends nothing.
    """
    if watch is None and is_notebook():
        with _shown(config) as display:
            yield display
    elif watch is None and is_interactive():
        yield functools.partial(Guard("terminal").call, ProgressDisplay(config.rounds))
    else:
        yield functools.partial(Guard("watch").call, watch or _watch_nothing)


def _watch_nothing(progress: Progress) -> None:
    pass


@contextlib.contextmanager
def _shown(config: FederationConfig) -> Iterator[Watch]:
    """Show the run as one table that is updated; the last state stays."""
    display = NotebookDisplay(config.rounds)
    guard = Guard("progress in the notebook")
    guard.call(display.show)
    try:
        yield functools.partial(guard.call, display)
    except BaseException as error:
        is_stop = isinstance(error, KeyboardInterrupt | Stopped)
        guard.call(display.end, "stopped" if is_stop else "failed")
        raise
    guard.call(display.end, "done")


class NotebookDisplay:
    """One output of a notebook's cell, updated as the run goes on.

    n_rounds : that the run was asked for.
    """

    def __init__(self, n_rounds: int):
        self.n_rounds, self.started = n_rounds, time.monotonic()
        self.history: list[RoundReport] = []
        self.lines: dict[str, None] = {}  # what went wrong, each once
        self.title, self.updated = "starting Ray", 0.0
        self.handle: Any = None

    def __call__(self, progress: Progress) -> None:
        """Take up what is new; show it, unless something was shown just before."""
        self.history += progress.reports
        for report in progress.reports:
            self._add_troubles(report.round, troubles_of(report))
            if report.stop_note:
                self.lines[report.stop_note] = None
        self._add_troubles(progress.round, progress.troubled)
        self.lines |= dict.fromkeys(progress.notes)
        self.title = self._describe(progress)
        if time.monotonic() - self.updated >= UPDATE_S:
            self.show()

    def show(self) -> None:
        """Show the state as it is now."""
        from IPython.display import display

        self.updated = time.monotonic()
        if self.handle is None:
            self.handle = display(self, display_id=True)
        else:
            self.handle.update(self)

    def end(self, state: str) -> None:
        """Show the last state: done, stopped or failed."""
        n_done = len({report.round for report in self.history})
        seconds = time.monotonic() - self.started
        rounds = f"{n_done:,} of {self.n_rounds:,} rounds"
        self.title = f"{state}: {rounds} in {seconds:.1f} s"
        self.show()

    def _add_troubles(self, number: int, troubled: dict[str, str]) -> None:
        for name, outcome in troubled.items():
            line = f"round {number}: party {name} {' '.join(outcome.split())}"
            self.lines[line] = None

    def _describe(self, progress: Progress) -> str:
        elapsed = f"{time.monotonic() - self.started:.0f} s"
        if not progress.round:
            return f"{STAGES.get(progress.stage, progress.stage)}, {elapsed}"
        reported = ""
        if progress.chosen:
            reported = (
                f", {progress.reported:,} of {progress.chosen:,} parties reported"
            )
        number = f"round {progress.round:,} of {self.n_rounds:,}"
        return f"{number}, {progress.stage}{reported}, {elapsed}"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """The state as HTML, and as text where there is none."""
        last = self.history[-1].round if self.history else 0
        lines = list(self.lines)[-N_LINES:]
        html = progress_html(self.title, last / self.n_rounds, self.history, lines)
        rows = [round_line(report, self.n_rounds) for report in self.history[-10:]]
        return {"text/html": html, "text/plain": "\n".join([self.title, *rows, *lines])}
