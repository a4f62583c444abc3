"""Lock and config of a run's folder: one process at a time, and one run only."""

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedray import durable_files
from fedray.checkpoint.frozen import RESTORE_IT
from fedray.checkpoint.run_folder import RunFolder, write_file
from fedray.checkpoint.run_inputs import RunInputs, keep_inputs, replace_run_id
from fedray.config import (
    PATH_KEYS,
    FederationConfig,
    nested_resume_settings,
    parse,
    read_yaml,
    resume_settings,
    schedule_of,
)
from fedray.config.yaml_text import dump
from fedray.errors import ConfigError, RunFolderError, format_count, shorten
from fedray.privacy.run_ledger import become_new_run

RATE_KEYS = ("learning_rate", "scheduler", "scheduler_args", "scheduler_every")
RUNS = Path(".fedray", "runs")  # in the home folder


def runs_folder() -> Path:
    """Folder of runs that were started without `run_dir`.

    Raises
    ------
    RunFolderError
        If this user has no home, as in some containers.
    """
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and no entry in passwd
        remedy = "Set HOME, or name a folder with --run-dir"
        raise RunFolderError("~/.fedray/runs", "HOME is not set", remedy) from None
    return home / RUNS


@contextlib.contextmanager
def open_run_folder(
    path: Path,
    config: FederationConfig,
    resume: bool,
    digests: Mapping[str, str] | None = None,
    as_new_run: bool = False,
) -> Iterator[tuple[RunFolder, RunInputs]]:
    """Lock a run's folder for this process and write the resolved config into it.

    digests : of the files that the run is made of, from `digest_inputs`.
    as_new_run : go on as a run of its own, with another id and key of privacy: for a
        copy of a run's folder.

    Raises
    ------
    RunFolderError
        If it holds another run, began with other code or another model, is in use, or
        cannot be written.
    """
    folder = RunFolder(path, config.keep_checkpoints)
    is_run = _is_run(path)
    with lock_folder(path):
        if is_run:  # or it would look through all that lies there
            durable_files.remove_leftovers(path)
        rates = _check_folder(folder, config, resume)
        if as_new_run:
            replace_run_id(path, become_new_run(path))
        folder.check_ledger()
        inputs = keep_inputs(folder, digests or {})
        write_config(path, config)
        yield folder, dataclasses.replace(inputs, changed_rates=rates)


def _is_run(path: Path) -> bool:
    """Whether a run has begun in a folder.

    Raises
    ------
    RunFolderError
        If it has files of that kind that no run wrote, or cannot be looked at.
    """
    try:
        if (path / ".lock").exists():
            return True
        names = ("config.yaml", "history.jsonl", "checkpoints")
        foreign = next((name for name in names if (path / name).exists()), None)
    except OSError as error:  # a name too long, a link to itself
        raise _cannot_write(path, error) from None
    if foreign:
        reason = f"has a {foreign} that no run wrote; choose a folder of its own"
        raise RunFolderError(str(path), reason)
    return False


def _is_in_home(path: Path) -> bool:
    """Whether a run's folder is where those are that nobody named."""
    return path.parent.parts[-2:] == RUNS.parts


def _cannot_write(path: Path, error: OSError) -> RunFolderError:
    where = "" if str(error.filename) == str(path) else f": {error.filename}"
    reason = f"cannot be written: {error.strerror}{shorten(where)}"
    remedy = "Name a folder with --run-dir that you can write"
    if _is_in_home(path):
        remedy = "Set HOME to a folder of yours, or name one with --run-dir"
    return RunFolderError(shorten(str(path)), reason, remedy)


@contextlib.contextmanager
def lock_folder(path: Path) -> Iterator[None]:
    """Lock a folder, which is made if need be, against other processes.

    Raises
    ------
    RunFolderError
        If another process has locked it, or it cannot be written.
    """
    try:
        durable_files.make_folder(path, 0o700 if _is_in_home(path) else 0o777)
        lock = (path / ".lock").open("w")
    except OSError as error:
        raise _cannot_write(path, error) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            reason = "another process is running in it; wait for it or stop it"
            raise RunFolderError(str(path), reason) from None
        yield


def is_locked(path: Path) -> bool:
    """Whether a process has locked the folder."""
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
    write_file(path, "config.yaml", dump(config.to_dict()))


