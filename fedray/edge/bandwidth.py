"""Limits how fast bytes leave and come: --max-bandwidth."""

import threading
import time
from collections.abc import Callable

PIECE = 64 << 10  # bytes that are read or written at a time


class Bandwidth:
    """Makes its callers wait so that all together stay below a rate.

    Parameters
    ----------
    bytes_per_s : None: no limit.
    """

    def __init__(
        self,
        bytes_per_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ):
        self.bytes_per_s, self.clock, self.sleep = bytes_per_s, clock, sleep
        self._lock = threading.Lock()
        self._free_at = clock()

    @property
    def piece(self) -> int:
        """Bytes to move at a time: at most a fifth of a second's."""
        if self.bytes_per_s is None:
            return PIECE
        return max(1, min(PIECE, int(self.bytes_per_s / 5)))

    def take(self, n_bytes: int) -> None:
        """Wait until so many bytes may be moved."""
        if self.bytes_per_s is None or n_bytes <= 0:
            return
        with self._lock:
            now = self.clock()
            start = max(now, self._free_at)
            self._free_at = start + n_bytes / self.bytes_per_s
        if start > now:
            self.sleep(start - now)


class LimitedBody:
    """A body that is read piece by piece, as an HTTP client sends a file."""

    def __init__(self, body: bytes, bandwidth: Bandwidth):
        self.body, self.bandwidth, self.offset = memoryview(body), bandwidth, 0

    def __len__(self) -> int:
        return len(self.body)

    def __iter__(self) -> "LimitedBody":  # requests takes it for a stream then
        return self

    def __next__(self) -> bytes:
        if piece := self.read(self.bandwidth.piece):
            return piece
        raise StopIteration

    def read(self, n_bytes: int = -1) -> bytes:
        """The next bytes, once they may leave."""
        most = self.bandwidth.piece
        n_bytes = most if n_bytes < 0 else min(n_bytes, most)
        piece = bytes(self.body[self.offset : self.offset + n_bytes])
        self.offset += len(piece)
        self.bandwidth.take(len(piece))
        return piece
