"""Fault injection: gates at stages of a round, process ids of actors, kill and pause.

A cell stops a run at a stage of its round 2 by a gate (gates/sitecustomize.py), does
something to a victim, opens the gate, and looks at what the run came to.
"""

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

from support.waiting import wait_for

from fedray.checkpoint import RunFolder
from fedray.privacy.ledger import RUN_LEDGER, Ledger


class Gates:
    """The folder that the gates of a cluster's processes look at."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()

    def arm(self, stage: str, who: str) -> None:
        """Let the first process of that name (a pattern) wait at that stage."""
        (self.folder / f"{stage}.armed").write_text(who)

    def held(self, stage: str) -> int:
        """The process that waits there."""
        file = self.folder / f"{stage}.held"
        wait_for(file.exists, f"nobody came to {stage}")
        return int(file.read_text())

    def open(self) -> None:
        """Let everyone go on."""
        for file in [*self.folder.glob("*.held"), *self.folder.glob("*.armed")]:
            file.unlink()

    def pid(self, name: str) -> int:
        """The process that is this actor now."""
        lines = (self.folder / "pids" / name).read_text().splitlines()
        return int(lines[-1].split()[0])

    def alive(self, kinds: tuple[str, ...] = ("party", "aggregator")) -> list[str]:
        """Actors of these kinds whose process, of then and of no other, is there."""
        found = []
        for file in (self.folder / "pids").glob("*"):
            for line in file.read_text().splitlines():
                pid, started = line.split()
                with contextlib.suppress(OSError):
                    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
                    is_it = stat.split()[19] == started and stat.split()[0] != "Z"
                    if is_it and file.name.split(":")[0] in kinds:
                        found.append(f"{file.name} {pid}")
        return found

    def gone(self) -> list[str]:
        """Actors of a run that are still there after a while; none if all is well."""
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: not self.alive(), "actors", 180)
        return self.alive()


def kill(pid: int) -> None:
    """SIGKILL, for real."""
    os.kill(pid, signal.SIGKILL)


def pause(pid: int, seconds: float = 10.0) -> None:
    """Let a process stand still."""
    with contextlib.suppress(ProcessLookupError):  # of a run that is over
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)


def look(run_dir: Path) -> dict[str, Any]:
    """What a finished run left in its folder."""
    folder = RunFolder(run_dir)
    history, (newest, wrong) = folder.history(), folder.newest_checkpoint()
    return {
        "rounds": [line.round for line in history],
        "kept": newest.round if newest else 0,
        "fused": [line.fused for line in history],
        "missing": sorted(
            f"{line.round}: {p.name}: {p.outcome}"
            for line in history
            for p in line.parties
            if p.outcome not in ("fused", None)  # or hidden
        ),
        "damaged": wrong,
        "half": sorted(str(p.relative_to(run_dir)) for p in run_dir.rglob("*.part")),
        "released": [line["round"] for line in Ledger(run_dir / RUN_LEDGER).releases],
    }
