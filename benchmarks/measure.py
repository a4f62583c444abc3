"""Run a command and watch it from outside: its time, memory and rounds."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from workloads import Workload

FOLDER = Path(__file__).resolve().parent
POLL_S = 0.02
SAMPLE_S = 0.2  # private memory is looked at five times a second ...
N_SAME = 5  # ... of the same processes ...
GROWN = 1.01  # ... and all of it, which takes 50 ms of a core, where there is more


def federated(
    workload: Workload, folder: Path, env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a federation as a user would, from the shell.

    Times are medians of warm rounds, as history.jsonl has them; `between_s` is the mean
    from one of its lines to the next, with what a round waits for before it starts.
    """
    folder.mkdir(parents=True)
    # a run is named by its folder, and others may run it on this cluster
    config, run_dir = folder / "config.yaml", folder / f"{workload.name}-{os.getpid()}"
    config.write_text(yaml.safe_dump(workload.config(str(FOLDER))))
    command = [sys.executable, "-m", "fedray", "run", str(config)]
    env = dict(env or os.environ, RAY_USAGE_STATS_ENABLED="0")
    paths = [str(FOLDER.parent), env.get("PYTHONPATH", "")]
    env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    history = run_dir / "history.jsonl"
    watched = run([*command, "--run-dir", str(run_dir)], folder, env, history)
    with history.open() as file:
        lines = [json.loads(line) for line in file]
    marks = [mark for mark in watched["lines"] if mark[1]]  # the file starts empty
    if not workload.evaluates and len(marks) > 2:
        marks.pop()  # the last round evaluates even where the others do not
    first, last = marks[0], marks[-1]
    start_s = first[0] - sum(line["seconds"] for line in lines[: first[1]])
    start_s -= watched["started"]
    return {
        **_rounds(lines, workload),
        "between_s": (last[0] - first[0]) / max(1, last[1] - first[1]),
        # of large models the history's first line waits for the disk
        "start_to_first_round_s": None if workload.n_parameters else start_s,
        "whole_run_s": watched["seconds"],
        **{key: watched[key] for key in ("peak_mb", "shared_mb")},
    }


def _rounds(lines: list[dict[str, Any]], workload: Workload) -> dict[str, Any]:
    warm = lines[1:] if workload.evaluates else lines[1:-1]

    def median(key: str) -> float:
        return statistics.median(line[key] for line in warm)

    return {
        "round_s": median("seconds"),
        "warm_s": [line["seconds"] for line in warm],
        "train_s": median("train_seconds"),
        "evaluate_s": median("evaluate_seconds"),
        "moved_mb": median("bytes_moved") / 1e6,
        "accuracies": [line["accuracy"] for line in lines],
        "n_warm_rounds": len(warm),
    }


def run(
    command: Sequence[str],
    folder: Path,
    env: Mapping[str, str] | None = None,
    history: Path | None = None,
) -> dict[str, Any]:
    """Run to the end; its output goes to ``folder/log``.

    Parameters
    ----------
    history : a file that gets one line a round; the clock of each is kept.

    Returns
    -------
    dict
        seconds, started (clock), peak_mb and shared_mb (its part in shared memory),
        lines: (clock, number of lines) at each change of `history`.

    Raises
    ------
    RuntimeError
        If the command fails; shows the end of its output.
    """
    log, started = folder / "log", time.time()
    lines: list[tuple[float, int]] = []
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=env, start_new_session=True
        )
        memory = Peak(process.pid)
        try:
            _watch(process, memory, history, lines)
        finally:
            _end(process)
    seconds = time.time() - started
    if process.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise RuntimeError(f"{command[:4]} ended with {process.returncode}:\n{tail}")
    return {
        "seconds": seconds,
        "started": started,
        "peak_mb": memory.total_mb,
        "shared_mb": memory.shared_mb,
        "lines": lines,
    }


def _watch(
    process: subprocess.Popen,
    memory: "Peak",
    history: Path | None,
    lines: list[tuple[float, int]],
) -> None:
    look_at, ended = 0.0, False
    while not ended:
        ended = _ended(process)
        if history is not None:
            _follow(history, lines)
        if time.monotonic() >= look_at:
            look_at = time.monotonic() + SAMPLE_S
            memory.look()


class Peak:
    """The most memory that a process and all below it have had at once.

    Pages shared by processes count once (proportional set size). Inside a Ray job the
    workers are not below the command but below the node's raylet: they count too, and
    so does whatever else runs on that node.
    """

    def __init__(self, root: int):
        self.root, self.total_mb, self.shared_mb = root, 0.0, 0.0
        self._quick = 0.0  # the highest so far of what can be seen quickly
        self._n_looks, self._known = 0, set()

    def look(self) -> None:
        """Look once; for new processes once a second, as that takes longest."""
        if self._n_looks % N_SAME == 0:
            self._known = self._pids()
        self._n_looks, pids = self._n_looks + 1, self._known
        shm = os.statvfs("/dev/shm")
        quick = (shm.f_blocks - shm.f_bfree) * shm.f_frsize / 1024
        quick += sum(sizes_of(pid, "status").get("RssAnon", 0) for pid in pids)
        if quick < GROWN * self._quick:
            return
        self._quick = quick
        found = [sizes_of(pid, "smaps_rollup") for pid in pids]
        total_mb = sum(sizes.get("Pss", 0) for sizes in found) / 1024
        if total_mb > self.total_mb:
            self.total_mb = total_mb
            self.shared_mb = sum(sizes.get("Pss_Shmem", 0) for sizes in found) / 1024

    def _pids(self) -> set[int]:
        parents = _parents()
        below = defaultdict(list)
        for pid, parent in parents.items():
            below[parent].append(pid)
        open_pids, found = [self.root, *_raylets_above(parents)], set()
        while open_pids:
            pid = open_pids.pop()
            if pid not in found and pid != os.getpid():
                found.add(pid)
                open_pids += below[pid]
        return found


def _ended(process: subprocess.Popen) -> bool:
    try:
        process.wait(POLL_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(process: subprocess.Popen) -> None:
    """Take what a stopped benchmark would leave behind; nothing if it ended itself."""
    if process.poll() is not None:
        return
    for how, wait_s in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
        os.killpg(process.pid, how)
        try:
            process.wait(wait_s)
            return
        except subprocess.TimeoutExpired:
            continue


def _follow(history: Path, lines: list[tuple[float, int]]) -> None:
    try:
        changed = history.stat().st_mtime
    except FileNotFoundError:
        return
    if not lines or changed > lines[-1][0]:
        lines.append((changed, history.read_bytes().count(b"\n")))


def _parents() -> dict[int, int]:
    """Parent of every process."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            # the name is in brackets and may hold anything
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    return parents


def _raylets_above(parents: Mapping[int, int]) -> list[int]:
    found, pid = [], os.getpid()
    while pid := parents.get(pid, 0):
        try:
            if Path(f"/proc/{pid}/comm").read_text().strip() == "raylet":
                found.append(pid)
        except FileNotFoundError:
            return found
    return found


def sizes_of(pid: int, file: str) -> dict[str, int]:
    """Sizes in kB by name; empty if the process has gone."""
    sizes = {}
    try:
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            key, _, rest = line.partition(":")
            if rest.endswith(" kB"):
                sizes[key] = int(rest.split()[0])
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        pass
    return sizes
