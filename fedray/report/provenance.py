"""Provenance of a run: its settings, package versions, commit, and how to repeat it."""

import json
import os
import platform
import shlex
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from fedray.report.formatting import escape

PACKAGES = ("fedray", "ray", "torch", "numpy")
N_LINES = 2_000  # of the config; a federation may list very many parties


def repeat_command(folder: Path) -> str:
    """HTML of the command that runs the same settings again."""
    config = shlex.quote(str(folder.expanduser().absolute() / "config.yaml"))
    command = f"fedray run {config} \\\n  --run-dir NEW"
    return f"<pre>{escape(command)}</pre>"


def settings_yaml(config: dict[str, Any]) -> str:
    """HTML of the resolved config as YAML."""
    plain = json.loads(json.dumps(config, default=str))
    lines = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).splitlines()
    if len(lines) > N_LINES:
        lines[N_LINES:] = [f"# {len(lines) - N_LINES:,} more lines are in config.yaml"]
    text = "\n".join(lines)
    return f"<pre>{escape(text)}</pre>"


def version_list() -> str:
    """HTML list of the versions of Python and packages, and the git commit if any."""
    versions = {"python": platform.python_version()}
    versions |= {name: _version(name) for name in PACKAGES}
    if commit := _commit():
        versions["git commit"] = commit
    items = "".join(
        f"<dt>{name}</dt><dd>{escape(version)}</dd>"
        for name, version in versions.items()
    )
    return f'<dl class="facts">{items}</dl>'


def _version(package: str) -> str:
    """Version of an installed package, without importing it: torch takes seconds."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Commit of the working folder; empty without git, a repository or a commit."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    env = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=5, check=True, env=env
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return done.stdout.strip().replace("-dirty", " with uncommitted changes")
