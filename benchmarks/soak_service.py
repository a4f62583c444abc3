"""Memory of the REST service while many federations come and go.

``python benchmarks/soak_service.py [N]``: a service of its own; N (50) federations are
started, trained and stopped one after another. Prints the private memory and the number
of all processes of the service after each five, the slope of every process that lived
through it all, and theirs together: private, since what is shared is counted otherwise
whenever another program starts or ends.
"""

import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import requests
import torch
from service_process import running_service

EVERY = 5  # federations between two lines
SETTLE_S = 4.0  # actors that were ended have left by then
FORM = {"num_parties": 2, "rounds": 2, "epochs": 1, "optimizer": "optim.SGD"}


def main(n_federations: int = 50) -> None:
    """Start a service, keep it busy, and print how large it is."""
    torch.save(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)),
               model := io.BytesIO())  # fmt: skip
    with (
        tempfile.TemporaryDirectory() as root,
        running_service(Path(root)) as (url, pid),
    ):
        _soak(url, model.getvalue(), n_federations, pid)


def _soak(url: str, model: bytes, n_federations: int, pid: int) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    print("federations   processes   all MB   server MB   s each")
    began = time.monotonic()
    for i in range(n_federations + 1):
        if i % EVERY == 0:
            each = (time.monotonic() - began) / max(1, EVERY)
            time.sleep(SETTLE_S)
            found = _processes(pid)
            server = _sum(found, "HttpServer")
            if i:  # the first ones warm up
                seen.append((i, found))
            print(f"{i:11}   {len(found):9}   {sum(found.values()):6.0f}"
                  f"   {server:9.0f}   {each:6.1f}",
                  flush=True)  # fmt: skip
            began = time.monotonic()
        if i < n_federations:
            _federation(url, model)
    if len(seen) > 1:
        _slopes(seen)


def _slopes(seen: list[tuple[int, dict[str, float]]]) -> None:
    """Kilobytes a federation, from the first sample on and in the second half."""
    print(f"kB a federation since the first {EVERY}, in the second half, process")
    stayed = set.intersection(*(set(found) for _, found in seen))
    rows = [(_slope(seen, [name]), _slope(seen[len(seen) // 2 :], [name]), name)
            for name in stayed]  # fmt: skip
    rows.append((_slope(seen, stayed), _slope(seen[len(seen) // 2 :], stayed), "all"))
    for whole, half, name in sorted(rows, reverse=True):
        print(f"{whole * 1000:8.0f} {half * 1000:8.0f}   {name[:70]}")


def _slope(seen: list[tuple[int, dict[str, float]]], names: Iterable[str]) -> float:
    at = [i for i, _ in seen]
    sizes = [sum(found[name] for name in names) for _, found in seen]
    return np.polyfit(at, sizes, 1)[0] if len(at) > 1 else 0.0


def _federation(url: str, model: bytes) -> None:
    files = {"model_file": ("m.pt", model)}
    made = requests.post(f"{url}/start-aggregator", data=FORM, files=files).json()
    id = made["aggregator_id"]
    rng = np.random.default_rng(0)
    for _ in range(2):
        x, y = rng.random((60, 784), np.float32), rng.integers(0, 10, 60)
        file = io.BytesIO()
        np.savez(file, x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
        form = {"aggregator_id": id, "data_handler_class_name": "mnist_pytorch"}
        data = {"data": ("d.npz", file.getvalue())}
        joined = requests.post(f"{url}/start-party", data=form, files=data)
        assert joined.status_code == 200, joined.text
    for path in ("/train", "/stop"):
        answer = requests.post(url + path, json={"aggregator_id": id})
        assert answer.status_code == 200, answer.text


def _processes(pid: int) -> dict[str, float]:
    """Private megabytes of every process below, this one too, by number and name."""
    found, todo = {}, [pid]
    while todo:
        pid = todo.pop()
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            size = next(int(n.split()[1]) for n in lines if n.startswith("Private_D"))
            words = Path(f"/proc/{pid}/cmdline").read_bytes()[:3000].split(b"\0")
            named = [w for w in words if not w.startswith(b"-")]
            name = " ".join(w.decode().rpartition("/")[2] for w in named[:2])
            found[f"{pid} {name}"] = size / 1000
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                todo += map(int, task.read_text().split())
    return found


def _sum(found: dict[str, float], name: str) -> float:
    return sum(size for process, size in found.items() if name in process)


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main(*map(int, sys.argv[1:2]))
