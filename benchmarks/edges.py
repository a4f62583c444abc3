"""Edges by the thousand on one machine: rounds, check-ins, memory, uploads.

``python benchmarks/edges.py [--enrolled 2000] [--chosen 50] [--rounds 3]
[--parameters 1000000] [--senders 4]``: the edges' door and a federation of simulated
edges (real HTTPS, no training), all on this machine. Prints check-ins a second, rounds
a minute, the time that 99 % of check-ins did not exceed, memory of door and EdgeGroup
for each enrolled edge, and bytes a second of large updates beside what one process
reads from sockets into files in the same run.

As published: ``--enrolled 100000 --chosen 1000 --parameters 25000000 --senders 100``.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import yaml
from edge_fleet import Fleet, Wire
from support.certificates import Certificates, make_certificates
from support.edge_scene import GROUPS, actor_pid, free_port
from support.memory_group import pss
from support.simulated_edge import (
    INFO,
    REPORT,
    SimulatedEdge,
    metadata_of,
    with_metadata,
)
from support.waiting import wait_for

from fedray.checkpoint import RunFolder
from fedray.edges.registry import Registry

N_SMALL = 100  # edges of the federation that memory is compared with
CHUNK = 8 << 20
NET = """
    from torch import nn

    def net():
        return nn.Sequential(nn.Flatten(), nn.Linear(16, {n}), nn.Linear({n}, 10))
"""


class Door:
    """A cluster, `fedray serve` with the edges' door, and runs beside it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.certificates: Certificates = make_certificates(folder)
        self.port = free_port()
        x = np.zeros((20, 16), np.float32)
        y = np.arange(20, dtype=np.int64) % 10
        np.savez(folder / "test.npz", x_train=x, y_train=y, x_test=x, y_test=y)

    @contextlib.contextmanager
    def open(self) -> Iterator["Door"]:
        """As long as a block lasts."""
        context = ray.init(address="local", namespace="fedray", log_to_driver=False)
        os.environ["RAY_ADDRESS"] = context.address_info["gcs_address"]
        certificates = self.certificates
        command = [sys.executable, "-m", "fedray", "serve", "--port", "0"]
        command += ["--root", str(self.folder / "root"), "--edge-host", "127.0.0.1"]
        command += ["--edge-port", str(self.port)]
        command += ["--tls-cert", str(certificates.cert)]
        command += ["--tls-key", str(certificates.key)]
        with (self.folder / "serve").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(lambda: _listens(self.port), "the door")
            yield self
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(120)
            ray.shutdown()

    def memory(self) -> int:
        """Bytes of door and group."""
        return pss({actor_pid("edge-door"), actor_pid(GROUPS)})

    @contextlib.contextmanager
    def run(self, name: str, width: int, **settings: Any) -> Iterator[Path]:
        """A federation of edges; its folder. It is stopped at the end."""
        net = self.folder / f"{name}.py"
        net.write_text(textwrap.dedent(NET.format(n=width)))
        config = {
            "architecture": f"{net}:net", "data_handler": "mnist_pytorch",
            "learning_rate": 0.1, "test_data": str(self.folder / "test.npz"),
            "rounds": 100_000, "checkpoint_every": 1000,
        } | settings  # fmt: skip
        path, folder = self.folder / f"{name}.yaml", self.folder / name
        path.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "fedray", "run", str(path)]
        with (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                [*command, "--run-dir", str(folder)], stdout=log, stderr=log
            )
        try:
            wait_for((folder / "inputs.json").exists, "the run")
            yield folder
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)


def _listens(port: int) -> bool:
    import socket

    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


class Work:
    """What an edge does with a task: it fetches the weights once for all edges."""

    def __init__(self, fleet: Fleet):
        self.fleet, self.objects = fleet, {}
        self.n_bytes: dict[int, int] = {}  # by round
        self.times: dict[int, list[float]] = {}  # first and last byte, by round

    async def do(self, wire: Wire, edge: SimulatedEdge, task: dict[str, Any]) -> None:
        """Send what the task asks for."""
        content, answer = b"", INFO
        if task["kind"] == "train":
            base = await self._fetch(wire, edge, task["base"])
            content, answer = with_metadata(base, metadata_of(task)), REPORT
            await self._send(wire, edge, task, content)
        call = edge.commit(task["id"], content, answer)
        await self.fleet.call(wire, "commit", call)

    async def _send(self, wire, edge, task: dict[str, Any], content: bytes) -> None:
        number = task["round"]
        times = self.times.setdefault(number, [time.perf_counter(), 0.0])
        offset = 0
        while offset < len(content):
            call = edge.upload(task["id"], offset, content[offset : offset + CHUNK])
            answer = await self.fleet.call(wire, "upload", call)
            if "upload-offset" not in answer.headers:
                return  # the task is not open any more
            offset = int(answer.headers["upload-offset"])
        self.n_bytes[number] = self.n_bytes.get(number, 0) + len(content)
        times[1] = time.perf_counter()

    async def _fetch(self, wire: Wire, edge: SimulatedEdge, sha: str) -> bytes:
        if sha not in self.objects:
            got = await self.fleet.call(wire, "download", edge.download(sha))
            assert hashlib.sha256(got.body).hexdigest() == sha, got.status
            self.objects = {sha: got.body}
        return self.objects.get(sha) or await self._fetch(wire, edge, sha)


