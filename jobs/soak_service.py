"""Memory of the REST service while many federations come and go.

``python jobs/soak_service.py [N]``: a service of its own; N (50) federations are
started, trained and stopped one after another. Prints the memory (proportional set
size) and the number of all processes of the service after each ten, and the slope.
"""

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import requests
import torch

EVERY = 10  # federations between two lines
SETTLE_S = 4.0  # actors that were ended have left by then
FORM = {"num_parties": 2, "rounds": 2, "epochs": 1, "optimizer": "optim.SGD"}


def main(n_federations: int = 50) -> None:
    """Start a service, keep it busy, and print how large it is."""
    torch.save(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)),
               model := io.BytesIO())  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as root:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedray", "serve", "--port", str(port),
             "--root", root], stderr=subprocess.DEVNULL,
        )  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        try:
            _wait(url)
            _soak(url, model.getvalue(), n_federations, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _soak(url: str, model: bytes, n_federations: int, pid: int) -> None:
    sizes = []
    print("federations   processes   all MB   replica MB   proxy MB   s each")
    began = time.monotonic()
    for i in range(n_federations + 1):
        if i % EVERY == 0:
            each = (time.monotonic() - began) / max(1, EVERY)
            time.sleep(SETTLE_S)
            found = _processes(pid)
            total = sum(size for _, size in found)
            own = [_sum(found, name) for name in ("ServeReplica", "ProxyActor")]
            if i:  # the first ones warm up
                sizes.append((i, total))
            print(f"{i:11}   {len(found):9}   {total:6.0f}   {own[0]:10.0f}"
                  f"   {own[1]:8.0f}   {each:6.1f}", flush=True)  # fmt: skip
            began = time.monotonic()
        if i < n_federations:
            _federation(url, model)
    if len(sizes) > 1:
        slope = np.polyfit(*zip(*sizes, strict=True), 1)[0]
        print(f"slope after the first {EVERY}: {slope * 1000:.0f} kB a federation")


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


def _processes(pid: int) -> list[tuple[str, float]]:
    """Name and megabytes of every process below, this one too."""
    found, todo = [], [pid]
    while todo:
        pid = todo.pop()
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            size = next(int(line.split()[1]) for line in lines if line[:4] == "Pss:")
            name = Path(f"/proc/{pid}/cmdline").read_bytes()[:300].decode()
            found.append((name, size / 1000))
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                todo += map(int, task.read_text().split())
    return found


def _sum(found: list[tuple[str, float]], name: str) -> float:
    return sum(size for process, size in found if name in process)


def _wait(url: str) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"{url}/health").status_code == 200:
                return
        time.sleep(0.2)
    raise SystemExit("the service does not start")


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main(*map(int, sys.argv[1:2]))
