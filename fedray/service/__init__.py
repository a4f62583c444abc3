"""The REST service: the Model Fusion API on Ray Serve.

`fedray.service:app` is the Serve application, configured by environment variables (see
`fedray.service.settings`); `serve` runs it as ``fedray serve`` does. Packages of the
extra `serve` are imported only when one of the two is first used.
"""

from typing import Any

from fedray.errors import MissingExtra

__all__ = ["app", "serve"]


def __getattr__(name: str) -> Any:
    """Import Serve and FastAPI when the application is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'fedray.service' has no attribute {name!r}")
    try:
        from fedray.service import deployment
    except ModuleNotFoundError as error:
        if (error.name or "fedray").split(".")[0] == "fedray":
            raise
        raise MissingExtra("the REST service", "serve") from error
    return getattr(deployment, name)
