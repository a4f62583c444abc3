"""The door as an actor: Ray starts a killed one again, on its port, with its runs."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import uvicorn
from ray.actor import ActorHandle

from fedray.checkpoint import runs_folder
from fedray.edge_door.calls import EdgeCalls
from fedray.edge_door.open_runs import FILE, OpenRuns
from fedray.edge_door.tls import Certificate, Handshakes, TlsConnection
from fedray.edges.protocol import (
    DOOR_ACTOR,
    NAMESPACE,
    BoardChanges,
    Group,
    Submission,
    Verdict,
)
from fedray.edges.signatures import is_signed
from fedray.errors import ClusterError, ConfigError, RunFolderError
from fedray.placement import node_affinity
from fedray.service import store
from fedray.service.http_limits import Connections, LimitedProtocol
from fedray.service.http_server import (
    POLL_S,
    Listener,
    RunningService,
    http_config,
    log_harmless_lines,
    take_socket,
    with_files_for_connections,
)
from fedray.service.settings import LOOPBACK, Settings

FOLDER = "edge-door"  # in the folder of the service
MAX_CONNECTIONS = 4096  # of edges; half of them may wait for tasks
MAX_PER_ADDRESS = 2048  # many edges are behind one address
LOG = logging.getLogger("fedray")


@dataclass(frozen=True)
class DoorSettings:
    """Where the door listens, and its certificate; without one only on loopback.

    Raises
    ------
    ConfigError
        If edges of other machines would be served without TLS; if a file is missing.
    """

    host: str = "127.0.0.1"
    port: int = 8443
    tls_cert: str | None = None
    tls_key: str | None = None

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError(["--tls-cert and --tls-key go together: give both"])
        if self.tls_cert is None and self.host not in LOOPBACK:
            needed = "give --tls-cert FILE and --tls-key FILE (PEM)"
            problem = f"edges at --edge-host {self.host} need TLS: {needed}"
            proxy = "behind a proxy with TLS take --edge-host 127.0.0.1"
            raise ConfigError([f"{problem}; {proxy}"])

    def certificate(self) -> Certificate | None:
        """Certificate and key, read; None without TLS."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        return Certificate(self.tls_cert, self.tls_key)

    @contextlib.contextmanager
    def listening(self) -> Iterator[Listener]:
        """Check certificate and packages, and listen where edges are to call.

        Raises
        ------
        ConfigError, ClusterError, MissingExtra
            If that cannot be.
        """
        self.certificate()
        is_signed(bytes(32), bytes(64), b"")  # the package is there
        with contextlib.closing(self._listen()) as listener:
            yield listener

    def _listen(self) -> Listener:
        try:
            scheme = "https" if self.tls_cert else "http"
            return Listener(self.host, self.port, scheme)
        except ClusterError as error:
            what, hint = error.args
            hint = hint.replace("--port", "--edge-port").replace(
                "--host", "--edge-host"
            )
            raise ClusterError(what, hint) from None

    def start(self, settings: Settings, listener: Listener) -> RunningService:
        """Start the door on the cluster that this process is connected to, on its node.

        Raises
        ------
        ClusterError
            If there is one on this cluster already, or it ends at once.
        """
        node = ray.get_runtime_context().get_node_id()
        actor: Any = ray.remote(EdgeDoor).options(
            name=DOOR_ACTOR,
            namespace=NAMESPACE,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=1000,
            **node_affinity(node),
        )
        try:
            server: ActorHandle = actor.remote(settings, self, listener.path)
        except ValueError:
            what = "an edges' door is open on this cluster already"
            hint = "Stop the `fedray serve` that has opened it, or let edges call it"
            raise ClusterError(what, hint) from None
        service = RunningService(server, server.run.remote(), listener)
        ray.wait([service.run_ref, server.wait_until_up.remote()])
        service.check()
        return service


