"""Files of updates on their way in: resumed where they broke off, never in memory.

The size of a file is the offset of its next byte. What a killed door has written stays:
the SHA-256 of the commit tells whether it is right.
"""

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fedray import durable_files
from fedray.edge_door.refusals import belongs_at
from fedray.edges.protocol import UPLOADS, Task
from fedray.errors import CallRefused

PIECE = 1 << 20  # bytes that are written, and hashed, at once
READ = 4 << 20  # bytes of a file that a killed door has left, hashed at once


class Upload:
    """The file of one task, of which a part is there."""

    def __init__(self, path: Path):
        self.path = path
        self.lock = asyncio.Lock()
        self.turn = 0  # of the call that may write; a newer one replaces an older
        self.n_bytes, self.hash = _hash_of(path)

    async def receive(self, offset: int, chunks: AsyncIterator[bytes]) -> float:
        """Write the chunks of one call at `offset`; bytes a second.

        What has arrived of a call that breaks off stays.

        Raises
        ------
        CallRefused
            409 if the next byte belongs elsewhere, or a newer call took over; those of
            `chunks`.
        """
        self.turn += 1
        turn, started = self.turn, time.monotonic()
        async with self.lock:
            if offset != self.n_bytes:
                detail = f"The next byte belongs at {self.n_bytes}, not at {offset}."
                raise belongs_at(self.n_bytes, detail)
        piece = bytearray()
        try:
            async for chunk in chunks:
                piece += chunk
                if len(piece) >= PIECE:
                    await self._write(piece, turn)
        finally:
            if piece and self.turn == turn:
                await self._write(piece, turn)
        if self.turn != turn:
            raise self._belongs_to_newer()
        return (self.n_bytes - offset) / max(time.monotonic() - started, 1e-6)

    def _belongs_to_newer(self) -> CallRefused:
        return belongs_at(self.n_bytes, "A newer call sends this file.")

    async def _write(self, piece: bytearray, turn: int) -> None:
        async with self.lock:
            if self.turn != turn:
                raise self._belongs_to_newer()
            data = bytes(piece)
            piece.clear()
            try:
                await asyncio.to_thread(self._append, data)
            except FileNotFoundError:
                self.restart()
                detail = "What had arrived of this file is not here any more."
                raise belongs_at(0, detail) from None

    def _append(self, data: bytes) -> None:
        with durable_files.name_errors(self.path):
            is_new = self.n_bytes == 0
            flags = os.O_WRONLY | (os.O_CREAT if is_new else 0)
            handle = os.open(self.path, flags, 0o600)
            try:
                view = memoryview(data)
                while view:
                    n_bytes = os.pwrite(handle, view, self.n_bytes)
                    self.hash.update(view[:n_bytes])
                    self.n_bytes += n_bytes
                    view = view[n_bytes:]
            finally:
                os.close(handle)

    def is_on_disk(self) -> bool:
        """Whether what has arrived is still there: a group may have taken it."""
        try:
            return self.path.stat().st_size == self.n_bytes
        except OSError:
            return self.n_bytes == 0

    def restart(self) -> None:
        """Begin the file anew: what has arrived is not what the edge has sent."""
        self.turn += 1
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self.n_bytes, self.hash = _hash_of(self.path)


class Uploads:
    """Files on their way in, of one run."""

    def __init__(self, spool: Path):
        self.folder = spool / UPLOADS
        self._by_task: dict[str, Upload] = {}
        self._opening = asyncio.Lock()

    async def open(self, task: Task) -> Upload:
        """The file of a task, of which nothing need be there yet."""
        if task.id not in self._by_task:
            async with self._opening:
                if task.id not in self._by_task:
                    upload = await asyncio.to_thread(self._open, task.id)
                    self._by_task[task.id] = upload
        return self._by_task[task.id]

    def _open(self, task_id: str) -> Upload:
        durable_files.make_folder(self.folder, 0o700)
        return Upload(self._path(task_id))

    def _path(self, task_id: str) -> Path:
        return self.folder / f"{task_id}.part"

    def delete(self, task_id: str) -> None:
        """Delete what has arrived of a task."""
        if upload := self._by_task.pop(task_id, None):
            upload.turn += 1
        with contextlib.suppress(OSError):
            self._path(task_id).unlink()


def read_offset(text: str) -> int:
    """The offset that a call says its bytes belong at.

    Raises
    ------
    CallRefused
        400 if it is no number.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        detail = "Upload-Offset is missing or no number."
        raise CallRefused(400, detail, "Say at which byte the body begins.")
    return int(text)


def _hash_of(path: Path) -> tuple[int, Any]:
    """Size and SHA-256, to be continued, of a file that need not be there."""
    hashed, n_bytes = hashlib.sha256(), 0
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        while piece := file.read(READ):
            hashed.update(piece)
            n_bytes += len(piece)
    return n_bytes, hashed
