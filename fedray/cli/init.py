"""``fedray init``: writes a small commented project that runs as it is."""

import argparse
import os
import shlex
from importlib import resources
from pathlib import Path
from typing import Any

from fedray.errors import ConfigError

TEMPLATE = "template"
FILES = {  # as they are called in the project: as they are shipped
    "config.yaml": "config.yaml",
    "data_handler.py": "data_handler.py.txt",  # no modules of fedray
    "architecture.py": "architecture.py.txt",
    "README.md": "README.md",
}


def add(commands: Any) -> None:
    """Add the command to the parser."""
    init = commands.add_parser("init", help="write a small project that runs as it is")
    init.add_argument(
        "folder",
        nargs="?",
        default=".",
        metavar="DIR",
        help="folder to write to (default: this one)",
    )
    init.set_defaults(command=_init)


def _init(arguments: argparse.Namespace) -> None:
    """Write the project's files; nothing that is there is overwritten."""
    folder = Path(arguments.folder).expanduser()
    existing = [name for name in FILES if os.path.lexists(folder / name)]
    if existing:
        got = f"{folder} already has {', '.join(existing)}: nothing was written"
        raise ConfigError([f"{got}; take another folder"])
    template = resources.files("fedray.cli") / TEMPLATE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, shipped in FILES.items():
            text = (template / shipped).read_text(encoding="utf-8")
            (folder / name).write_text(text, encoding="utf-8")
            print(folder / name)
    except OSError as error:
        raise ConfigError([f"cannot write to {folder}: {error.strerror}"]) from None
    print(f"run it: fedray run {shlex.quote(str(folder / 'config.yaml'))}")
