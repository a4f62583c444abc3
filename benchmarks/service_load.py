"""The REST service under the load of many clients: errors, waits, memory.

``python benchmarks/service_load.py [FEDERATIONS [CLIENTS [TRAININGS]]]``: a service of
its own and 50 clients, each with a key, which create 200 federations, train them (two
parties, one tiny round; 16 trainings at once, more wait) and stop them. Prints seconds
of each call, the answers that were none of 200, and the memory (PSS without files) of
all processes of the service and its cluster after half of the federations and after
all. Ends with 1 if an answer was an error but 429 with Retry-After, if fewer trainings
ran at once, or if memory grew by 50 MB in the second half.
"""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import requests
import torch
from service_process import running_service

MOST_GROWTH_MB = 50
SETTLE_S, PATIENCE_S = 5.0, 300.0
FORM = {"num_parties": 2, "rounds": 1, "epochs": 1, "optimizer": "optim.SGD"}


@dataclass
class Load:
    """What the clients have met: seconds of calls, and answers that were none of 200.

    root : the service's folder.
    """

    url: str
    root: Path
    model: bytes
    data: bytes
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    refusals: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    n_at_once: int = 0  # the most trainings that were seen

    def play(self, keys: dict[str, str]) -> None:
        """Create a federation as one client, train it, stop it."""
        form = {"data_handler_class_name": "mnist_pytorch"}
        made = self.call(keys, "/start-aggregator", FORM, {"model_file": self.model})
        one = {"aggregator_id": made.get("aggregator_id", "")}
        for _ in range(2):
            self.call(keys, "/start-party", one | form, {"data": self.data})
        self.call(keys, "/train", one)
        self.call(keys, "/stop", one)

    def call(
        self,
        keys: dict[str, str],
        path: str,
        form: dict[str, Any],
        files: dict[str, bytes] | None = None,
    ) -> dict[str, Any]:
        """The answer to a call, made again for as long as a limit refuses it."""
        parts = {name: (name, content) for name, content in (files or {}).items()}
        began = time.monotonic()
        while True:
            answer = requests.post(
                self.url + path, data=form, files=parts, headers=keys, timeout=3600
            )
            retry_after = answer.headers.get("retry-after")
            if answer.status_code != 429 or retry_after is None:
                break
            self.refusals[answer.json().get("limit", "")] += 1
            time.sleep(float(retry_after))
        self.seconds[path].append(time.monotonic() - began)
        if answer.status_code != 200:
            self.errors.append(f"{path} {answer.status_code} {answer.text[:200]}")
            return {}
        return answer.json()

    def watch(self, ended: threading.Event) -> None:
        """Count the trainings that run at once, from the service's own files."""
        while not ended.wait(0.2):
            n_training = 0
            for file in self.root.glob("*/federation.json"):
                with contextlib.suppress(OSError, ValueError):
                    n_training += json.loads(file.read_text())["state"] == "training"
            self.n_at_once = max(self.n_at_once, n_training)


