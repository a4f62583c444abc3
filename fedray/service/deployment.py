"""The service as an application of Ray Serve: ``serve run fedray.service:app``.

For clusters whose operator has Serve already. Serve's proxy and replica hold unread
answers and bodies in memory: docs/rest-api.md says what has to stand before them.
``fedray serve`` has a server of its own instead (`http_server`).
"""

import dataclasses
from typing import Any

from ray import serve as ray_serve

from fedray.service import asgi
from fedray.service.auth import AuthMiddleware
from fedray.service.settings import Settings

NAME = "fedray"
HEAD_NODE = {"node:__internal_head__": 0.001}  # folders are on one node's disk
MAX_CALLS = 1000  # in Serve's queue; the service's own limits are lower


class Service:
    """One replica: the ASGI application, built in the process that runs it."""

    def __init__(self, settings: dict[str, Any]):
        self.settings = Settings(**settings)

    def __serve_build_asgi_app__(self) -> AuthMiddleware:
        """The application, which Serve asks for once the replica is up."""
        return asgi.build(self.settings)


def application(settings: Settings) -> Any:
    """The Serve application with these settings, on the head node."""
    deployment = ray_serve.deployment(
        name=NAME,
        num_replicas=1,
        max_ongoing_requests=MAX_CALLS,
        max_queued_requests=MAX_CALLS,
        ray_actor_options={"num_cpus": 0, "resources": HEAD_NODE},
        graceful_shutdown_timeout_s=2,
        health_check_period_s=5,
        logging_config={"enable_access_log": False},  # it has paths as they came
    )
    service = deployment(ray_serve.ingress(None)(Service))
    return service.bind(dataclasses.asdict(settings))


app = application(Settings.from_environment())
