"""``fedray serve``: starts the REST service."""

import argparse
from pathlib import Path
from typing import Any

from fedray.service.settings import Settings


def add(commands: Any) -> None:
    """Add the command to the parser."""
    serve = commands.add_parser("serve", help="start the REST service")
    default = Settings()
    serve.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1")
    serve.add_argument("--port", type=int, default=8000, help="default 8000")
    serve.add_argument(
        "--root",
        default=default.root,
        help=f"folder of all federations ({default.root})",
    )
    serve.add_argument(
        "--api-keys", help="file of `fedray keys`; without: loopback only"
    )
    serve.add_argument("--data-root", help="folder that data_path may point into")
    serve.add_argument(
        "--allow-custom-handlers",
        action="store_true",
        help="let clients upload handlers: code",
    )
    serve.set_defaults(command=_serve)


def _serve(arguments: argparse.Namespace) -> None:
    from fedray.service import serve

    settings = Settings(
        root=arguments.root,
        api_keys=_absolute(arguments.api_keys),
        data_root=_absolute(arguments.data_root),
        allow_custom_handlers=arguments.allow_custom_handlers,
    )
    serve(settings, arguments.host, arguments.port)


def _absolute(path: str | None) -> str | None:
    return path and str(Path(path).expanduser().absolute())
