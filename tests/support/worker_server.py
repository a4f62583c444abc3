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
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGES = ("torch", "fedray")
PYTORCH = "fedray.models.pytorch"
KERAS, DOC2VEC = "fedray.models.keras", "fedray.models.doc2vec"  # slow and rare
SERVICE = "fedray.service"
DOOR = "fedray.edge_door"  # an actor of the service's
EXTRAS = (KERAS, DOC2VEC, SERVICE)
KIND = (socket.AF_UNIX, socket.SOCK_SEQPACKET)
MAX_BYTES = 1 << 20  # of a worker's command and environment
LAUNCHER = Path(__file__).with_name("worker_launcher.py")


@contextlib.contextmanager
def forked_workers(*packages: str) -> Iterator[None]:
    """Let clusters that this process starts meanwhile have their workers forked.

    From a process that has imported fedray and PyTorch, and of EXTRAS `packages`.
    """
    from ray._private import ray_constants
    from support.slow_machine import patient_starts

    temporary = tempfile.TemporaryDirectory(prefix="fr-", dir="/tmp")
    with patient_starts(), temporary as folder:
        os.environ["WORKER_SERVER"] = address = f"{folder}/workers"
        os.environ["WORKER_SERVER_PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
        script = ray_constants.SETUP_WORKER_FILENAME
        ray_constants.SETUP_WORKER_FILENAME = str(LAUNCHER)
        command = [sys.executable, __file__, address, *packages]
        server = subprocess.Popen(command, stdin=subprocess.PIPE)
        try:
            yield
        finally:
            del os.environ["WORKER_SERVER"], os.environ["WORKER_SERVER_PYTHONPATH"]
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


def serve(address: str, *packages: str) -> None:
    """Hand each worker to the process that forks those of its raylet, until stdin ends.

    A process for each raylet: Ray reads its process id and other variables only once.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # as Ray sets it for an actor of one core
    for name in (PYTORCH, *packages):
        if name != SERVICE:  # which imports Ray; the others, once for all raylets
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    forkers: dict[str, socket.socket] = {}
    with socket.socket(*KIND) as listener:
        listener.bind(f"{address}.new")
        listener.listen(100)
        os.rename(f"{address}.new", address)  # there as soon as it answers
        while True:
            readable, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in readable:
                return
            with contextlib.suppress(OSError), listener.accept()[0] as client:
                message, files, _, _ = socket.recv_fds(client, MAX_BYTES, 3)
                raylet = json.loads(message)["env"]["RAY_RAYLET_PID"]
                if raylet not in forkers:
                    forkers[raylet], far = socket.socketpair(*KIND)
                    if not os.fork():
                        for file in (listener, client, *forkers.values()):
                            file.close()
                        for file in files:
                            os.close(file)
                        fork_workers(far, SERVICE in packages)
                        return
                    far.close()
                socket.send_fds(forkers[raylet], [message], files)
                for file in files:
                    os.close(file)
                client.send(b"1")


def fork_workers(requests: socket.socket, has_service: bool) -> None:
    """Fork the workers of one raylet; returns in them when they have ended."""
    is_prepared = False
    while True:
        message, files, _, _ = socket.recv_fds(requests, MAX_BYTES, 3)
        if not message:
            return  # the server has ended
        worker = json.loads(message)
        if not is_prepared:
            preload(worker["env"], has_service)
            is_prepared = True
        if not os.fork():
            requests.close()
            for i, file in enumerate(files):
                os.dup2(file, i)
                os.close(file)
            run_worker(worker)
            return
        for file in files:
            os.close(file)


def preload(env: dict[str, str], has_service: bool) -> None:
    """Import what workers import, as a worker that has no job yet."""
    os.environ.update(env | {"RAY_JOB_ID": "ffffffff"})
    for name in ("ray._private.workers.default_worker", "ray.util.metrics", "fedray"):
        importlib.import_module(name)
    import_modules_of(sys.modules["fedray"])
    if has_service:
        with class_ids_of_the_system():
            for name in (SERVICE, DOOR):
                import_modules_of(importlib.import_module(name))
    if len({id_of_forked_process() for _ in range(2)}) < 2:
        raise RuntimeError("an import has seeded Ray's random IDs: workers share them")
    sys.meta_path.insert(0, HiddenPackages(PACKAGES))
    gc.collect()
    gc.freeze()


def import_modules_of(package: ModuleType) -> None:
    """Import all that is in a package, but for EXTRAS."""
    for _, name, is_package in pkgutil.iter_modules(
        package.__path__, f"{package.__name__}."
    ):
        if name in (*EXTRAS, DOOR):
            continue
        with contextlib.suppress(ImportError):
            module = importlib.import_module(name)
            if is_package:
                import_modules_of(module)


@contextlib.contextmanager
def class_ids_of_the_system() -> Iterator[None]:
    """Classes that Ray Serve declares as actors have IDs that seed nothing of Ray's."""
    from ray import actor

    class ActorClassID:
        @staticmethod
        def from_random() -> Any:
            return kind(os.urandom(kind.size()))

    kind, actor.ActorClassID = actor.ActorClassID, ActorClassID
    try:
        yield
    finally:
        actor.ActorClassID = kind


def id_of_forked_process() -> bytes:
    """The first random ID of a forked process; Ray seeds its generator on first use.

    Had this process used it already, all workers would go on from the same state, and
    objects of different actors would have the same ID.
    """
    from ray import ObjectRef

    reader, writer = os.pipe()
    if not os.fork():
        os.write(writer, ObjectRef.from_random().binary())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        return pipe.read()


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
    serve(*sys.argv[1:])
