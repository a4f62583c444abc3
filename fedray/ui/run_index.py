"""All runs below some folders: found again and again, read as they grow."""

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedray.checkpoint import runs_folder
from fedray.experiments.records import CONFIG, HISTORY, MAX_DEPTH
from fedray.federation.run_addresses import find_runs
from fedray.runs_page import RunDetails, RunReader
from fedray.runs_page.values import text
from fedray.service.page_answers import federation_fields
from fedray.service.settings import Settings
from fedray.service.store import FILE as FEDERATION
from fedray.service.store import ID, load

MAX_RUNS = 10_000  # of the list, the newest
MAX_VISITED = 20_000  # folders that are looked into for runs
MAX_OPEN = 16  # runs whose details are kept
BUDGET_S = 0.5  # of reading for one answer; what is left comes with the next
HELD_S = 0.5  # answers within it do not look again
LOCK = ".lock"  # of a run that has begun


def default_folders() -> list[Path]:
    """Where runs are that nobody named a folder for: of commands, and the service's."""
    return [runs_folder(), Settings().folder]


def run_key(folder: Path) -> str:
    """A run's id on the page, which tells nothing of where it is."""
    return hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]


class RunIndex:
    """The runs below some folders, by their ids.

    folders : that are looked through.
    is_whole_machine : runs that are alive elsewhere are shown too.
    """

    def __init__(self, folders: Sequence[Path], is_whole_machine: bool):
        self.folders = [folder.expanduser().absolute() for folder in folders]
        self.is_whole_machine = is_whole_machine
        self.runs: dict[str, RunReader] = {}
        self.unread: dict[str, RunReader] = {}  # found, and not read yet
        self.details: OrderedDict[str, RunDetails] = OrderedDict()
        self.alive: set[Path] = set()  # folders of runs that were alive once
        self.notes: list[str] = []
        self.n_visited = 0
        self.refresh_time = 0.0

    def refresh(self) -> None:
        """Find runs, and read what has changed of them, for `BUDGET_S` at most."""
        begin = time.monotonic()
        if begin - self.refresh_time < HELD_S and not self.unread:
            return
        self.notes, self.n_visited = [], 0
        present = dict(self._find())
        for key in [key for key in self.runs if key not in present]:
            del self.runs[key]
        self.unread = {k: run for k, run in present.items() if k not in self.runs}
        for run in self.runs.values():
            run.refresh()
        for key, run in [*self.unread.items()]:
            if time.monotonic() - begin > BUDGET_S:
                break
            run.refresh()
            self.runs[key] = self.unread.pop(key)
        self.refresh_time = time.monotonic()

    def _find(self) -> Iterator[tuple[str, RunReader]]:
        for n_found, (folder, name) in enumerate(self._folders()):
            key = run_key(folder)
            if n_found == MAX_RUNS:
                self.notes.append(f"only {MAX_RUNS:,} runs are listed")
                return
            yield key, self.runs.get(key) or RunReader(folder, name)

    def _folders(self) -> Iterator[tuple[Path, str]]:
        """Folders of runs and their names."""
        listed = set()
        for root in self.folders:
            for folder in self._below(root, MAX_DEPTH):
                if folder not in listed:
                    listed.add(folder)
                    below = str(folder.relative_to(root))
                    yield folder, text(root.name if below == "." else below, 200)
        if self.is_whole_machine:
            self.alive |= {Path(one.folder) for one in find_runs() if one.is_here}
            for folder in sorted(self.alive - listed):
                if folder.is_dir():
                    yield folder, text(folder.name, 200)

    def _below(self, folder: Path, depth: int) -> Iterator[Path]:
        self.n_visited += 1
        if self.n_visited > MAX_VISITED:
            if self.n_visited == MAX_VISITED + 1:
                self.notes.append(
                    f"{MAX_VISITED:,} folders were looked into, no more: name one "
                    "that has runs alone with --runs"
                )
            return
        if is_run(folder):
            yield folder
            return  # a run's own folders hold no runs
        if not depth:
            return
        try:
            with os.scandir(folder) as entries:
                names = [e.name for e in entries if e.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return
        except OSError as error:
            why = error.strerror or str(error)
            self.notes.append(f"{text(str(folder), 200)}: {why}")
            return
        for name in sorted(names):
            yield from self._below(folder / name, depth - 1)

    def entries(self) -> list[dict[str, Any]]:
        """Every run's line of the list, the newest first."""
        entries = [self.entry(key) for key in self.runs]
        entries.sort(
            key=lambda one: (one["is_live"], one["changed"] or 0), reverse=True
        )
        return entries

    def entry(self, key: str) -> dict[str, Any]:
        """A run's line of the list."""
        run = self.runs[key]
        path = f"/runs/{key}"
        entry = run.entry() | _of_federation(run.folder)
        models, has_report = entry.pop("models"), entry.pop("has_report")
        return entry | {
            "id": key,
            "folder": text(str(run.folder)),
            "report": f"{path}/report" if has_report else None,
            "model": f"{path}/models/{models[0]}" if models else None,
        }

    def detail(self, key: str) -> dict[str, Any]:
        """A run's own view."""
        if key not in self.details:
            self.details[key] = RunDetails(self.runs[key].folder)
            while len(self.details) > MAX_OPEN:
                self.details.popitem(last=False)
        self.details.move_to_end(key)
        details = self.details[key]
        details.refresh()
        self.runs[key].refresh()
        plain = details.plain()
        models = [[f"/runs/{key}/models/{n}", n, size] for n, size in plain["models"]]
        return self.entry(key) | plain | {"models": models}


def is_run(folder: Path) -> bool:
    """Whether a run has begun in a folder; a project that was not run is none."""
    if (folder / HISTORY).is_file():
        return True
    if (folder / LOCK).is_file():
        return (folder / CONFIG).is_file()
    return bool(ID.fullmatch(folder.name)) and (folder / FEDERATION).is_file()


def _of_federation(folder: Path) -> dict[str, Any]:
    """What the service says of one of its federations; nothing of another run."""
    if not ID.fullmatch(folder.name):
        return {}
    try:
        state = load(folder)
        if state is None:
            return {}
        return federation_fields(state)
    except (ValueError, TypeError, KeyError, OSError):
        return {"problem": f"{FEDERATION}: cannot be read"}
