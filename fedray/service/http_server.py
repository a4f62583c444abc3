"""The service's own HTTP server: uvicorn in an actor, on the node of its folders.

``fedray serve`` does not go through Ray Serve, whose proxy and replica hold unread
answers and bodies in memory without limit. Here bytes go from the socket to the disk
and back as fast as the client and the disk take them.
"""

import asyncio
import contextlib
import dataclasses
import errno
import functools
import logging
import resource
import signal
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

import ray
import uvicorn
from ray.actor import ActorHandle
from ray.exceptions import RayError

from fedray.errors import ClusterError, ConfigError
from fedray.federation import cluster_connection
from fedray.placement import node_affinity
from fedray.service import asgi
from fedray.service.auth import read_keys
from fedray.service.http_limits import IDLE_S, N_EXTRA, Connections, LimitedProtocol
from fedray.service.responses import unwrap
from fedray.service.settings import LOOPBACK, Settings
from fedray.service.terminal import FederationLines
from fedray.untrusted_text import escape

BACKLOG = 1024  # connections that the kernel holds until they are accepted
SHUTDOWN_S = 2  # for answers under way when the service is stopped
PORT_S = 60.0  # for the port of a killed server to become free
POLL_S = 0.05
N_OTHER_FILES = 512  # open ones beside connections
LOG = logging.getLogger("fedray")


class HttpServer:
    """An actor that serves until `stop`; Ray starts a killed one again."""

    def __init__(self, settings: Settings, host: str, port: int):
        _log_harmless_lines()
        self.settings, self.host, self.port = settings, host, port
        self.server: uvicorn.Server | None = None

    async def run(self) -> None:
        """Serve until `stop`.

        Raises
        ------
        ClusterError
            If it cannot listen at its address.
        """
        settings = _with_files_for_connections(self.settings)
        app = asgi.build(settings)
        async with asgi.lifespan(app):
            sock = await self._listen()
            protocol = functools.partial(LimitedProtocol, Connections(settings))
            config = uvicorn.Config(
                app,
                http=protocol,  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                backlog=BACKLOG,
                timeout_keep_alive=IDLE_S,
                timeout_graceful_shutdown=SHUTDOWN_S,
            )
            self.server = uvicorn.Server(config)
            await self.server.serve([sock])

    async def _listen(self) -> socket.socket:
        """The socket; tried for a while where a killed server had the port."""
        was_killed = ray.get_runtime_context().was_current_actor_reconstructed
        until = time.monotonic() + (PORT_S if was_killed else 0.0)
        while True:
            try:
                return listen(self.host, self.port)
            except ClusterError:
                if time.monotonic() >= until:
                    raise
            await asyncio.sleep(POLL_S)

    async def wait_until_up(self) -> None:
        """Wait until it accepts connections."""
        while self.server is None or not self.server.started:
            await asyncio.sleep(POLL_S)

    async def stop(self) -> None:
        """End `run`; answers under way have `SHUTDOWN_S`."""
        if self.server is not None:
            self.server.should_exit = True


@dataclass
class RunningService:
    """A server that was started; it ends with the process that has started it."""

    server: ActorHandle
    run_ref: ray.ObjectRef

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
        with contextlib.suppress(RayError):
            ray.get(self.server.stop.remote(), timeout=SHUTDOWN_S)
            ray.wait([self.run_ref], timeout=2 * SHUTDOWN_S)
        ray.kill(self.server)


def start(settings: Settings, host: str, port: int) -> RunningService:
    """Start the service on the cluster that this process is connected to, on its node.

    Raises
    ------
    ConfigError
        If it would serve others without keys, or the keys cannot be read.
    ClusterError
        If it cannot listen at this address, or ends at once.
    """
    _check_access(settings, host)
    node = ray.get_runtime_context().get_node_id()
    actor: Any = ACTOR.options(
        max_restarts=-1, max_task_retries=-1, **node_affinity(node)
    )
    server = actor.remote(settings, host, port)
    service = RunningService(server, server.run.remote())
    ray.wait([service.run_ref, server.wait_until_up.remote()])
    service.check()
    return service


def serve(settings: Settings, host: str, port: int) -> None:
    """Serve until Ctrl-C. On a cluster that runs by itself, trainings continue."""
    _check_access(settings, host)  # before a cluster is started, as the next
    with listen(host, port) as sock:
        port = sock.getsockname()[1]
    with cluster_connection():
        service = start(settings, host, port)
        LOG.info("fedray serves http://%s:%d, stop it with Ctrl-C", host, port)
        terminated = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: terminated.set())
        try:
            lines = FederationLines(settings.folder)
            while not terminated.wait(1):
                service.check()
                for line in lines.new_lines():
                    LOG.info("%s", escape(line))
        finally:
            service.stop()


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections at an address of this machine.

    port : 0: any that is free.

    Raises
    ------
    ClusterError
        If it cannot: say, because another program does.
    """
    if not 0 <= port < 1 << 16:
        raise ClusterError(f"there is no port {port}", "Take one below 65536")
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, *_, address = min(addresses, key=lambda one: one[0] != socket.AF_INET)
        is_any = address[0] == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(
            address[:2], family=family, backlog=BACKLOG, dualstack_ipv6=is_any
        )
    except OSError as error:
        raise _cannot_listen(error, host, port) from None
    except UnicodeError:  # no name has such labels
        raise _cannot_listen(socket.gaierror(), host, port) from None


def _cannot_listen(error: OSError, host: str, port: int) -> ClusterError:
    number = None if isinstance(error, socket.gaierror) else error.errno
    if number == errno.EADDRINUSE:
        what = f"another program listens at {host}:{port}"
        return ClusterError(what, "Take another --port")
    if number in (errno.EACCES, errno.EPERM):
        what = f"this user may not listen at port {port}"
        return ClusterError(what, "Take a --port above 1023")
    if number in (None, errno.EADDRNOTAVAIL):
        what = f"{host[:80]!r} is no address of this machine"
        hint = "Take --host 127.0.0.1 for this machine alone, 0.0.0.0 for others too"
        return ClusterError(what, hint)
    what = f"cannot listen at {host}:{port}: {error.strerror}"
    return ClusterError(what, "Take another --port")


def _check_access(settings: Settings, host: str) -> None:
    """Raise ConfigError if others could call without a key, or there is no key."""
    if settings.api_keys is None and host not in LOOPBACK:
        problem = f"without --api-keys only this machine is served, not --host {host}"
        raise ConfigError([f"{problem}: make a file with `fedray keys add FILE` first"])
    if settings.api_keys is not None and not read_keys(settings.api_keys):
        raise ConfigError(
            [f"no key in {settings.api_keys}: `fedray keys add` makes one"]
        )


def _with_files_for_connections(settings: Settings) -> Settings:
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


def _log_harmless_lines() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(HarmlessLines("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


ACTOR = ray.remote(HttpServer)  # once: a second class would be another one to Ray