class RemoteGroup:
    """A group of edges that is an actor on the cluster, found by its name."""

    def __init__(self, name: str):
        self.name = name
        self._actor: Any = None

    async def _call(self, method: str, *arguments: Any) -> Any:
        if self._actor is None:
            self._actor = await asyncio.to_thread(
                ray.get_actor, self.name, namespace=NAMESPACE
            )
        try:
            return await getattr(self._actor, method).remote(*arguments)
        except Exception:
            self._actor = None  # a resumed run has another of this name
            raise

    async def changes(self, since: int) -> BoardChanges:
        """See `Group.changes`."""
        return await self._call("changes", since)

    async def commit(self, submission: Submission) -> Verdict | None:
        """See `Group.commit`."""
        return await self._call("commit", submission)

    async def fail(self, task_id: str, name: str, kind: str, message: str) -> None:
        """See `Group.fail`."""
        await self._call("fail", task_id, name, kind, message)

    async def leave(self, name: str) -> None:
        """See `Group.leave`."""
        await self._call("leave", name)


class EdgeDoor:
    """Serves edges until `stop`.

    Parameters
    ----------
    settings : of the service.
    door : where it listens.
    listener : path of the `Listener`.
    """

    def __init__(self, settings: Settings, door: DoorSettings, listener: str):
        self.lines = log_harmless_lines()
        self.settings, self.door, self.listener = settings, door, listener
        self.server: uvicorn.Server | None = None
        file = settings.folder / FOLDER / FILE
        places = functools.partial(find_run_folders, settings.folder)
        self.runs = OpenRuns(file, connect, places)

    async def run(self) -> None:
        """Serve until `stop`."""
        settings = with_files_for_connections(
            replace(
                self.settings,
                max_connections=MAX_CONNECTIONS,
                max_connections_per_address=MAX_PER_ADDRESS,
            )
        )
        self.runs.load()
        self.server = make_server(self.runs, settings, self.door.certificate())
        await self.server.serve([take_socket(self.listener)])

    async def wait_until_up(self) -> None:
        """Wait until it accepts connections."""
        while self.server is None or not self.server.started:
            await asyncio.sleep(POLL_S)

    async def open_run(self, run_id: str, folder: str, groups: list[str]) -> None:
        """Serve a run; also after the door was killed.

        folder : of the run, on the door's machine.
        groups : names of the actors of its groups of edges.

        Raises
        ------
        ConfigError
            If the folder is that of another run.
        """
        self.runs.open(run_id, Path(folder), groups)

    async def close_run(self, run_id: str, reason: str) -> None:
        """A run has ended: its edges are answered 410."""
        self.runs.close(run_id, reason)

    async def take_log_lines(self) -> list[str]:
        """The first lines of what it has logged since the last call."""
        return [self.lines.popleft() for _ in range(len(self.lines))]

    async def stop(self) -> None:
        """End `run`."""
        if self.server is not None:
            self.server.should_exit = True


def connect(name: str) -> Group:
    """The group of this name on the cluster."""
    return RemoteGroup(name)


def make_server(
    runs: OpenRuns, settings: Settings, certificate: Certificate | None
) -> uvicorn.Server:
    """A server of the door's calls that is not started yet."""
    protocol: Any = functools.partial(LimitedProtocol, Connections(settings))
    if certificate is not None:
        protocol = functools.partial(_with_tls, Handshakes(certificate), protocol)
    return uvicorn.Server(http_config(EdgeCalls(runs, settings), protocol))


def _with_tls(table: Handshakes, make_protocol: Any, **options: Any) -> TlsConnection:
    """What a new connection begins with; uvicorn gives the options of a protocol."""
    return TlsConnection(table, functools.partial(make_protocol, **options))


def find_run_folders(service: Path) -> Iterator[Path]:
    """Folders of runs on this machine: of `fedray run`, and of the service."""
    with contextlib.suppress(RunFolderError, OSError):
        yield from runs_folder().iterdir()
    with contextlib.suppress(OSError):
        yield from store.federation_folders(service)
