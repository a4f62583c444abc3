"""``fedray ui``: one page for all runs on this machine."""

import argparse
from pathlib import Path
from typing import Any

from fedray.errors import ConfigError, MissingExtra


def add(commands: Any) -> None:
    """Add the command to the parser."""
    ui = commands.add_parser("ui", help="show all runs on this machine as a web page")
    ui.add_argument(
        "--port", type=int, default=8400, help="port to listen at (default 8400)"
    )
    ui.add_argument(
        "--runs",
        nargs="+",
        metavar="DIR",
        help="folders with runs in or below them (default: those of fedray run and "
        "fedray serve, and of every run that is alive)",
    )
    ui.add_argument(
        "--allow-stop",
        action="store_true",
        help="let the page stop runs, as fedray stop does",
    )
    ui.set_defaults(command=_ui)


def _ui(arguments: argparse.Namespace) -> None:
    folders = [Path(folder).expanduser() for folder in arguments.runs or ()]
    wrong = [str(folder) for folder in folders if not folder.is_dir()]
    if wrong:
        raise ConfigError([f"--runs {one}: there is no such folder" for one in wrong])
    try:
        from fedray.ui import serve
    except ModuleNotFoundError as error:
        if (error.name or "fedray").split(".")[0] == "fedray":
            raise
        raise MissingExtra("fedray ui", "serve") from error
    serve(folders, arguments.port, arguments.allow_stop)
