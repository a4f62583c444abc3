"""Where the numbers come from: settings, versions, commit, how to run it again."""

import json
import os
import platform
import shlex
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from fedray.report.formatting import text

PACKAGES = ("fedray", "ray", "torch", "numpy")
N_LINES = 2_000  # of the config; a federation may list very many parties


def repeat(folder: Path) -> str:
    """The command that runs the same settings again."""
    config = shlex.quote(str(folder.expanduser().absolute() / "config.yaml"))
    command = f"fedray run {config} \\\n  --run-dir NEW"
    return f"<pre>{text(command)}</pre>"


def settings(config: dict[str, Any]) -> str:
    """The resolved config as YAML."""
    plain = json.loads(json.dumps(config, default=str))
    lines = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).splitlines()
    if len(lines) > N_LINES:
        more = f"# {len(lines) - N_LINES:,} more lines are in config.yaml"
        lines[N_LINES:] = [more]
    yaml_text = "\n".join(lines)
    return f"<pre>{text(yaml_text)}</pre>"


def versions() -> str:
    """What ran: Python, packages, the commit of the working folder if it has one."""
    found = {"python": platform.python_version()}
    found |= {name: _version(name) for name in PACKAGES}
    if commit := _commit():
        found["git commit"] = commit
    items = "".join(
        f"<dt>{name}</dt><dd>{text(what)}</dd>" for name, what in found.items()
    )
    return f'<dl class="facts">{items}</dl>'


def _version(package: str) -> str:
    """From what is installed: importing torch only for its number takes seconds."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Empty where git, a repository or a first commit is missing."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    quiet = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=5, check=True, env=quiet
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return done.stdout.strip().replace("-dirty", " with uncommitted changes")