def main(n_federations: int = 200, n_clients: int = 50, n_trainings: int = 16) -> None:
    """Load a service and print how it bore it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = [_add_key(folder / "keys", i) for i in range(n_clients)]
        with _service(folder, n_trainings) as (url, pid):
            load = Load(url, folder / "root", *_files())
            n_halves = n_federations // 2, n_federations - n_federations // 2
            memory, processes = [], []
            for n in n_halves:
                memory.append(_play(load, keys, n, pid))
                processes.append(", ".join(_processes(pid)))
    for path, seconds in load.seconds.items():
        median, longest = np.median(seconds), max(seconds)
        print(f"{path:20} {len(seconds):5} calls  median {median:7.2f} s"
              f"  longest {longest:7.2f} s")  # fmt: skip
    print(f"answers 429 with Retry-After, by limit: {dict(load.refusals)}")
    print(f"other errors: {len(load.errors)} {load.errors[:3]}")
    print(f"trainings at once: {load.n_at_once}, of {n_trainings} allowed")
    n_half = n_federations // 2
    print(f"memory (PSS): {memory[0]:.0f} MB after {n_half} federations, "
          f"{memory[1]:.0f} MB after {n_federations}")  # fmt: skip
    print("processes then:", *processes, sep="\n")
    is_short = load.n_at_once < min(n_trainings, n_clients)
    if load.errors or is_short or memory[1] - memory[0] > MOST_GROWTH_MB:
        raise SystemExit(1)


def _play(
    load: Load, keys: list[dict[str, str]], n_federations: int, pid: int
) -> float:
    """Megabytes of the service once its clients have stopped so many federations."""
    ended = threading.Event()
    with ThreadPoolExecutor(len(keys) + 1) as threads:
        threads.submit(load.watch, ended)
        plays = [
            threads.submit(load.play, keys[i % len(keys)]) for i in range(n_federations)
        ]
        for play in plays:
            play.result()
        ended.set()
    return _settled_megabytes(pid)


def _settled_megabytes(pid: int) -> float:
    """Memory once it has stopped falling: processes end, and are started ahead."""
    least, until = float("inf"), time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        time.sleep(SETTLE_S)
        now = _megabytes(pid)
        if now > least - 1:
            return min(now, least)
        least = now
    return least


def _megabytes(pid: int) -> float:
    """PSS of all processes of a service."""
    return sum(map(_pss, _pids(pid))) / 1000


def _pids(pid: int) -> set[int]:
    """A process, its descendants, and what has files of its Ray session."""
    pids, todo = {pid}, [pid]
    while todo:
        for task in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                children = set(map(int, task.read_text().split())) - pids
                pids |= children
                todo += children
    sessions = {session for one in pids for session in _sessions(one)}
    everyone = (int(entry.name) for entry in Path("/proc").glob("[0-9]*"))
    pids |= {one for one in everyone if sessions & _sessions(one)}
    return pids


def _processes(pid: int) -> list[str]:
    """What they are, how many and how large."""
    kinds: dict[str, list[int]] = defaultdict(list)
    for one in _pids(pid):
        with contextlib.suppress(OSError):
            title = Path(f"/proc/{one}/cmdline").read_bytes().rstrip(b"\0 ")
            kinds[title.decode().replace("\0", " ")[-40:]].append(_pss(one))
    parts = sorted(kinds.items(), key=lambda kind: -sum(kind[1]))
    return [f"{len(n)} x {title} {sum(n) / 1000:.0f} MB" for title, n in parts]


def _sessions(pid: int) -> set[str]:
    """Folders of the Ray sessions that a process has files of."""
    found = set()
    with contextlib.suppress(OSError):
        for fd in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if session := re.match(r".*/session_[^/]+(?=/)", os.readlink(fd.path)):
                    found.add(session[0])
    return found


def _pss(pid: int) -> int:
    """Kilobytes of a process, its share of what it shares; 0 if it is gone.

    Without mapped files: of a library its share falls as others on the machine use it.
    """
    with contextlib.suppress(OSError, IndexError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        parts = [text.partition(f"\nPss_{kind}:")[2] for kind in ("Anon", "Shmem")]
        return sum(int(part.split()[0]) for part in parts)
    return 0


def _files() -> tuple[bytes, bytes]:
    """A small model and a party's data."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    torch.save(net, model := io.BytesIO())
    rng = np.random.default_rng(0)
    x, y = rng.random((60, 784), np.float32), rng.integers(0, 10, 60)
    data = io.BytesIO()
    np.savez(data, x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    return model.getvalue(), data.getvalue()


def _add_key(file: Path, i: int) -> dict[str, str]:
    """Headers of a new client."""
    command = [sys.executable, "-m", "fedray", "keys", "--json", "add", str(file)]
    made = subprocess.run([*command, f"client-{i}"], capture_output=True, check=True)
    values = json.loads(made.stdout)
    return {"X-IBM-Client-Id": values["client"],
            "X-IBM-Client-Secret": values["secret"]}  # fmt: skip


@contextlib.contextmanager
def _service(folder: Path, n_trainings: int) -> Iterator[tuple[str, int]]:
    """A service with these keys: its address and process."""
    options = ["--api-keys", str(folder / "keys"), "--max-trainings", str(n_trainings)]
    with (
        (folder / "log").open("w") as log,
        running_service(folder / "root", *options, log=log.fileno()) as service,
    ):
        yield service


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main(*map(int, sys.argv[1:4]))
