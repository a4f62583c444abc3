"""The edges' door: an HTTP listener of its own that answers ``/edge/v1`` and no more.

`fedray.edges.protocol` declares its calls. `actor` is what runs on the cluster,
`calls` the ASGI application, `open_runs` what it knows of each run, `board` the open
tasks, `uploads` the files that arrive, `tls` its certificates and handshakes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedray.errors import MissingExtra

if TYPE_CHECKING:
    from fedray.edge_door.actor import DoorSettings as DoorSettings

__all__ = ["DoorSettings"]


def __getattr__(name: str) -> Any:
    """Import uvicorn and Ray when the door is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'fedray.edge_door' has no attribute {name!r}")
    try:
        module = import_module("fedray.edge_door.actor")
    except ModuleNotFoundError as error:
        if (error.name or "fedray").split(".")[0] == "fedray":
            raise
        raise MissingExtra("the edges' door", "serve") from error
    return getattr(module, name)