def n_rounds(run: Path) -> int:
    """How many rounds are done."""
    with contextlib.suppress(OSError):
        return len(RunFolder(run).history())
    return 0


async def play_many(door: Door, options: argparse.Namespace, n_edges: int) -> dict:
    """A federation of so many edges: enrol, check in, train rounds."""
    population = {"min": n_edges, "max": n_edges}
    population["per_round"] = min(options.chosen, n_edges)
    seen: dict[str, Any] = {"edges": n_edges}
    fleet = Fleet(door.port, str(door.certificates.ca), options.connections)
    with door.run(f"many-{n_edges}", 10, edges=population) as run:
        async with fleet.connected():
            invitations = Registry(run).invite(count=n_edges)
            seen["enrolled_per_s"] = (n_edges - 1) / await fleet.enrol(invitations[1:])
            n_calls = options.calls
            seen["checkins_per_s"] = n_calls / await fleet.flood(n_calls)
            await fleet.enrol(invitations[:1])
            work, started = Work(fleet), time.monotonic()
            await fleet.live(lambda: n_rounds(run) >= 1, work.do)
            seen["first_round_s"] = time.monotonic() - started
            started, wanted = time.monotonic(), n_rounds(run) + options.rounds
            await fleet.live(lambda: n_rounds(run) >= wanted, work.do)
            n_done = n_rounds(run) - wanted + options.rounds
            seen["rounds_per_min"] = 60 * n_done / (time.monotonic() - started)
            seen["memory"] = door.memory()
            seen["p99_ms"] = fleet.percentile("checkin", 0.99)
            seen["statuses"] = dict(fleet.statuses)
    return seen


async def play_large(door: Door, options: argparse.Namespace) -> dict[str, float]:
    """Large updates of a few edges at once, beside the floor of the same bytes."""
    n, width = options.senders, options.parameters // 27
    fleet = Fleet(door.port, str(door.certificates.ca), n)
    with door.run("large", width, edges={"min": n, "max": n}) as run:
        async with fleet.connected():
            await fleet.enrol(Registry(run).invite(count=n))
            work = Work(fleet)
            await fleet.live(lambda: n_rounds(run) >= options.rounds, work.do)
    speeds = [
        work.n_bytes[number] / (end - start)
        for number, (start, end) in work.times.items()
        if number <= options.rounds
    ]
    floor = await send_to_floor(door, n, work.n_bytes[1] // n)
    best = max(speeds)
    return {
        "mb_per_s": best / 1e6,
        "floor_mb_per_s": floor / 1e6,
        "share": best / floor,
    }


async def send_to_floor(door: Door, n_senders: int, n_bytes: int) -> float:
    """Bytes a second that one process reads from so many sockets into files."""
    command = [sys.executable, str(Path(__file__).with_name("edge_floor.py"))]
    certificates = door.certificates
    command += map(str, (door.folder, certificates.cert, certificates.key))
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    port = int(server.stdout.readline())
    context = ssl.create_default_context(cafile=str(certificates.ca))

    async def send() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(n_bytes.to_bytes(8, "little"))
        piece, n_left = os.urandom(CHUNK), n_bytes
        while n_left:
            writer.write(piece[: min(CHUNK, n_left)])
            await writer.drain()
            n_left -= min(CHUNK, n_left)
        await reader.readexactly(1)
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(send() for _ in range(n_senders)))
    seconds = time.perf_counter() - started
    server.stdin.close()
    server.wait(60)
    return n_senders * n_bytes / seconds


def main() -> None:
    """Play all of it and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for name, default in (
        ("enrolled", 2000), ("chosen", 50), ("rounds", 3), ("calls", 2000),
        ("connections", 64), ("parameters", 1_000_000), ("senders", 4),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    folder = tempfile.TemporaryDirectory(prefix="edges-")
    with folder as name, Door(Path(name)).open() as door:
        few = asyncio.run(play_many(door, options, N_SMALL))
        many = asyncio.run(play_many(door, options, options.enrolled))
        large = asyncio.run(play_large(door, options))
    grown = many.pop("memory") - few.pop("memory")
    many["bytes_per_edge"] = grown / (options.enrolled - N_SMALL)
    print(json.dumps({"few": few, "many": many, "large": large}, indent=1))


if __name__ == "__main__":
    main()
