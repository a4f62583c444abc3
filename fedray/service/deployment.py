"""Deployment of the service on Ray Serve: the application, its start and its end."""

import dataclasses
import logging
import os
import signal
import socket
import threading
from typing import Any

import ray
from ray import serve as ray_serve
from ray.serve.config import HTTPOptions

from fedray.errors import ClusterError, ConfigError
from fedray.federation import cluster_connection
from fedray.service import asgi, http_limits
from fedray.service.auth import AuthMiddleware, read_keys
from fedray.service.settings import LOOPBACK, Settings
from fedray.service.terminal import FederationLines
from fedray.untrusted_text import escape

NAME = "fedray"
MAX_CALLS = 200  # at a time; a blocking /train is one of them
MAX_WAITING = 200  # calls in line; more are refused with 503
HEAD_NODE = {"node:__internal_head__": 0.001}  # folders are on one node's disk
LOG = logging.getLogger("fedray")


class Service:
    """One replica: the ASGI application, built in the process that runs it."""

    def __init__(self, settings: dict[str, Any]):
        self.settings = Settings(**settings)

    def __serve_build_asgi_app__(self) -> AuthMiddleware:
        """The application, which Serve asks for once the replica is up."""
        return asgi.build(self.settings)


def application(settings: Settings, resources: dict[str, float]) -> Any:
    """The Serve application with these settings, on a node with these resources."""
    deployment = ray_serve.deployment(
        name=NAME,
        num_replicas=1,
        max_ongoing_requests=MAX_CALLS,
        max_queued_requests=MAX_WAITING,
        ray_actor_options={"num_cpus": 0, "resources": resources},
        graceful_shutdown_timeout_s=2,
        health_check_period_s=5,
    )
    service = deployment(ray_serve.ingress(None)(Service))
    return service.bind(dataclasses.asdict(settings))


app = application(Settings.from_environment(), HEAD_NODE)


def start(settings: Settings, host: str, port: int) -> None:
    """Run the service on the cluster this process is connected to.

    Raises
    ------
    ConfigError
        If it would serve others without keys, or the keys cannot be read.
    ClusterError
        If Serve does not start, or not at this address.
    """
    _check_access(settings, host)
    _check_port(host, port)
    node_id = ray.get_runtime_context().get_node_id()
    node = next(n for n in ray.nodes() if n["NodeID"] == node_id)
    resource = f"node:{node['NodeManagerAddress']}"
    try:
        options = HTTPOptions(host=host, port=port)
        ray_serve.start(proxy_location="HeadOnly", http_options=options)
        ray_serve.run(application(settings, {resource: 0.001}), name=NAME)
    except (RuntimeError, ValueError, OSError) as error:
        what = f"the service does not start: {str(error)[:500]}"
        raise ClusterError(what, "Is another one running, or the port taken?") from None
    if not _is_listening(host, port):
        what = f"Serve runs on this cluster, but not at {host}:{port}"
        raise ClusterError(what, "End it with `serve shutdown`, or take its address.")


def _check_access(settings: Settings, host: str) -> None:
    """Raise ConfigError if others could call without a key, or there is no key."""
    if settings.api_keys is None and host not in LOOPBACK:
        problem = f"without --api-keys only this machine is served, not --host {host}"
        raise ConfigError([f"{problem}: make a file with `fedray keys add FILE` first"])
    if settings.api_keys is not None and not read_keys(settings.api_keys):
        raise ConfigError(
            [f"no key in {settings.api_keys}: `fedray keys add` makes one"]
        )


def _check_port(host: str, port: int) -> None:
    """Raise ClusterError if a program other than Serve listens at this address."""
    names = {actor["name"] for actor in ray.util.list_named_actors(True)}
    if "SERVE_CONTROLLER_ACTOR" not in names and _is_listening(host, port):
        what = f"another program listens at {host}:{port}"
        raise ClusterError(what, "Take another --port.")


def _is_listening(host: str, port: int) -> bool:
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        socket.create_connection((address, port), 5).close()
    except OSError:
        return False
    return True


def serve(settings: Settings, host: str, port: int) -> None:
    """Serve until Ctrl-C. On a cluster that runs by itself, federations continue."""
    _check_access(settings, host)  # before a cluster is started
    os.environ.setdefault(http_limits.VARIABLE, http_limits.IMPORT_PATH)
    with cluster_connection() as is_shared:
        start(settings, host, port)
        LOG.info("fedray serves http://%s:%d, stop it with Ctrl-C", host, port)
        terminated = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: terminated.set())
        try:
            lines = FederationLines(settings.folder)
            while not terminated.wait(1):
                for line in lines.new_lines():
                    LOG.info("%s", escape(line))
        finally:
            if is_shared:
                _undeploy()


def _undeploy() -> None:
    """Remove the service; shut Serve down unless others use it too."""
    ray_serve.delete(NAME)
    if not ray_serve.status().applications:
        ray_serve.shutdown()
