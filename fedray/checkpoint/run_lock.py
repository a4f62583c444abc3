"""Holding a run's folder for one process, and only for the run that it belongs to."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fedray import durable_files
from fedray.checkpoint.run_folder import RunFolder
from fedray.config import (
    PATH_KEYS,
    FederationConfig,
    parse,
    read_yaml,
    resume_settings,
)
from fedray.errors import ConfigError, RunFolderError


def runs_folder() -> Path:
    """Where runs lie that were not told another folder."""
    return Path.home() / ".fedray" / "runs"


@contextlib.contextmanager
def opened(path: Path, config: FederationConfig, resume: bool) -> Iterator[RunFolder]:
    """Hold a run's folder for this process, with the resolved config in it.

    Raises
    ------
    RunFolderError
        If it holds another run, is in use, or cannot be written.
    """
    folder = RunFolder(path, config.keep_checkpoints)
    ours = (path / ".lock").exists()
    for name in ("config.yaml", "history.jsonl", "checkpoints"):
        if (path / name).exists() and not ours:
            reason = f"has a {name} that no run wrote; choose a folder of its own"
            raise RunFolderError(str(path), reason)
    with held(path):
        _check_folder(folder, config, resume)
        write_config(path, config)
        yield folder


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a folder, made if need be, so that no other process runs in it.

    Raises
    ------
    RunFolderError
        If one does, or it cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
    except OSError as error:
        reason = f"cannot be written: {error.strerror}"
        raise RunFolderError(str(path), reason) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            reason = "another process is running in it; wait for it or stop it"
            raise RunFolderError(str(path), reason) from None
        yield


def is_held(path: Path) -> bool:
    """Does a process run in this folder?"""
    try:
        lock = (path / ".lock").open()
    except OSError:
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def write_config(path: Path, config: FederationConfig) -> None:
    """Replace config.yaml in a run's folder atomically; on disk when this returns.

    Raises
    ------
    RunFolderError
        If the disk refuses; what was there before is still there.
    """
    text = yaml.safe_dump(config.to_dict(), sort_keys=False)
    try:
        durable_files.write_text(path / "config.yaml", text)
    except OSError as error:
        reason = f"cannot be written: {error.strerror}; what it holds is kept"
        raise RunFolderError(str(path), reason) from None


def with_changes(path: Path, config: FederationConfig) -> FederationConfig:
    """The config, and who has joined and left the run in this folder since it began.

    One that lists other parties than the run began with is given back as it is.
    """
    try:
        kept = parse(read_yaml(path / "config.yaml"))[0].parties
    except ConfigError:
        return config  # there is no such run yet
    given = config.parties
    names = [party.name for party in kept[: len(given)]]
    if not given or names != [party.name for party in given]:
        return config
    parties = [
        party.with_changes(
            joined=before.joined or party.joined,
            left=before.left or party.left,
        )
        for party, before in zip(given, kept, strict=False)
    ]
    parties = (*parties, *kept[len(given) :])
    return config.with_changes(parties=parties, num_parties=len(parties))


def _check_folder(folder: RunFolder, config: FederationConfig, resume: bool) -> None:
    if not folder.is_started():
        return
    n_done = len(folder.history())
    if not resume:
        reason = (
            f"already holds a run ({n_done} rounds done). Go on with --resume, or take "
            "another folder with --run-dir or another name=..."
        )
        raise RunFolderError(str(folder.path), reason)
    before, _ = parse(read_yaml(folder.path / "config.yaml"))
    old, new = _essence(before), _essence(config)
    changed = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    if changed:
        told = ", ".join(f"{k} was {old.get(k)}, is {new.get(k)}" for k in changed)
        reason = f"cannot go on with another config: {told}"
        raise RunFolderError(str(folder.path), reason)


def _essence(config: FederationConfig) -> dict[str, Any]:
    """Settings that decide the result; of files their names, since jobs move them."""
    may_change = resume_settings()
    plain = {k: v for k, v in config.to_dict().items() if k not in may_change}
    for key in PATH_KEYS:
        plain[key] = os.path.basename(plain.get(key) or "")
    for party in plain.get("parties", ()):
        for key in ("data", "data_handler"):
            party[key] = os.path.basename(party.get(key) or "")
    if "partition" in plain:
        source = os.path.basename(plain["partition"]["source"])
        plain["partition"] = {**plain["partition"], "source": source}
    return plain