def with_membership_changes(path: Path, config: FederationConfig) -> FederationConfig:
    """Add to a config who has joined and left the run in this folder since it began.

    A config that lists other parties than the run began with is returned unchanged.

    Raises
    ------
    RunFolderError
        If the run's config.yaml cannot be used.
    """
    if not os.path.exists(path / ".lock"):
        return config  # there is no such run yet
    if not RunFolder(path).is_started() and not (path / "config.yaml").exists():
        return config  # it was stopped before it had written anything
    saved = _config_before(path).parties
    listed = config.parties
    names = [party.name for party in saved[: len(listed)]]
    if not listed or names != [party.name for party in listed]:
        return config
    own = [
        party.with_changes(
            joined=before.joined or party.joined,
            left=before.left or party.left,
        )
        for party, before in zip(listed, saved, strict=False)
    ]
    parties = (*own, *saved[len(listed) :])
    return config.with_changes(parties=parties, num_parties=len(parties))


def _config_before(path: Path) -> FederationConfig:
    """The config that a run in a folder has had until now.

    Raises
    ------
    RunFolderError
        If it cannot be read, or has been altered to one that cannot be.
    """
    try:
        config, mistakes = parse(read_yaml(path / "config.yaml"))
    except ConfigError as error:
        mistakes = error.problems
    if mistakes:
        reason = f"its config.yaml is lost or has been altered: {'; '.join(mistakes)}"
        raise RunFolderError(str(path), reason, RESTORE_IT)
    return config


def _check_folder(
    folder: RunFolder, config: FederationConfig, resume: bool
) -> list[str]:
    """Refuse the folder of another run; sentences about a changed learning rate."""
    if not folder.is_started():
        return []
    if not resume:
        done = format_count(len(folder.history()), "round")
        reason = (
            f"already holds a run ({done} done). Go on with --resume, or take "
            "another folder with --run-dir or another name=..."
        )
        raise RunFolderError(str(folder.path), reason)
    before = _config_before(folder.path)
    folder.check()
    if changes := _fixed_changes(before, config):
        reason = f"cannot go on with another config: {', '.join(changes)}"
        raise RunFolderError(str(folder.path), reason)
    return _rate_changes(before, config)


def changed_settings(path: Path, config: FederationConfig) -> list[str]:
    """What of a config is another than the run in a folder has had; rates too.

    Raises
    ------
    RunFolderError
        If the run's config.yaml cannot be used.
    """
    if not RunFolder(path).is_started():
        return []
    before = _config_before(path)
    return _fixed_changes(before, config) + _rate_changes(before, config)


def _fixed_changes(before: FederationConfig, now: FederationConfig) -> list[str]:
    """Settings that decide the result and are not what they were."""
    old, new = _fixed_settings(before), _fixed_settings(now)
    changed = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    return [f"{key} was {old.get(key)}, is {new.get(key)}" for key in changed]


def _rate_changes(before: FederationConfig, now: FederationConfig) -> list[str]:
    """What a resumed run does with another learning rate than it had before."""
    old, new = before.to_dict(), now.to_dict()
    keys, schedule = list(RATE_KEYS), schedule_of(now)
    if schedule is not None and schedule.follows_rounds:
        keys.append("rounds")
    return [
        f"{key} was {old.get(key)}, is {new.get(key)} from here on"
        + (f": scheduler {now.scheduler} goes by it" if key == "rounds" else "")
        for key in keys
        if old.get(key) != new.get(key)
    ]


def _fixed_settings(config: FederationConfig) -> dict[str, Any]:
    """Settings that decide the result; files by their names, since jobs move them."""
    may_change = resume_settings()
    if config.dp_sgd is not None:  # the parties' ledgers lie there
        may_change -= {"party_dir"}
    plain = {k: v for k, v in config.to_dict().items() if k not in may_change}
    for key, own in nested_resume_settings().items():
        if key in plain:
            plain[key] = {k: v for k, v in plain[key].items() if k not in own}
    for key in PATH_KEYS:
        plain[key] = os.path.basename(plain.get(key) or "")
    for party in plain.get("parties", ()):
        for key in ("data", "data_handler"):
            party[key] = os.path.basename(party.get(key) or "")
    if "partition" in plain:
        source = os.path.basename(plain["partition"]["source"])
        plain["partition"] = {**plain["partition"], "source": source}
    return plain
