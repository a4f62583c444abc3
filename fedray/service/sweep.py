"""Sweep: ends and deletes what killed processes left behind, and what nobody took.

It runs at the start of the service and several times a minute, in one process of the
service at a time, and logs a line for each thing that it ends or deletes.
"""

import asyncio
import contextlib
import logging
import re
import shutil
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import ray

from fedray import durable_files
from fedray.errors import CallRefused
from fedray.placement import run_label
from fedray.service import file_locks, lifecycle, stop_record, store
from fedray.service.settings import Settings
from fedray.service.store import FAILED, STOPPED, TRAINED, TRAINING, WAITING, State

EVERY_S = 15.0
N_AT_ONCE = 8  # federations
SETTLE_S = 5.0  # in which an actor ends by itself once its training has
UPLOAD_S = 5.0  # after which an upload that nobody holds is of a killed process
JOIN_S = 3600.0  # the same in a federation that trains: its actor may take it in
DAY_S = 86400.0
LOCK = ".sweep.lock"
ACTOR = re.compile(r"(?:federation|aggregator|party):([^:]+)(?::.*)?")
LOG = logging.getLogger("fedray")


class Sweep:
    """Keeps the folder of one service, and the actors of its federations, clean."""

    def __init__(self, settings: Settings):
        self.settings, self.root = settings, settings.folder
        # of this service, also of folders that are gone, by what actors are named after
        self.ids: dict[str, str] = {}
        self.states: dict[str, tuple[tuple[int, ...], State | None]] = {}  # as read
        self.clean: dict[str, tuple[int, ...]] = {}  # versions without litter

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            try:
                await self.sweep()
            except Exception:
                LOG.exception("the sweep of %s", self.root)
            await asyncio.sleep(EVERY_S)

    async def sweep(self) -> None:
        """Sweep once, unless another process does."""
        store.upload_folder(self.root)
        with file_locks.holding(self.root / LOCK) as is_first:
            if not is_first:
                return
            folders = await asyncio.to_thread(store.federation_folders, self.root)
            self.ids.update({run_label(one.name): one.name for one in folders})
            turns = asyncio.Semaphore(N_AT_ONCE)
            for work in (self._resume, self._sweep_federation):
                await asyncio.gather(*(_try(work, one, turns) for one in folders))
            await asyncio.to_thread(_delete_uploads_of_killed, self.root)
            await self._end_orphans()

    async def _resume(self, folder: Path) -> None:
        """Let a training go on that has no actor: killed with it, or with Ray."""
        state = await asyncio.to_thread(self._load, folder)
        if state is None or state.state != TRAINING:
            return
        if stop_record.is_requested(folder):
            return
        if await asyncio.to_thread(lifecycle.resume_training, folder):
            LOG.warning("%s: its training had no actor, and goes on", folder.name)

    async def _sweep_federation(self, folder: Path) -> None:
        state = await asyncio.to_thread(self._load, folder)
        if state is None:
            return
        if await asyncio.to_thread(stop_record.has_abandoned_stop, folder):
            LOG.warning("%s: a stop that was cut off goes on", folder.name)
            await lifecycle.stop(folder)
        elif state.state == STOPPED and self._is_old(folder):
            LOG.warning("%s: deleted, since it was stopped days ago", folder.name)
            await asyncio.to_thread(remove, folder)
        elif state.state in (WAITING, TRAINED, FAILED) and self._is_idle(folder):
            LOG.warning("%s: stopped, since nobody called for days", folder.name)
            await lifecycle.stop(folder)
        else:
            await asyncio.to_thread(self._clean, folder)

    def _clean(self, folder: Path) -> None:
        """Clean a federation's folder, unless nothing has changed there since."""
        version = _version_with_files(folder)
        if self.clean.get(folder.name) != version and clean(folder):
            self.clean[folder.name] = _version_with_files(folder)

    def _load(self, folder: Path) -> State | None:
        """The state of a federation; None if it has none, or a damaged one."""
        version = store.version(folder)
        before, state = self.states.get(folder.name, ((), None))
        if not version:
            _delete_uploads_of_nobody(folder)
            return None
        if version != before:
            try:
                state = store.load(folder)
            except (ValueError, TypeError, OSError) as error:
                LOG.error("%s: its %s is damaged: %s", folder.name, store.FILE, error)
                state = None
            self.states[folder.name] = version, state
        return state

    def _is_old(self, folder: Path) -> bool:
        days = self.settings.keep_stopped_days
        age_s = time.time() - stop_record.stopped_at(folder)
        return days is not None and age_s > days * DAY_S

    def _is_idle(self, folder: Path) -> bool:
        days = self.settings.end_idle_days
        return days is not None and time.time() - store.last_call(folder) > days * DAY_S

    async def _end_orphans(self) -> None:
        """End actors of federations that do not train: of their own, parties'."""
        orphans = await asyncio.to_thread(lambda: {*self._orphans()})
        if orphans:
            await asyncio.sleep(SETTLE_S)
            still = await asyncio.to_thread(lambda: {*self._orphans()})
            for name, namespace in sorted(orphans & still):
                LOG.warning("%s: ended, since its federation does not train", name)
                with contextlib.suppress(ValueError):  # it has ended by itself
                    ray.kill(await asyncio.to_thread(ray.get_actor, name, namespace))

    def _orphans(self) -> Iterator[tuple[str, str]]:
        for actor in ray.util.list_named_actors(all_namespaces=True):
            match = ACTOR.fullmatch(actor["name"])
            id = self.ids.get(match[1]) if match else None
            if id and not self._may_train(id):
                yield actor["name"], actor["namespace"]

    def _may_train(self, id: str) -> bool:
        try:
            state = store.load(self.root / id)
        except (ValueError, TypeError, OSError):
            return True  # damaged: nobody knows
        return state is not None and state.state == TRAINING


