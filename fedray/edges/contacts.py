"""When each edge was last heard of and what it did then: a table in a file.

One row of fixed size for each edge, in a file that is mapped into memory: a check-in
costs no write, rows take memory that the system can take back, and every process of the
machine (`fedray edges list`, the group) reads the newest. The operating system writes
it out: after a power cut a row may be old.
"""

import os
from pathlib import Path

import numpy as np

from fedray import durable_files

FILE = "contacts.bin"
STEP = 1024  # rows that the file grows by
STATES = ("idle", "training", "sending")
ROW = np.dtype(
    [
        ("last_seen", "<f8"),  # Unix time; 0: never
        ("hold_until", "<f8"),  # until then its process keeps others out
        ("instance", "<u8"),  # of the process, first half
        ("previous", "<u8"),  # of the process before
        ("bytes_up", "<u8"),
        ("bytes_down", "<u8"),
        ("rate", "<f4"),  # bytes a second of its last upload
        ("share", "<f4"),
        ("round", "<i4"),  # of its last task
        ("state", "<u1"),
        ("version", "S19"),
    ],
)


class Contacts:
    """The table of one run; the door writes it.

    Parameters
    ----------
    folder : ``edges/`` of the run's folder.
    """

    def __init__(self, folder: Path):
        self.path = folder / FILE
        self.rows: np.ndarray = np.zeros(0, ROW)

    def row(self, number: int) -> np.void:
        """The row of an edge, to read and to write; made if need be.

        Raises
        ------
        OSError
            If the disk refuses.
        """
        if number >= len(self.rows):
            self._map(number + 1)
        return self.rows[number]

    def _map(self, n_rows: int) -> None:
        """Map the file, which grows to hold so many rows."""
        durable_files.make_folder(self.path.parent, 0o700)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            there = os.fstat(handle).st_size // ROW.itemsize
            n_all = max(there, -(-n_rows // STEP) * STEP)
            os.posix_fallocate(handle, 0, n_all * ROW.itemsize)  # a full disk says so
        finally:
            os.close(handle)
        self.rows = np.memmap(self.path, ROW, "r+", shape=(n_all,))

    def count_seen(self, since: float) -> int:
        """Number of edges that were heard of since then (Unix time)."""
        return int(np.count_nonzero(self.rows["last_seen"] > since))


def read_contacts(folder: Path, n_edges: int) -> np.ndarray:
    """(n_edges,) rows as they are now; zeros for edges never heard of."""
    rows = np.zeros(n_edges, ROW)
    try:
        there = np.fromfile(folder / FILE, ROW, n_edges)
    except OSError:
        return rows
    rows[: len(there)] = there
    return rows
