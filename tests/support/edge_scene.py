"""A cluster with the edges' door, runs whose parties are edges, and who is killed.

`EdgeScene` has one Ray node, `fedray serve` with the door, a proxy before it that ends
TLS (so that calls can be held), and a process from which edges are forked. `EdgeRun` is
one federation of two edges: a calls through the proxy, b directly.
"""

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import yaml
from support.certificates import make_certificates
from support.faulty_proxy import FaultyProxy
from support.processes import FEDRAY, running_process
from support.waiting import PATIENCE_S, wait_for

from fedray import run
from fedray.checkpoint import RunFolder
from fedray.data import MnistPytorch
from fedray.edges.protocol import SPOOL
from fedray.edges.registry import Registry

NODE = {"object_store_memory": 100 << 20, "num_cpus": 4, "include_dashboard": False}
QUICK = {  # Ray notices sooner what has died
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 10000,
    "health_check_failure_threshold": 8,
}
NET = """
    import time
    from pathlib import Path

    import torch
    from torch import nn

    GATE = Path({gate!r})

    class Gate(nn.Module):
        # whoever trains first where the gate is shut waits there; joining's trial,
        # which is drawn from the config's seed, passes
        def forward(self, x):
            if self.training and torch.initial_seed() != 0 and GATE.exists():
                try:
                    GATE.rename(GATE.with_suffix(".held"))
                except FileNotFoundError:
                    return x
                while GATE.with_suffix(".held").exists():
                    time.sleep(0.01)
            return x

    def mlp():
        return nn.Sequential(
            Gate(), nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10)
        )
"""
EDGES = ("a", "b")
TINY = {
    "data_handler": "mnist_pytorch",
    "learning_rate": 0.1,
    "batch_size": 16,
    "rounds": 3,
}
GROUPS = "NamedEdges|EdgePopulation"  # classes of EdgeGroups
PRELOAD = ["__main__", "fedray.cli", "fedray.edge", "fedray.models.pytorch.model"]
JOBS = Path(__file__).parent.parent.parent / "jobs"


@dataclass(frozen=True)
class Job:
    """What two parties train, as edges or on the cluster.

    data : file of each party.
    code : file.py:name of the model.
    settings : of the config, beside these.
    """

    data: dict[str, str]
    code: str
    settings: dict[str, Any]

    def config(self, are_edges: bool) -> dict[str, Any]:
        """The config, with the same parties in both cases."""
        parties = [
            {"name": name} | ({"edge": True} if are_edges else {"data": path})
            for name, path in self.data.items()
        ]
        test = {"test_data": self.data["a"]}
        return self.settings | test | {"architecture": self.code, "parties": parties}


def write_digits(path: Path, first: int, n: int) -> str:
    """A party's file of shipped digits."""
    (x, y), (x_test, y_test) = MnistPytorch("mnist").get_data()
    test = {"x_test": x_test[:20], "y_test": y_test[:20]}
    np.savez(path, x_train=x[first : first + n], y_train=y[first : first + n], **test)
    return str(path)


