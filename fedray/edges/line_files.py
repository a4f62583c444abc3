"""Files of lines that are only appended to, and that other processes follow.

A line counts once its end is there: a crash may leave half of one, which the next write
cuts off.
"""

import contextlib
import mmap
import os
import re
from pathlib import Path

from fedray import durable_files

HEX = re.compile(rb"[0-9a-f]{64}")  # a SHA-256, or a key


class Tail:
    """Complete lines that were added to a file since the last look."""

    def __init__(self, path: Path):
        self.path, self.offset, self.inode = path, 0, 0

    def was_replaced(self) -> bool:
        """Whether it is another file than before, or shorter: a copy put back."""
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return self.inode != 0
        return self.inode not in (0, stat.st_ino) or stat.st_size < self.offset

    def new_lines(self) -> list[bytes]:
        """The lines; one that is being written comes next time."""
        try:
            stat = self.path.stat()
            if stat.st_size == self.offset:
                return []
            self.inode = stat.st_ino
            lines, self.offset = durable_files.read_new_lines(self.path, self.offset)
        except FileNotFoundError:
            return []
        return lines


def append(path: Path, data: bytes) -> None:
    """Append to a file, flushed; half a line that a crash has left is cut off."""
    is_new = not path.exists()
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        end = os.lseek(handle, 0, os.SEEK_END)
        start = _complete_size(handle, end)
        try:
            os.ftruncate(handle, start)
            _write_all(handle, data, start)
            os.fsync(handle)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, start)
            raise
    finally:
        os.close(handle)
    if is_new:
        durable_files.flush(path.parent)


def _write_all(handle: int, data: bytes, start: int) -> None:
    view = memoryview(data)
    while view:
        n_bytes = os.pwrite(handle, view, start)
        view, start = view[n_bytes:], start + n_bytes


def _complete_size(handle: int, end: int) -> int:
    """Bytes up to and with the last end of a line."""
    step = 64 << 10
    while end:
        begin = max(0, end - step)
        at = os.pread(handle, end - begin, begin).rfind(b"\n")
        if at >= 0:
            return begin + at + 1
        end = begin
    return 0


def erase(path: Path, pattern: bytes) -> None:
    """Overwrite the SHA-256 texts in all matches by zeros, flushed; no line moves."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        matches = [one.span() for one in re.finditer(pattern, view, re.MULTILINE)]
        for start, end in matches:
            view[start:end] = HEX.sub(b"0" * 64, view[start:end])
        view.flush()