async def _try(
    work: Callable[[Path], Coroutine[Any, Any, None]],
    folder: Path,
    turns: asyncio.Semaphore,
) -> None:
    async with turns:
        try:
            await work(folder)
        except CallRefused:
            pass  # deleted meanwhile, or busy: next time
        except Exception:
            LOG.exception("the sweep of %s", folder)


def _version_with_files(folder: Path) -> tuple[int, ...]:
    """Numbers that differ once the state, or which files there are, has changed."""
    times = [0, 0]
    with contextlib.suppress(OSError):
        times = [(folder / one).stat().st_mtime_ns for one in ("", store.UPLOADS)]
    return (*store.version(folder), *times)


def clean(folder: Path) -> bool:
    """Delete uploads that no party has, and files that were half written.

    False if there is an upload that a call may still take in.
    """
    with store.lock(folder, timeout_s=0):
        state = store.read(folder)
        min_age_s = UPLOAD_S
        if state.is_in_training:
            min_age_s = JOIN_S
        elif not state.is_stopping:
            durable_files.remove_leftovers(folder)
        own = {Path(state.model_file or "").name}
        for party in state.parties if state.state != STOPPED else ():
            own |= {Path(party[key].rpartition(":")[0] or party[key]).name
                    for key in ("data", "data_handler")}  # fmt: skip
        others = [path for path in store.uploads_in(folder) if path.name not in own]
        litter = [path for path in others if _is_of_killed(path, min_age_s)]
        for path in litter:
            LOG.warning("%s: deleted, an upload of no party", path)
            path.unlink()
        return litter == others


def remove(folder: Path) -> None:
    """Delete a federation's folder: at once to all who look, whenever it is cut off."""
    aside = folder.parent / store.INCOMING / f"{folder.name}.old"
    with store.lock(folder):
        durable_files.move(folder, aside)
    shutil.rmtree(aside)


def _delete_uploads_of_nobody(folder: Path) -> None:
    """Delete the uploads in a folder that is no federation's any more."""
    for path in store.uploads_in(folder):
        if _is_of_killed(path, UPLOAD_S):
            LOG.warning("%s: deleted, an upload of no federation", path)
            path.unlink()


def _delete_uploads_of_killed(root: Path) -> None:
    """Delete uploads under way of processes that are no more."""
    for path in (root / store.INCOMING).iterdir():
        held = path / store.LOCK if path.is_dir() else path
        if _is_of_killed(path, UPLOAD_S) and not file_locks.is_held(held):
            LOG.warning("%s: deleted, an upload that was cut off", path)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_of_killed(path: Path, min_age_s: float) -> bool:
    """Whether a file or folder is not new, and nobody holds it."""
    try:
        age_s = time.time() - path.stat().st_ctime
    except FileNotFoundError:
        return False
    return age_s > min_age_s and (path.is_dir() or not file_locks.is_held(path))
