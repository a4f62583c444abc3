"""The service's own HTTP server: uvicorn in an actor, on the node of its folders.

``fedray serve`` does not go through Ray Serve, whose proxy and replica hold unread
answers and bodies in memory without limit. Here bytes go from the socket to the disk
and back as fast as the client and the disk take them.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import resource
import shutil
import signal
import socket
import tempfile
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import ray
import uvicorn
from ray.actor import ActorHandle
from ray.exceptions import RayError

from fedray.errors import ClusterError, ConfigError
from fedray.federation import cluster_connection
from fedray.federation.host_checks import is_open_to_others
from fedray.placement import node_affinity
from fedray.service import asgi
from fedray.service.auth import read_keys
from fedray.service.http_limits import IDLE_S, N_EXTRA, Connections, LimitedProtocol
from fedray.service.listening import BACKLOG, listen
from fedray.service.membership import data_root_line
from fedray.service.privacy_requirement import read_requirements
from fedray.service.responses import unwrap
from fedray.service.settings import LOOPBACK, Settings
from fedray.service.terminal import FederationLines
from fedray.untrusted_text import escape, escape_line

SHUTDOWN_S = 2  # for answers under way when the service is stopped
POLL_S = 0.05
N_LINES = 100  # of the server's log that wait for the terminal
N_OTHER_FILES = 512  # open ones beside connections
LOG = logging.getLogger("fedray")


class HttpServer:
    """An actor that serves until `stop`; Ray starts a killed one again."""

    def __init__(self, settings: Settings, listener: str):
        self.lines = log_harmless_lines()
        self.settings, self.listener = settings, listener
        self.server: uvicorn.Server | None = None

    async def run(self) -> None:
        """Serve until `stop`."""
        settings = with_files_for_connections(self.settings)
        app = asgi.build(settings)
        async with asgi.lifespan(app):
            sock = take_socket(self.listener)
            protocol = functools.partial(LimitedProtocol, Connections(settings))
            self.server = uvicorn.Server(http_config(app, protocol))
            await self.server.serve([sock])

    async def wait_until_up(self) -> None:
        """Wait until it accepts connections."""
        while self.server is None or not self.server.started:
            await asyncio.sleep(POLL_S)

    async def take_log_lines(self) -> list[str]:
        """The first lines of what it has logged since the last call."""
        return [self.lines.popleft() for _ in range(len(self.lines))]

    async def stop(self) -> None:
        """End `run`; answers under way have `SHUTDOWN_S`."""
        if self.server is not None:
            self.server.should_exit = True


def http_config(app: Any, protocol: Any) -> uvicorn.Config:
    """How an application is served whose connections are `protocol`s."""
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        backlog=BACKLOG,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )


class Listener:
    """A listening socket for the server's process, which takes it when it starts.

    It is open here too: while Ray starts a killed server again, clients wait instead of
    being refused, and nobody else gets the port.
    """

    def __init__(self, host: str, port: int, scheme: str = "http"):
        self.sock = listen(host, port)
        self.port: int = self.sock.getsockname()[1]
        self.url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"
        self.folder = tempfile.mkdtemp(prefix="fedray-")  # nobody else's to look into
        self.path = f"{self.folder}/listener"
        self.giver = socket.socket(socket.AF_UNIX)
        self.giver.bind(self.path)
        self.giver.listen()
        threading.Thread(target=self._give, daemon=True).start()

    def _give(self) -> None:
        """Send the socket to each process that connects, until `close`."""
        with contextlib.suppress(OSError):
            while True:
                line, _ = self.giver.accept()
                with line, contextlib.suppress(OSError):  # it was killed again
                    socket.send_fds(line, [b"1"], [self.sock.fileno()])

    def close(self) -> None:
        """Accept no more connections."""
        self.sock.close()
        with contextlib.suppress(OSError):
            self.giver.shutdown(socket.SHUT_RDWR)  # it wakes `accept`
        self.giver.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def take_socket(path: str) -> socket.socket:
    """The socket of the `Listener` at this path."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(path)
        _, handles, *_ = socket.recv_fds(line, 1, 1)
    return socket.socket(fileno=handles[0])


@dataclass
class RunningService:
    """A server that was started; it ends with the process that has started it."""

    server: ActorHandle
    run_ref: ray.ObjectRef
    listener: Listener
    lines_ref: ray.ObjectRef | None = None

    def new_log_lines(self) -> list[str]:
        """What the server has logged; nothing while it starts again."""
        if self.lines_ref is None:
            self.lines_ref = self.server.take_log_lines.remote()
        if not ray.wait([self.lines_ref], timeout=0)[0]:
            return []
        ref, self.lines_ref = self.lines_ref, None
        with contextlib.suppress(RayError):
            return ray.get(ref)
        return []

    def check(self) -> None:
        """Raise ClusterError if the server has ended, or cannot start."""
        if not ray.wait([self.run_ref], timeout=0)[0]:
            return
        try:
            ray.get(self.run_ref)
            text = "it was stopped"
        except RayError as error:
            cause = unwrap(error)
            if isinstance(cause, ClusterError | ConfigError):
                raise cause from None
            text = " ".join(str(cause).split())[:500]
        hint = "Ray's log of its process has the whole error"
        raise ClusterError(f"the service has ended: {text}", hint)

    def stop(self) -> None:
        """End the server; trainings go on."""
        self.listener.close()
        with contextlib.suppress(RayError):
            ray.get(self.server.stop.remote(), timeout=SHUTDOWN_S)
            ray.wait([self.run_ref], timeout=2 * SHUTDOWN_S)
        ray.kill(self.server)


