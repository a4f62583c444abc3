"""The service as an application of Ray Serve."""

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
from fedray.federation import connected
from fedray.service import asgi, http_limits
from fedray.service.auth import read_keys
from fedray.service.settings import LOOPBACK, Settings

NAME = "fedray"
MAX_CALLS = 200  # at a time; a blocking /train is one of them
MAX_WAITING = 200  # more are told to come again
HEAD = {"node:__internal_head__": 0.001}  # folders are on one node's disk
LOG = logging.getLogger("fedray")


class Service:
    """One replica: the ASGI application, made where it runs."""

    def __init__(self, settings: dict[str, Any]):
        self.settings = Settings(**settings)

    def __serve_build_asgi_app__(self) -> Any:
        """What Serve asks for once the replica is up."""
        return asgi.build(self.settings)


def application(settings: Settings, resources: dict[str, float]) -> Any:
    """The Serve application of these settings."""
    deployment = ray_serve.deployment(
        ray_serve.ingress(None)(Service),
        name=NAME,
        num_replicas=1,
        max_ongoing_requests=MAX_CALLS,
        max_queued_requests=MAX_WAITING,
        ray_actor_options={"num_cpus": 0, "resources": resources},
        graceful_shutdown_timeout_s=2,
        health_check_period_s=5,
    )
    return deployment.bind(dataclasses.asdict(settings))


app = application(Settings.from_environment(), HEAD)


def start(settings: Settings, host: str, port: int) -> None:
    """Run the service on the cluster this process is connected to.

    Raises
    ------
    ConfigError
        If it would serve others without keys, or the keys cannot be read.
    """
    if settings.api_keys is None and host not in LOOPBACK:
        told = f"without --api-keys only this machine is served, not --host {host}"
        raise ConfigError([f"{told}: make a file with `fedray keys add FILE` first"])
    if settings.api_keys is not None and not read_keys(settings.api_keys):
        raise ConfigError(
            [f"no key in {settings.api_keys}: `fedray keys add` makes one"]
        )
    _check_port(host, port)
    here = ray.get_runtime_context().get_node_id()
    node = next(n for n in ray.nodes() if n["NodeID"] == here)
    own = f"node:{node['NodeManagerAddress']}"
    try:
        options = HTTPOptions(host=host, port=port)
        ray_serve.start(proxy_location="HeadOnly", http_options=options)
        ray_serve.run(application(settings, {own: 0.001}), name=NAME)
    except (RuntimeError, ValueError, OSError) as error:
        what = f"the service does not start: {str(error)[:500]}"
        raise ClusterError(what, "Is another one running, or the port taken?") from None
    if not _answers(host, port):
        what = f"Serve runs on this cluster, but not at {host}:{port}"
        raise ClusterError(what, "End it with `serve shutdown`, or take its address.")


def _check_port(host: str, port: int) -> None:
    """See that no other program is at this address; Serve itself may be."""
    running = {one["name"] for one in ray.util.list_named_actors(True)}
    if not running & {"SERVE_CONTROLLER_ACTOR"} and _answers(host, port):
        what = f"another program listens at {host}:{port}"
        raise ClusterError(what, "Take another --port.")


def _answers(host: str, port: int) -> bool:
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        socket.create_connection((near, port), 5).close()
    except OSError:
        return False
    return True


def serve(settings: Settings, host: str, port: int) -> None:
    """Serve until Ctrl-C. On a cluster that runs by itself, federations go on."""
    os.environ.setdefault(http_limits.VARIABLE, http_limits.NAME)
    with connected() as stays:
        start(settings, host, port)
        LOG.info("fedray serves http://%s:%d, stop it with Ctrl-C", host, port)
        ended = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
        try:
            while not ended.wait(1):
                pass
        finally:
            if stays:
                _take_down()


def _take_down() -> None:
    """Leave a cluster as it was found; Serve may be others' too."""
    ray_serve.delete(NAME)
    if not ray_serve.status().applications:
        ray_serve.shutdown()
