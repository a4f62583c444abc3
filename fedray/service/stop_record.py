"""Stops of federations, recorded by the name of an empty file.

A record needs no room, so that a stop works on a full disk and makes room there. It
comes before anything else that a stop does, so that no killed process loses a stop.
"""

import contextlib
import logging
import os
import time
from pathlib import Path
from typing import IO, Any

from fedray import durable_files
from fedray.service import file_locks, store
from fedray.service.store import NO_ROOM, STOP_RECORD, STOP_REQUEST, STOPPED

LOG = logging.getLogger("fedray")


def request_stop(folder: Path) -> contextlib.AbstractContextManager[Any]:
    """Record that a federation is to be stopped.

    Whoever carries it out holds the record, as a context; `has_abandoned_stop` says if
    nobody does. On a full disk the uploads are deleted first.

    Raises
    ------
    OSError
        If the disk refuses.
    """
    if store.read(folder).state == STOPPED:
        return contextlib.nullcontext()
    try:  # without the lock: who stands still with it is to be stopped, too
        return _open_stop_request(folder)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
    with store.lock(folder):
        store.delete_all_data(folder, store.read(folder))
        return _open_stop_request(folder)


def _open_stop_request(folder: Path) -> IO[bytes]:
    path = folder / STOP_REQUEST
    with durable_files.name_errors(path), path.open("ab") as record:
        durable_files.flush(folder)
        return os.fdopen(file_locks.hold(record.fileno()), "ab")


def is_requested(folder: Path) -> bool:
    """Whether a federation is being stopped, or is to be."""
    return (folder / STOP_REQUEST).exists()


def has_abandoned_stop(folder: Path) -> bool:
    """Whether a stop was requested, and whoever carried it out has been killed."""
    return is_requested(folder) and not file_locks.is_held(folder / STOP_REQUEST)


def finish_stop(folder: Path) -> None:
    """Delete what parties uploaded, and record that the federation is stopped.

    Neither needs room on the disk; what cannot be deleted is tried again by the next
    stop.

    Raises
    ------
    CallRefused
        404 if there is no such federation, 503 if its lock is not to be had.
    OSError
        If the disk refuses.
    """
    with store.lock(folder):
        state = store.read(folder)
        store.delete_all_data(folder, state)
        if state.state == STOPPED:
            (folder / STOP_REQUEST).unlink(missing_ok=True)
            return
        durable_files.move(folder / STOP_REQUEST, folder / STOP_RECORD)
        if state.started is not None and state.ended is None:
            state.ended = time.time()
        state.state = STOPPED
        try:
            store.save(folder, state)  # for its readers; the record is what counts
        except OSError as error:
            LOG.warning("%s: stopped, but not written: %s", folder, error.strerror)


def stopped_at(folder: Path) -> float:
    """When a stopped federation was stopped, in seconds since 1970."""
    for name in (STOP_RECORD, store.FILE):  # federations of 0.1.0 have no record
        with contextlib.suppress(FileNotFoundError):
            return (folder / name).stat().st_mtime
    return time.time()
