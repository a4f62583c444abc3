"""Two nodes on one machine: the driver's, with party b1, and that of a1 and a2."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import ray
import yaml
from cells import ROUNDS
from fault_injection import Gates, kill, look, pause
from ray._private.internal_api import node_stats
from ray.cluster_utils import Cluster
from sitecustomize import fix_run_id
from support.waiting import PATIENCE_S, wait_for

from fedray import run
from fedray.checkpoint import RunFolder, run_inputs
from fedray.data import MnistPytorch

NODE = {"object_store_memory": 100 << 20, "num_cpus": 2}
QUICK = {  # a killed node is noticed after about 4 s
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 10000,  # a slow one is not dead
    "health_check_failure_threshold": 8,
}
NOISE = {
    "mechanism": "central",
    "noise_multiplier": 1.0,
    "clip_norm": 0.5,
    "delta": 1e-3,
}
NET = """
    from torch import nn

    def mlp():  # too large for Ray to hand round inside its messages
        return nn.Sequential(
            nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)
        )
"""


class Nodes:
    """The cluster, the tiny federation on it, and the weights it comes to in peace."""

    private_peace: dict[str, np.ndarray] | None = None

    def __init__(self, folder: Path, gates: Gates, is_quick: bool = True):
        self.folder, self.gates = folder, gates
        fix_run_id(run_inputs)  # this process began before there were gates
        folder.mkdir()
        system = QUICK if is_quick else {}
        head = {**NODE, "include_dashboard": False, "_system_config": system}
        head["labels"] = {"at": "b"}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.node = self.add()
        os.environ["RAY_ADDRESS"] = self.cluster.address
        ray.init(self.cluster.address, namespace="fedray", log_to_driver=False)
        mine = ray.put(np.zeros(1 << 20))
        wait_for(lambda: self.pinned(0) > 1 << 20, "pinned objects are not counted")
        del mine
        self.settings = self._settings()
        self.peace = self._run_in_peace("peace")

    def _run_in_peace(self, name: str) -> dict[str, np.ndarray]:
        run(self.settings, run_dir=self.folder / name)
        return self.weights(name)

    def add(self):
        """A node of parties a1 and a2."""
        return self.cluster.add_node(**NODE, labels={"at": "a"})

    def end(self) -> None:
        """Switch it all off."""
        ray.shutdown()
        self.cluster.shutdown()
        del os.environ["RAY_ADDRESS"]

    def weights(self, name: str) -> dict[str, np.ndarray]:
        """The last ones of a run."""
        return RunFolder(self.folder / name).last_checkpoint().weights

    def _settings(self) -> dict[str, Any]:
        (self.folder / "net.py").write_text(textwrap.dedent(NET))
        (x, y), (x_test, y_test) = MnistPytorch("mnist").get_data()
        parties = []
        for i, (name, at) in enumerate({"a1": "a", "a2": "a", "b1": "b"}.items()):
            path, mine = self.folder / f"{name}.npz", slice(48 * i, 48 * i + 40 + i)
            test = {"x_test": x_test[:20], "y_test": y_test[:20]}
            np.savez(path, x_train=x[mine], y_train=y[mine], **test)
            parties.append({"name": name, "data": str(path), "labels": {"at": at}})
        return {
            "architecture": str(self.folder / "net.py:mlp"),
            "data_handler": "mnist_pytorch",
            "learning_rate": 0.1,
            "batch_size": 16,
            "rounds": ROUNDS,
            "parties": parties,
        }

    def play(self, victim: str, stage: str) -> dict[str, Any]:
        """Do it, and say what it came to."""
        name = f"{victim}-{stage}"
        if victim.startswith("private_"):
            return self._play_private(victim.removeprefix("private_"), stage, name)
        return self._play(victim, stage, name)

    def _play_private(self, victim: str, stage: str, name: str) -> dict[str, Any]:
        """The same with noise for parties; it says which rounds were released."""
        before = self.settings, self.peace
        self.settings = self.settings | {"privacy": NOISE}
        try:
            self.peace = self.private_peace or self._run_in_peace("private-peace")
            self.private_peace = self.peace
            return self._play(victim, stage, name)
        finally:
            self.settings, self.peace = before

    def _play(self, victim: str, stage: str, name: str) -> dict[str, Any]:
        who = "aggregator"
        if stage == "training":
            who = "party:a1"
        elif stage == "combining" and victim in ("node", "combiner"):
            who = "combiner"
        self.gates.arm(stage, who)
        started = time.monotonic()
        play = self._driver if victim == "driver" else self._here
        how = play(name, victim, stage)
        seconds = time.monotonic() - started
        seen = look(self.folder / name) | {"how": how, "seconds": round(seconds, 1)}
        mine = self.weights(name)
        seen["same"] = all(np.array_equal(mine[k], self.peace[k]) for k in self.peace)
        return seen | {"processes": self.gates.gone(), "pinned": self.pinned()}

    def _here(self, name: str, victim: str, stage: str) -> str:
        """A run of this process, beside which something happens."""
        with ThreadPoolExecutor(1) as pool:
            run_dir = self.folder / name
            running: Future = pool.submit(run, self.settings, run_dir=run_dir)
            try:
                holder = self.gates.held(stage)
                getattr(self, f"_{victim}")(name, holder)
            finally:
                self.gates.open()
            if victim == "node":
                self.node = self.add()
            running.result(PATIENCE_S)
        return "by itself"

    def _driver(self, name: str, victim: str, stage: str) -> str:
        """A run of another process, which is killed; then another goes on."""
        config = self.folder / "config.yaml"
        config.write_text(yaml.safe_dump(self.settings))
        command = [sys.executable, "-m", "fedray", "run", str(config)]
        command += ["--run-dir", str(self.folder / name)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        with subprocess.Popen(command, **quiet) as driver:
            try:
                self.gates.held(stage)
            finally:
                kill(driver.pid)
        self.gates.open()
        done = subprocess.run(
            [*command, "--resume"], timeout=PATIENCE_S, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return "`--resume`"

    def _party(self, name: str, holder: int) -> None:
        ray.kill(ray.get_actor(f"party:{name}:a1"), no_restart=False)

    def _worker(self, name: str, holder: int) -> None:
        kill(self.gates.pid("party:a1"))

    def _node(self, name: str, holder: int) -> None:
        self.cluster.remove_node(self.node, allow_graceful=False)

    def _combiner(self, name: str, holder: int) -> None:
        kill(holder)

    def _aggregator(self, name: str, holder: int) -> None:
        kill(self.gates.pid("aggregator"))

    def _paused_party(self, name: str, holder: int) -> None:
        pause(self.gates.pid("party:a1"))

    def _paused_aggregator(self, name: str, holder: int) -> None:
        pause(self.gates.pid("aggregator"))

    def _raylet(self) -> int:
        return self.node.all_processes["raylet"][0].process.pid

    def _paused_raylet(self, name: str, holder: int) -> None:
        pause(self._raylet())

    def _slow_node(self, name: str, holder: int) -> None:
        """All of a node stands still nine tenths of the time, for ten seconds."""
        pids = [self._raylet(), *map(self.gates.pid, ("party:a1", "party:a2"))]
        self.gates.open()

        def stutter(pid: int) -> None:
            for _ in range(10):
                pause(pid, 0.9)
                time.sleep(0.1)

        threads = [threading.Thread(target=stutter, args=[pid]) for pid in pids]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _slow_disk(self, name: str, holder: int) -> None:
        """Every flush takes a second from here on."""
        (self.gates.folder / "slow").write_text("1")
        self.gates.open()
        file = self.folder / name / "global_model.pt"
        wait_for(file.exists, "the run's end")
        (self.gates.folder / "slow").unlink()

    def pinned(self, patience_s: float = 120) -> int:
        """Bytes that the nodes' stores keep for somebody, once all is let go.

        What they may drop when they want the room does not count: an update that a
        party hands to an aggregator that has died lies there, and nobody owns it.
        """

        def count() -> int:
            alive = [n for n in ray.nodes() if n["Alive"]]
            places = [(n["NodeManagerAddress"], n["NodeManagerPort"]) for n in alive]
            stats = [node_stats(*place).store_stats for place in places]
            return sum(found.object_store_bytes_primary_copy for found in stats)

        until = time.monotonic() + patience_s
        while (n_bytes := count()) and time.monotonic() < until:
            time.sleep(0.2)
        return n_bytes
