"""Memory of a service's processes: limited by a cgroup where one can be made.

Elsewhere nothing limits it, and it is read from /proc.
"""

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import cluster_pids
from support.waiting import wait_for

CGROUPS = Path("/sys/fs/cgroup/memory")  # version 1
UNLIMITED = str(1 << 60)
SAMPLE_S = {True: 0.2, False: 2.0}  # whether there is a group; /proc costs more


def pss(pids: set[int]) -> int:
    """Bytes of memory that processes take; pages that several share count once."""
    n_kib = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    n_kib += int(line.split()[1])
    return n_kib << 10


class MemoryGroup:
    """The processes of one service, from its first one on."""

    def __init__(self):
        self.folder: Path | None = CGROUPS / f"fedray-{secrets.token_hex(4)}"
        self.first = 0  # process
        try:
            self.folder.mkdir()
        except OSError:
            self.folder = None

    def enter(self) -> None:
        """Put this process into it, and with it all that it will start."""
        if self.folder:
            (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def pids(self) -> set[int]:
        """Ids of its processes."""
        if self.folder is None:
            return cluster_pids(self.first) | {self.first}
        return {int(pid) for pid in (self.folder / "cgroup.procs").read_text().split()}

    def pss(self) -> int:
        """Bytes that its processes take now."""
        return pss(self.pids())

    def used(self) -> int:
        """Bytes that its processes take now, without what is shared or in files."""
        if self.folder is None:
            return self.pss()
        return self._stat()["total_rss"]

    def limit(self, n_bytes: int | None) -> None:
        """Let the kernel end one of its processes if they take more."""
        if self.folder:
            text = UNLIMITED if n_bytes is None else str(n_bytes)
            (self.folder / "memory.limit_in_bytes").write_text(text)

    def peak(self) -> int:
        """The most bytes that it has taken, files in memory included; 0: unknown."""
        if self.folder is None:
            return 0
        return int((self.folder / "memory.max_usage_in_bytes").read_text())

    def n_killed(self) -> int:
        """How many of its processes the kernel has ended for want of memory."""
        if self.folder is None:
            return 0
        lines = (self.folder / "memory.oom_control").read_text().splitlines()
        return int(dict(line.split() for line in lines).get("oom_kill", 0))

    def remove(self) -> None:
        """Remove the group, whose processes have ended."""
        if self.folder:
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def _stat(self) -> dict[str, int]:
        text = (self.folder / "memory.stat").read_text()
        return {name: int(n) for name, n in map(str.split, text.splitlines())}


def largest(pids: set[int]) -> str:
    """The five processes that take most memory, for messages."""
    lines = []
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            status = Path(f"/proc/{pid}/status").read_text()
            n_kib = int(status.partition("RssAnon:")[2].split()[0])
            title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
            lines.append((n_kib >> 10, title.decode()[-40:].strip()))
    return ", ".join(f"{title}: {n} MB" for n, title in sorted(lines)[:-6:-1])


class Peak:
    """The most memory that a group took while this was entered."""

    def __init__(self, group: MemoryGroup):
        self.group, self.has_ended = group, threading.Event()
        self.most, self.largest = 0, ""
        self.thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "Peak":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.has_ended.set()
        self.thread.join()

    def _sample(self) -> None:
        while not self.has_ended.is_set():
            if (used := self.group.used()) > self.most:
                self.most, self.largest = used, largest(self.group.pids())
            time.sleep(SAMPLE_S[self.group.folder is not None])


@contextlib.contextmanager
def small_cgroup(n_bytes: int) -> Iterator[Path]:
    """A memory cgroup whose processes the kernel kills where they take more."""
    root = Path("/sys/fs/cgroup")
    parent, limit = root / "memory", "memory.limit_in_bytes"
    if not parent.is_dir():
        parent, limit = root, "memory.max"
    group = parent / f"fedray-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no memory cgroup can be made here")
    try:
        if not (group / limit).exists():
            pytest.skip("a folder made here is no memory cgroup")
        (group / limit).write_text(str(n_bytes))
        yield group
        wait_for(lambda: not (group / "cgroup.procs").read_text())
    finally:
        group.rmdir()
