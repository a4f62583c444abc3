"""Address files: which runs of this user are alive, and at which Ray cluster each is.

A run writes one when it has connected to its cluster, and deletes it at its end. What a
killed run leaves behind is recognised by its folder, which nobody has locked any more.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedray import durable_files
from fedray.checkpoint import is_locked
from fedray.federation.host_checks import state_folder

LOG = logging.getLogger("fedray")


@dataclass(frozen=True)
class RunAddress:
    """Where a run is alive.

    folder : of the run.
    cluster : address of its Ray cluster, HOST:PORT; empty while the run connects.
    host : name of the machine that its driver runs on.
    """

    run: str
    folder: str
    cluster: str
    host: str

    @property
    def is_here(self) -> bool:
        """Whether the driver runs on this machine."""
        return self.host == socket.gethostname()


@contextlib.contextmanager
def announce_run(run: str, folder: Path) -> Iterator[Callable[[str], None]]:
    """Have an address file for a run whose folder this process has locked.

    Yields a function that adds the address of the run's cluster to it. A file that
    cannot be written is logged: the run goes on without it.
    """
    here = RunAddress(run, str(folder), "", socket.gethostname())
    with _address_file(folder) as file:

        def announce(cluster: str) -> None:
            _write(file, dataclasses.replace(here, cluster=cluster))

        announce("")
        yield announce


@contextlib.contextmanager
def _address_file(folder: Path) -> Iterator[Path | None]:
    """The address file of the run in a folder; deleted afterwards."""
    try:
        parent = state_folder() / "running"
        durable_files.make_folder(parent, 0o700)
    except OSError as error:
        _warn(error)
        yield None
        return
    file = parent / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.json"
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def _write(file: Path | None, entry: RunAddress) -> None:
    try:
        if file is not None:
            text = json.dumps(dataclasses.asdict(entry))
            durable_files.write_text(file, text, mode=0o600)
    except OSError as error:
        _warn(error)


def _warn(error: OSError) -> None:
    why = f"{error.filename}: {error.strerror or error}"
    LOG.warning("fedray status and stop will not find this run: %s", why)


def find_runs(run: str | None = None) -> list[RunAddress]:
    """Runs of this user that are alive, by name; on this machine, or sharing its home.

    run : only those with this name or folder.
    """
    try:
        files = sorted(state_folder().joinpath("running").glob("[!.]*.json"))
    except OSError:
        return []
    entries = [entry for file in files if (entry := _read(file)) is not None]
    if run is not None:
        folder = os.path.abspath(os.path.expanduser(run))
        entries = [e for e in entries if run == e.run or folder == e.folder]
    return sorted(entries, key=lambda entry: (entry.run, entry.folder))


def _read(file: Path) -> RunAddress | None:
    """An address file, unless its run has ended, or it cannot be read."""
    try:
        entry = RunAddress(**json.loads(file.read_text(encoding="utf-8")))
        folder = Path(entry.folder)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    if not all(isinstance(value, str) for value in dataclasses.astuple(entry)):
        return None
    if entry.is_here and not is_locked(folder):
        if not folder.exists():  # nothing can run there: no run writes this file now
            with contextlib.suppress(OSError):
                file.unlink()
        return None
    return entry