def start(settings: Settings, listener: Listener) -> RunningService:
    """Start the service on the cluster that this process is connected to, on its node.

    Raises
    ------
    ClusterError
        If it ends at once.
    """
    node = ray.get_runtime_context().get_node_id()
    actor: Any = ACTOR.options(
        max_restarts=-1, max_task_retries=-1, **node_affinity(node)
    )
    server = actor.remote(settings, listener.path)
    service = RunningService(server, server.run.remote(), listener)
    ray.wait([service.run_ref, server.wait_until_up.remote()])
    service.check()
    return service


class Door(Protocol):
    """Another listener, with a server of its own: the edges'."""

    def listening(self) -> contextlib.AbstractContextManager[Listener]:
        """Listen where it is to be called; checks what it needs."""
        ...

    def start(self, settings: Settings, listener: Listener) -> RunningService:
        """Start its server on the cluster."""
        ...


def serve(settings: Settings, host: str, port: int, door: Door | None = None) -> None:
    """Serve until Ctrl-C. On a cluster that runs by itself, trainings continue.

    Raises
    ------
    ConfigError
        If it would serve others without keys, or the keys cannot be read.
    ClusterError
        If it cannot listen at this address, or there is no cluster.
    """
    _check_access(settings, host)
    read_requirements(settings.require_privacy)  # before anyone calls
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(contextlib.closing(Listener(host, port)))
        door_listener = stack.enter_context(door.listening()) if door else None
        stack.enter_context(cluster_connection())
        services = [start(settings, listener)]
        stack.callback(services[0].stop)
        LOG.info("fedray serves %s, stop it with Ctrl-C", listener.url)
        if door is not None and door_listener is not None:
            services.append(door.start(settings, door_listener))
            stack.callback(services[1].stop)
            LOG.info("edges call %s", door_listener.url)
        _tell_exposure(settings)
        _serve_until_terminated(settings, services)


def _serve_until_terminated(settings: Settings, services: list[RunningService]) -> None:
    """Log what happens until this process is to end, or a server has ended."""
    terminated = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: terminated.set())
    lines = FederationLines(settings.folder)
    while not terminated.wait(1):
        new = lines.new_lines()
        for service in services:
            service.check()
            new += service.new_log_lines()
        for line in new:
            LOG.info("%s", escape_line(line))


def _tell_exposure(settings: Settings) -> None:
    """Log what data clients may name, and what other users of this machine read."""
    if line := data_root_line(settings):
        LOG.log(logging.WARNING if settings.shared_data_root else logging.INFO, line)
    if is_open_to_others(settings.folder):
        what = "other users of this machine can read models and federations in"
        LOG.warning("%s %s: chmod 700 it", what, settings.folder)


def _check_access(settings: Settings, host: str) -> None:
    """Raise ConfigError if others could call without a key, or there is no key."""
    if settings.api_keys is None and host not in LOOPBACK:
        problem = f"without --api-keys only this machine is served, not --host {host}"
        raise ConfigError([f"{problem}: make a file with `fedray keys add FILE` first"])
    if settings.api_keys is not None and not read_keys(settings.api_keys):
        raise ConfigError(
            [f"no key in {settings.api_keys}: `fedray keys add` makes one"]
        )


def with_files_for_connections(settings: Settings) -> Settings:
    """Settings with no more connections than this process may have files open."""
    n_others = N_EXTRA + N_OTHER_FILES
    needed = settings.max_connections + n_others
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (soft, hard) or soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    if soft >= needed:
        return settings
    n = max(soft - n_others, soft // 2)
    LOG.warning("ulimit -n is %d: max_connections is %d here", soft, n)
    return dataclasses.replace(settings, max_connections=n)


class HarmlessLines(logging.Formatter):
    """Log lines in which text of clients cannot steer a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, with harmful characters as escapes."""
        return escape(super().format(record))


class RecentLines(logging.Handler):
    """Keeps the first lines of the newest records, for the terminal."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=N_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record's line."""
        self.lines.append(record.getMessage().partition("\n")[0])


def log_harmless_lines() -> deque[str]:
    """Log to this process's file, which Ray keeps; the newest lines are returned."""
    handler, recent = logging.StreamHandler(), RecentLines()
    handler.setFormatter(HarmlessLines("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler, recent], level=logging.WARNING, force=True)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # of each bad form
    return recent.lines


ACTOR = ray.remote(HttpServer)  # once: a second class would be another one to Ray
