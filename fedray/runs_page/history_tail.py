"""Reads a history.jsonl as it grows: each line once, and all again if it was edited."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from fedray.experiments.records import HISTORY

MAX_LINE = 64 << 20  # bytes; a round of 100,000 parties has some 25 MB
MAX_ROUND = 1 << 53  # what a browser can count
N_END = 256  # bytes before the offset that must be as they were
N_LISTED = 5  # damaged lines that are named
Line = dict[str, Any]
Version = tuple[int, int, int]


def file_version(file: Path) -> Version | None:
    """Numbers that are others once a file has changed; None if there is none.

    A folder counts, too; a pipe or a device, which could be waited for, does not.
    """
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


class HistoryTail:
    """The lines of one history.jsonl that were not read before.

    problem : what could not be read, in words; empty if all could.
    """

    def __init__(self, file: Path):
        self.file = file
        self.version: Version | None = None
        self._forget()

    def _forget(self) -> None:
        self.offset, self.n_lines, self.end = 0, 0, b""
        self.wrong: list[int] = []
        self.problem = ""

    def look(self) -> bool:
        """Whether what was read before no longer counts: all lines come again."""
        version, before = file_version(self.file), self.version
        self.version = version
        if version == before:
            return False
        if version and before and version[2] == before[2] and version[1] > before[1]:
            is_other = not self._ends_as_before()
        else:
            is_other = True
        if is_other:
            self._forget()
        return is_other

    def _ends_as_before(self) -> bool:
        """Whether the file still has what was read last, where it was."""
        try:
            with self.file.open("rb") as file:
                file.seek(self.offset - len(self.end))
                return file.read(len(self.end)) == self.end
        except OSError:
            return False

    def lines(self) -> Iterator[Line]:
        """New lines that are rounds; a last one that is not whole comes later."""
        if self.version is None or self.version[1] == self.offset:
            return
        try:
            with self.file.open("rb") as file:
                file.seek(self.offset)
                while text := file.readline(MAX_LINE):
                    line = _parse(text)
                    if line is None and not text.endswith(b"\n"):
                        if len(text) == MAX_LINE:
                            self._note(f"line {self.n_lines + 1} is too long")
                        return  # cut by a kill, or being written
                    self._advance(text)
                    if line is not None:
                        yield line
                    elif text.strip():
                        self.refuse()
        except OSError as error:
            self._note(error.strerror or str(error))

    def _advance(self, text: bytes) -> None:
        self.offset += len(text)
        self.n_lines += bool(text.strip())
        self.end = (self.end + text)[-N_END:]

    def refuse(self) -> None:
        """Note that the line that came last is no round's."""
        self.wrong.append(self.n_lines)
        more = ", ..." if len(self.wrong) > N_LISTED else ""
        listed = ", ".join(map(str, self.wrong[:N_LISTED]))
        self._note(f"no round's: line {listed}{more}")
        del self.wrong[N_LISTED + 1 :]

    def _note(self, what: str) -> None:
        self.problem = f"{HISTORY}: {what}"


def _parse(text: bytes) -> Line | None:
    """A round's line; None if it is not one."""
    try:
        line = orjson.loads(text)
    except ValueError:
        try:
            line = json.loads(text)  # takes NaN, too, and larger numbers
        except (ValueError, RecursionError):
            return None
    round = line.get("round") if isinstance(line, dict) else None
    return line if type(round) is int and round < MAX_ROUND else None
