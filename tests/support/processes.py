"""Subprocesses of tests: started, ended with their children, looked for in /proc."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ENDING_S = 180
NOBODY = 65534
FEDRAY = [sys.executable, str(Path(__file__).with_name("fedray_command.py"))]


@contextlib.contextmanager
def ray_folder() -> Iterator[Path]:
    """A folder for Ray's sockets, whose paths must be short, and for nothing else.

    Whoever still has files of it open at the end is one of the test's own, and ended.
    """
    folder = Path(tempfile.mkdtemp(prefix="fr-", dir="/tmp"))
    try:
        yield folder
    finally:
        for pid in pids_with_files_in(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running_process(command: list[str], log: Path, **how) -> Iterator[subprocess.Popen]:
    """Run a command in a process group of its own; terminate, then kill the group."""
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, start_new_session=True, **how
        )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(ENDING_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(ENDING_S)


def pids_with_files_in(folder: Path) -> set[int]:
    """Process ids that have a file below `folder` open (Ray's change their names)."""
    found = set()
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(fd).startswith(f"{folder}/"):
                found.add(int(fd.parts[2]))
    return found - {os.getpid()}


def remaining_pids(folder: Path) -> set[int]:
    """Process ids that still have files below `folder` open after ENDING_S seconds."""
    until = time.monotonic() + ENDING_S
    while (found := pids_with_files_in(folder)) and time.monotonic() < until:
        time.sleep(0.2)
    return found


def descendants(pid: int) -> set[int]:
    """Process ids of all children, their children and so on."""
    found, todo = set(), [pid]
    while todo:
        parent = todo.pop()
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            children = {int(child) for child in task.read_text().split()}
            todo += children - found
            found |= children
    return found


def cluster_pids(pid: int) -> set[int]:
    """Process ids of what a process has started, its cluster's workers among them.

    Forked workers are no descendants of their raylet, but have files of its session.
    """
    found, sessions = descendants(pid), set()
    for child in found:
        for fd in Path(f"/proc/{child}/fd").glob("*"):
            with contextlib.suppress(OSError):
                if session := re.match(r".*/session_[^/]+(?=/)", os.readlink(fd)):
                    sessions.add(Path(session[0]))
    return found.union(*map(pids_with_files_in, sessions)) - {pid}


def living(pids: set[int]) -> dict[int, bytes]:
    """Which of them are alive; Ray's two agents, which end a minute later, aside."""
    alive = {}
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            name = Path(f"/proc/{pid}/cmdline").read_bytes()
            if name and b"EnvAgent" not in name and b"DashboardAgent" not in name:
                alive[pid] = name
    return alive


def wait_until_gone(pids: set[int]) -> dict[int, bytes]:
    """Wait until they have ended; those that live on after ENDING_S seconds."""
    until = time.monotonic() + ENDING_S
    while living(pids) and time.monotonic() < until:
        time.sleep(0.2)
    return living(pids)


def as_stranger(act) -> str:
    """What `act` returns in a process of a user without rights; an error's text."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            if not os.getuid():
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            text = str(act())
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as lines:
        text = lines.read()
    os.waitpid(pid, 0)
    return text
