"""What the protocol keeps on disk: a small interface, and a folder that does it."""

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from fedray import durable_files


class Storage(Protocol):
    """Named byte strings of one party, or one server, in one run and group.

    When a call returns, its effect is on disk and survives a crash of the machine.
    They hold secrets: readable by their owner only, never copied elsewhere.
    """

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes and threads from this storage within the block."""
        ...

    def read(self, name: str) -> bytes | None:
        """All that was written under a name; None if there is nothing."""
        ...

    def view(self, name: str) -> memoryview | None:
        """The same, without a copy in memory where that can be; it never changes."""
        ...

    def write(self, name: str, parts: Iterable[bytes | memoryview]) -> None:
        """Replace what is under a name by all parts, or not at all.

        A part may change once the next is asked for; an error of theirs is passed on.
        """
        ...

    def append(self, name: str, data: bytes) -> None:
        """Add to the end; after a crash a part of the last addition may be there."""
        ...

    def remove(self, *names: str) -> None:
        """Delete what is there under these names."""
        ...


class FolderStorage:
    """Storage in files of a folder (0700), each readable by its owner only (0600).

    Deleting is what the file system does: blocks of a disk are not overwritten.
    """

    def __init__(self, folder: Path):
        durable_files.make_folder(folder, 0o700)
        self._folder = folder

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """See `Storage.lock`."""
        path = self._folder / "lock"
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            with durable_files.name_errors(path):  # of file systems without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def read(self, name: str) -> bytes | None:
        """See `Storage.read`."""
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def view(self, name: str) -> memoryview | None:
        """See `Storage.view`."""
        try:
            with open(self._folder / name, "rb") as file:
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (FileNotFoundError, ValueError):  # ValueError: an empty file
            return None

    def write(self, name: str, parts: Iterable[bytes | memoryview]) -> None:
        """See `Storage.write`."""
        with (
            durable_files.replace_file(self._folder / name, 0o600) as temporary,
            open(temporary, "wb") as file,
        ):
            for part in parts:
                file.write(part)

    def append(self, name: str, data: bytes) -> None:
        """See `Storage.append`."""
        path = self._folder / name
        is_new = not path.exists()
        with durable_files.name_errors(path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            handle = os.open(path, flags, 0o600)
            with open(handle, "ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if is_new:
            durable_files.flush(self._folder)

    def remove(self, *names: str) -> None:
        """See `Storage.remove`."""
        n_removed = 0
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                (self._folder / name).unlink()
                n_removed += 1
        if n_removed:
            durable_files.flush(self._folder)
