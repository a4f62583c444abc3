"""What a sweep has done until now, in its folder: sweep.jsonl.

Its first line says what runs differ by; each further one how a run has ended. Runs that
stand in no line have not begun, or go on.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from fedray import durable_files
from fedray.checkpoint import lock_folder
from fedray.errors import RunFolderError, Stopped, format_count

FILE = "sweep.jsonl"
DONE, FAILED = "done", "failed"
TAKE_ANOTHER = "Take another folder with --out"


class SweepStopped(Stopped):
    """A sweep was stopped before its last run: runs done, of how many."""

    def __str__(self) -> str:
        runs = format_count(self.n_rounds, "run")
        return (
            f"stopped with {self.n_done} of {runs} done, kept in {self.folder}; the "
            "same command goes on"
        )


class End(NamedTuple):
    """How a run of a sweep has ended: done, or failed for a reason."""

    state: str
    reason: str = ""


class SweepRecord:
    """The ends of a sweep's runs, by their names.

    folder : of the sweep, which this process has locked.
    """

    def __init__(self, folder: Path, keys: Sequence[str]):
        self.file = folder / FILE
        self.ends: dict[str, End] = {}
        lines = self._read()
        if lines is None:
            self._require_new(folder)
            header = {"fedray": version("fedray"), "keys": [*keys]}
            durable_files.write_text(self.file, json.dumps(header) + "\n")
        else:
            self._require_same(folder, lines[0].get("keys"), [*keys])
            for line in lines[1:]:
                end = End(str(line.get("state")), str(line.get("reason", "")))
                self.ends[str(line.get("run"))] = end

    def add(self, run: str, end: End) -> None:
        """Note how a run has ended; on disk when this returns.

        Raises
        ------
        OSError
            If the disk refuses.
        """
        text = json.dumps({"run": run, **end._asdict()}) + "\n"
        with durable_files.name_errors(self.file), self.file.open("ab", 0) as opened:
            opened.write(text.encode())
            os.fsync(opened.fileno())
        self.ends[run] = end

    def _read(self) -> list[dict[str, object]] | None:
        """Lines that are whole; None where there is no such file."""
        try:
            data = self.file.read_bytes()
        except FileNotFoundError:
            return None
        lines = []
        for text in data.splitlines():
            with contextlib.suppress(ValueError):  # cut by a crash, or by a full disk
                line = json.loads(text)
                if isinstance(line, dict):
                    lines.append(line)
        if not lines or "keys" not in lines[0]:
            reason = f"its {FILE} is damaged"
            remedy = f"Delete {self.file}: runs that are done are seen to be so"
            raise RunFolderError(str(self.file.parent), reason, remedy)
        if not data.endswith(b"\n"):  # what is added is a line of its own
            with self.file.open("ab", 0) as opened:
                opened.write(b"\n")
        return lines

    def _require_new(self, folder: Path) -> None:
        """Refuse a folder with other things in it than runs that sweeps make.

        Those stay if only the record was deleted.
        """
        names = {path.name for path in folder.iterdir()}
        foreign = {name for name in names if "=" not in name and name[0] != "."}
        if foreign:
            reason = f"has {min(foreign)} in it, and holds no sweep"
            raise RunFolderError(str(folder), reason, TAKE_ANOTHER)

    def _require_same(self, folder: Path, before: object, keys: list[str]) -> None:
        if not isinstance(before, list) or sorted(before) != sorted(keys):
            own = ", ".join(map(str, before)) if isinstance(before, list) else before
            reason = f"holds a sweep over {own}; this one is over {', '.join(keys)}"
            raise RunFolderError(str(folder), reason, TAKE_ANOTHER)


@contextlib.contextmanager
def open_record(folder: Path, keys: Sequence[str]) -> Iterator[SweepRecord]:
    """The record of the sweep in a folder, locked for this process.

    keys : that its runs differ by.

    Raises
    ------
    RunFolderError
        If another process sweeps there, or it holds another sweep or other things.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock_folder(folder))
        except RunFolderError as error:
            remedy = error.remedy.replace("--run-dir", "--out")
            raise RunFolderError(error.folder, error.reason, remedy) from None
        yield SweepRecord(folder, keys)
