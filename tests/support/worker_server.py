"""Forks Ray's worker processes from one process that has imported torch and fedray.

Starting a worker costs about 2.5 s of CPU time for imports alone, and the suite starts
some 900. A forked one is a process like any other: it has a pid of its own, may be
killed, and shares no memory that is written to (pages are copied on writing).

What was imported here is hidden from `sys.modules` until a worker imports it, so that
a worker has loaded what it has asked for and nothing else.
"""

import contextlib
import gc
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGES = ("torch", "fedray")
LAUNCHER = Path(__file__).with_name("worker_launcher.py")


@contextlib.contextmanager
def forked_workers() -> Iterator[Callable[[], None]]:
    """Let clusters that this process starts meanwhile have their workers forked.

    The yielded function is to be called once the cluster is there: a worker's Ray reads
    some of its environment only once, such as the raylet's process id, and so the
    server has to know it before it imports Ray.
    """
    import ray
    from ray._private import ray_constants

    with tempfile.TemporaryDirectory(prefix="fr-", dir="/tmp") as folder:
        os.environ["WORKER_SERVER"] = address = f"{folder}/workers"
        script = ray_constants.SETUP_WORKER_FILENAME
        ray_constants.SETUP_WORKER_FILENAME = str(LAUNCHER)
        command = [sys.executable, __file__, address]
        server = subprocess.Popen(command, stdin=subprocess.PIPE)

        def start() -> None:
            node = ray._private.worker.global_worker.node
            raylet = node.all_processes["raylet"][0].process.pid
            env = {"RAY_JOB_ID": "ffffffff", "RAY_RAYLET_PID": str(raylet)}
            server.stdin.write(json.dumps({**os.environ, **env}).encode() + b"\n")
            server.stdin.flush()

        try:
            yield start
        finally:
            del os.environ["WORKER_SERVER"]
            ray_constants.SETUP_WORKER_FILENAME = script
            server.stdin.close()  # at which it ends
            server.wait()


class HiddenPackages(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds packages that were imported before, whole, when a worker imports them."""

    def __init__(self, names: tuple[str, ...]):
        self.modules: dict[str, dict[str, ModuleType]] = {name: {} for name in names}
        for name in [*sys.modules]:
            package = name.split(".")[0]
            if package in self.modules:
                self.modules[package][name] = sys.modules.pop(name)

    def find_spec(self, name, path=None, target=None):
        if name not in self.modules:
            return None
        return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec) -> ModuleType:
        modules = self.modules.pop(spec.name)
        sys.modules.update(modules)
        module = modules[spec.name]
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module) -> None:
        module.__spec__ = module.__spec__.loader_state


def preload() -> None:
    """Import what workers import, once stdin has the cluster's environment."""
    os.environ["OMP_NUM_THREADS"] = "1"  # as Ray sets it for an actor of one core
    importlib.import_module("torch")
    line = sys.stdin.buffer.readline()
    if not line:
        sys.exit("no cluster was started")
    os.environ.update(json.loads(line))
    for name in ("ray._private.workers.default_worker", "ray.util.metrics", "fedray"):
        importlib.import_module(name)
    for module in pkgutil.walk_packages(sys.modules["fedray"].__path__, "fedray."):
        if not module.name.startswith(("fedray.models.keras", "fedray.models.doc2vec")):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    sys.meta_path.insert(0, HiddenPackages(PACKAGES))
    gc.collect()
    gc.freeze()


def serve(address: str) -> dict[str, Any] | None:
    """Fork until stdin is closed; returns in a child, with what it is to run."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"{address}.new")
        listener.listen(100)
        os.rename(f"{address}.new", address)  # there as soon as it answers
        while True:
            readable, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in readable:
                return None
            with contextlib.suppress(OSError), listener.accept()[0] as client:
                message, files, _, _ = socket.recv_fds(client, 1 << 20, 3)
                if message and not os.fork():
                    for i, file in enumerate(files):
                        os.dup2(file, i)
                        os.close(file)
                    return json.loads(message)
                for file in files:
                    os.close(file)
                client.send(b"1")


def run_worker(worker: dict[str, Any]) -> None:
    """Run Ray's worker script with the arguments and environment that it was given."""
    import numpy as np

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(worker["env"])
    os.chdir(worker["cwd"])
    np.random.seed()  # `random` does so by itself
    sys.argv = worker["argv"]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    preload()
    if worker := serve(sys.argv[1]):
        run_worker(worker)
