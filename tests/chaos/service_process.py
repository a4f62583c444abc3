"""The REST service as a process of its own, with the cluster that it starts."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import requests
from cells import ROUNDS
from fault_injection import Gates, kill, look
from support.processes import (
    FEDRAY,
    cluster_pids,
    pids_with_files_in,
    wait_until_gone,
)
from support.rest import Client, json_of
from support.waiting import PATIENCE_S, wait_for

ENDED = ("trained", "failed", "stopped")


def free_port() -> int | None:
    """One below those that the system gives away to whoever asks, as Ray does."""
    with socket.socket() as socket_, contextlib.suppress(OSError):
        port = random.randrange(20_000, 30_000)
        socket_.bind(("127.0.0.1", port))
        return port
    return None


class Serving:
    """`fedray serve` on one port and root, and the model that training comes to."""

    def __init__(self, folder: Path, gates: Gates):
        self.folder, self.gates = folder, gates
        folder.mkdir()
        self.port = wait_for(free_port, "a port")
        self.client = Client(f"http://127.0.0.1:{self.port}")
        self.orphans: list[str] = []
        self.start()
        self.done = self._ready()
        self.peace = json_of(self.client.train(self.done))["global_model"]

    def _ready(self) -> str:
        return self.client.ready(rounds=ROUNDS)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [*FEDRAY, "serve", "--port", str(self.port)]
        command += ["--root", str(self.folder / "root")]
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        log = (self.folder / "log").open("a")
        self.process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log
        )
        wait_for(self._is_up, "the service")

    def _is_up(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()[-3000:]
        with contextlib.suppress(requests.RequestException):
            return self.client.get("/health").status_code == 200
        return False

    def end(self) -> None:
        """Stop it; whoever of its cluster is still there then is told of."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE_S)

    def play(self, victim: str, stage: str) -> dict[str, Any]:
        """Do it, and say what it came to."""
        id, waiting = self._ready(), json_of(self.client.start())["aggregator_id"]
        self.client.join(waiting)
        self.gates.arm(stage, "party:party-0" if stage == "training" else "aggregator")
        started = time.monotonic()
        self.client.train(id, wait="false")
        try:
            self.gates.held(stage)
            getattr(self, f"_{victim}")(id)
        finally:
            self.gates.open()
        if victim == "service":
            self.start()
        wait_for(lambda: self._state(id) in ENDED, "the training's end")
        state = self.client.state(id)
        assert state["state"] == "trained", state
        seconds = time.monotonic() - started
        self._look_at_others(waiting)
        seen = look(self.folder / "root" / id)
        model = json_of(self.client.stop(id))["global_model"]
        pairs = zip(model, self.peace, strict=True)
        return seen | {
            "how": "started again" if victim == "service" else "by itself",
            "seconds": round(seconds, 1),
            "same": all(np.array_equal(a, b) for a, b in pairs),
            "processes": self.gates.gone() + self.orphans,
            "pinned": None,  # not our cluster
        }

    def _look_at_others(self, waiting: str) -> None:
        """One that is trained is so still; one that waits takes in its last party."""
        assert self.client.state(self.done)["state"] == "trained"
        assert self.client.state(waiting)["remaining_parties"] == 1
        assert json_of(self.client.join(waiting))["remaining_parties"] == 0
        self.client.stop(waiting)

    def _state(self, id: str) -> str | None:
        with contextlib.suppress(requests.RequestException, ValueError, KeyError):
            return self.client.state(id)["state"]
        return None

    def _replica(self, id: str) -> None:
        kill(self.gates.pid("replica"))

    def _federation(self, id: str) -> None:
        """Its process is the one that holds the run's folder."""
        aggregator = self.gates.pid("aggregator")
        (pid,) = pids_with_files_in(self.folder / "root" / id) - {aggregator}
        kill(pid)

    def _service(self, id: str) -> None:
        children = cluster_pids(self.process.pid)
        kill(self.process.pid)
        self.process.wait()
        self.gates.open()
        self.orphans = [f"{who} {n}" for n, who in wait_until_gone(children).items()]
