"""The REST service: the Model Fusion API over HTTP.

`serve` runs it as ``fedray serve`` does, on a server of its own; `fedray.service:app`
is the same as an application of Ray Serve. Both are configured by the settings of
`fedray.service.settings`. Packages of the extra `serve` are imported only when one of
the two is first used.
"""

from importlib import import_module
from typing import Any

from fedray.errors import MissingExtra

__all__ = ["app", "serve"]
MODULES = {"app": "deployment", "serve": "http_server"}


def __getattr__(name: str) -> Any:
    """Import FastAPI and Serve, or uvicorn, when one of the two is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'fedray.service' has no attribute {name!r}")
    try:
        module = import_module(f"fedray.service.{MODULES[name]}")
    except ModuleNotFoundError as error:
        if (error.name or "fedray").split(".")[0] == "fedray":
            raise
        raise MissingExtra("the REST service", "serve") from error
    return getattr(module, name)