class TrainingGate:
    """Stops the first edge that trains."""

    def __init__(self, file: Path):
        self.file = file
        file.touch()

    def wait(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait until somebody has come to it."""
        wait_for(self._held.exists, "nobody trains", timeout_s)

    def let_go(self, is_lost: bool = False) -> None:
        """Open it."""
        self.file.unlink(missing_ok=True)
        self._held.unlink(missing_ok=True)

    @property
    def _held(self) -> Path:
        return self.file.with_suffix(".held")


def run_edge(words: list[str], log: str) -> None:
    """What `fedray edge` does, in a forked process; it exits as the command would."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    import torch

    from fedray.cli import main

    torch.set_num_threads(1)  # the command does so by the environment, before torch
    sys.exit(main(["edge", *words]))


def free_port() -> int:
    """A port that nobody listens at."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def actor_pid(pattern: str) -> int:
    """The process of the living actor whose name or class has this pattern in it."""
    from ray._private.state import actors

    def find() -> int | None:
        for actor in actors().values():
            names = f"{actor['Name']} {actor['ActorClassName']}"
            if re.search(pattern, names) and actor["State"] == "ALIVE":
                return actor["Pid"]
        return None

    return wait_for(find, pattern)


class EdgeScene:
    """Cluster, door and proxy as long as a block lasts."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.certificates = make_certificates(folder)
        self.net = folder / "net.py"
        self.gate = folder / "gate"
        self.net.write_text(textwrap.dedent(NET.format(gate=str(self.gate))))
        self.forks = multiprocessing.get_context("forkserver")
        self.forks.set_forkserver_preload(PRELOAD)
        self._peace: dict[str, dict[str, np.ndarray]] = {}

    def __enter__(self) -> "EdgeScene":
        context = ray.init(
            address="local", namespace="fedray", log_to_driver=False,
            _system_config=QUICK, **NODE,
        )  # fmt: skip
        os.environ["RAY_ADDRESS"] = context.address_info["gcs_address"]
        self.door_port = free_port()
        self._serving = running_process(self._serve_command(), self.folder / "serve")
        self.serve = self._serving.__enter__()
        wait_for(self._is_up, "the door")
        self.proxy = FaultyProxy(self.door_port, tls=self.certificates.tls())
        self.proxy.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self.proxy.__exit__(*error)
        self._serving.__exit__(*error)
        del os.environ["RAY_ADDRESS"]
        ray.shutdown()

    def _serve_command(self) -> list[str]:
        certificates = self.certificates
        return [
            *(*FEDRAY, "serve", "--port", "0", "--root", str(self.folder / "root")),
            *("--edge-host", "127.0.0.1", "--edge-port", str(self.door_port)),
            *("--tls-cert", str(certificates.cert), "--tls-key", str(certificates.key)),
        ]

    def _is_up(self) -> bool:
        assert self.serve.poll() is None, (self.folder / "serve").read_text()[-3000:]
        return "edge" in (self.folder / "serve").read_text()

    def job(self, name: str) -> Job:
        """A tiny one, or the tutorial's."""
        n = {"tiny": 40, "tutorial": 500}[name]
        data = {
            edge: write_digits(self.folder / f"{name}-{edge}.npz", 500 * i, n + i)
            for i, edge in enumerate(EDGES)
        }
        if name == "tiny":
            return Job(data, f"{self.net}:mlp", TINY)
        settings = yaml.safe_load((JOBS / "mnist_fedavg.yaml").read_text())
        for key in ("num_parties", "partition", "architecture"):
            del settings[key]
        return Job(data, f"{JOBS / 'mnist_cnn.py'}:cnn", settings)

    def peace(self, name: str) -> dict[str, np.ndarray]:
        """Weights that the same parties come to on the cluster, undisturbed."""
        if name not in self._peace:
            folder = self.folder / f"peace-{name}"
            run(self.job(name).config(are_edges=False), run_dir=folder)
            self._peace[name] = RunFolder(folder).last_checkpoint().weights
        return self._peace[name]

    def training_gate(self) -> TrainingGate:
        """Stop the first edge that trains from now on."""
        return TrainingGate(self.gate)

    def open_gates(self) -> None:
        """Let everyone go on."""
        TrainingGate(self.gate).let_go()
        for hold in self.proxy.holds:
            hold.let_go()
        self.proxy.holds.clear()
        self.proxy.mend()

    def new_run(self, name: str, job: str = "tiny") -> "EdgeRun":
        """A federation of edges, not begun."""
        return EdgeRun(self, name, job)


class EdgeRun:
    """One federation of edges a and b.

    ports : where each edge calls; a through the scene's proxy, unless they are changed.
    has_own_driver : whether it runs in a process of its own, which may be killed.
    """

    def __init__(self, scene: EdgeScene, name: str, job: str):
        self.scene, self.name, self.job = scene, name, job
        self.folder = scene.folder / name
        self.what = scene.job(job)
        self.ports = {"a": scene.proxy.port, "b": scene.door_port}
        self.has_own_driver = False
        self.edges: dict[str, Any] = {}
        self.driver: subprocess.Popen | None = None
        self.running: Future | None = None

    def start(self) -> None:
        """Begin, in this process or in one of its own; it waits for its edges then."""
        if self.has_own_driver:
            self._command()
        else:
            config = self.what.config(are_edges=True)
            self.pool = ThreadPoolExecutor(1)
            self.running = self.pool.submit(run, config, run_dir=self.folder)
        wait_for((self.folder / "inputs.json").exists, "the run")

    def _command(self, *more: str) -> None:
        config = self.scene.folder / f"{self.name}.yaml"
        config.write_text(yaml.safe_dump(self.what.config(are_edges=True)))
        command = [*FEDRAY, "run", str(config), "--run-dir", str(self.folder), *more]
        with (self.scene.folder / f"{self.name}.log").open("a") as log:
            self.driver = subprocess.Popen(command, stdout=log, stderr=log)

    def enrol_all(self) -> None:
        """Invite both edges and start them."""
        for name in EDGES:
            (invitation,) = Registry(self.folder).invite(name)
            self._invitation(name).write_text(invitation)
            self.start_edge(name)

    def _invitation(self, name: str) -> Path:
        return self.scene.folder / f"{self.name}-{name}.invitation"

    def _state(self, name: str) -> Path:
        return self.scene.folder / f"{self.name}-{name}.state"

    def start_edge(self, name: str) -> None:
        """Start an edge, or start it again."""
        scene, url = self.scene, f"https://127.0.0.1:{self.ports[name]}"
        words = [
            *("--url", url, "--ca", str(scene.certificates.ca)),
            *("--invitation-file", str(self._invitation(name))),
            *("--data", self.what.data[name], "--data-handler", "mnist_pytorch"),
            *("--architecture", self.what.code),
            *("--state-dir", str(self._state(name))),
        ]
        log = str(scene.folder / f"{self.name}-{name}.log")
        edge = scene.forks.Process(target=run_edge, args=(words, log))
        edge.start()
        self.edges[name] = edge

    def kill_edge(self) -> None:
        """SIGKILL of edge a."""
        self.edges["a"].kill()
        self.edges["a"].join(PATIENCE_S)

    def go_on_after_edge(self) -> str:
        """Start it again."""
        self.start_edge("a")
        return "started again"

    def kill_door(self) -> None:
        """SIGKILL of the door's process."""
        os.kill(actor_pid("edge-door"), signal.SIGKILL)

    def kill_group(self) -> None:
        """SIGKILL of the process of the run's EdgeGroup."""
        os.kill(actor_pid(GROUPS), signal.SIGKILL)

    def kill_aggregator(self) -> None:
        """SIGKILL of the aggregator's process."""
        os.kill(actor_pid("Aggregator"), signal.SIGKILL)

    def kill_driver(self) -> None:
        """SIGKILL of `fedray run`."""
        self.driver.kill()
        self.driver.wait(PATIENCE_S)

    def go_on_after_driver(self) -> str:
        """Resume."""
        self._command("--resume")
        return "`--resume`"

    def kill_network(self) -> None:
        """The edge's network is gone; it is back when the edge has noticed."""
        n_lines = len(self.scene.proxy.lines)
        self.scene.proxy.cut()
        wait_for(lambda: len(self.scene.proxy.lines) > n_lines, "it tries again")

    def go_on_after_network(self) -> str:
        """The network is back."""
        self.scene.proxy.mend()
        return "by itself"

    def wait(self) -> None:
        """Wait for the run's end, and that of its edges."""
        if self.running is not None:
            self.running.result(PATIENCE_S)
        else:
            assert self.driver.wait(PATIENCE_S) == 0, self._log()
        for edge in self.edges.values():
            edge.join(PATIENCE_S)

    def _log(self) -> str:
        return (self.scene.folder / f"{self.name}.log").read_text()[-3000:]

    def look(self) -> dict[str, Any]:
        """What the run came to, and what it left behind."""
        folder = RunFolder(self.folder)
        history, (newest, wrong) = folder.history(), folder.newest_checkpoint()
        peace, mine = self.scene.peace(self.job), newest.weights
        states = [self._state(name) for name in EDGES]
        return {
            "rounds": [line.round for line in history],
            "fused": [line.fused for line in history],
            "missing": sorted(
                f"{line.round}: {p.name}: {p.outcome}"
                for line in history for p in line.parties if p.outcome != "fused"
            ),
            "same": all(np.array_equal(mine[k], peace[k]) for k in peace),
            "damaged": wrong,
            "half": [
                str(path.relative_to(self.scene.folder))
                for place in (self.folder, *states) for path in place.rglob("*.part")
            ],
            "spool": self._n_spooled(),
            "exits": {name: edge.exitcode for name, edge in self.edges.items()},
        }  # fmt: skip

    def _n_spooled(self) -> int:
        """Files in the spool once the door has had time to delete them."""

        def count() -> int:
            return sum(path.is_file() for path in (self.folder / SPOOL).rglob("*"))

        with contextlib.suppress(TimeoutError):
            wait_for(lambda: not count(), "the spool", 60)
        return count()
