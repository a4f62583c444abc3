"""Starts waiting trainings when their turn comes; of all the service's processes one.

Which one is told by a lock on a file, which the kernel frees when a process ends: then
another takes over. All that it goes by stands in the federations' folders.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

from fedray import durable_files
from fedray.errors import CallRefused, LimitReached
from fedray.service import file_locks, lifecycle, store
from fedray.service.demands import (
    check_demand,
    check_room,
    client_limit,
    demand_of,
    party_demand,
    total_limit,
)
from fedray.service.settings import Settings
from fedray.service.store import QUEUED, TRAINING, State
from fedray.service.training_queue import (
    NOTHING,
    Training,
    next_trainings,
    usage_by_client,
)

LOCK_FILE = ".scheduler.lock"  # below the service's folder
PAUSE_S = 10.0  # after a failure
POLL_S = 0.5  # between two looks whether there is room
LOG = logging.getLogger("fedray")


class Scheduler:
    """Knows the trainings of all federations, and starts those whose turn it is."""

    def __init__(self, settings: Settings):
        self.settings, self.root = settings, settings.folder
        self.is_active = False  # it is this process that starts trainings
        self._states = StateCache(self.root)
        self._joining: list[Training] = []  # parties, while they join trainings
        self._failures: dict[str, str] = {}  # by id: why trainings could not start
        self._looking = asyncio.Lock()  # held by whoever starts trainings, or a party

    async def run(self) -> None:
        """Start trainings until cancelled, once this process is the one to do so."""
        durable_files.make_folder(self.root, 0o700)
        while not self.is_active:
            with file_locks.holding(self.root / LOCK_FILE) as self.is_active:
                while self.is_active:
                    await self._start_and_wait()
            await asyncio.sleep(POLL_S)

    async def _start_and_wait(self) -> None:
        try:
            await self._look()
        except Exception:  # the service's folder cannot be read
            LOG.exception("trainings that wait cannot be started")
            await asyncio.sleep(PAUSE_S)
        await asyncio.sleep(POLL_S)

    async def _look(self) -> None:
        async with self._looking:
            await asyncio.to_thread(self.start_trainings)

    async def train(self, folder: Path) -> None:
        """Let a training wait for its turn, which may be now.

        Raises
        ------
        CallRefused
            409 if parties are missing, or it is training or done; 413 or 422 if it
            exceeds a limit by itself.
        """
        call = secrets.token_hex(8)
        await asyncio.to_thread(lifecycle.queue_training, folder, call, self.settings)
        if self.is_active:
            await self._look()
            return
        until = time.monotonic() + 2 * POLL_S  # for the process that is active
        while time.monotonic() < until and store.read(folder).state == QUEUED:
            await asyncio.sleep(POLL_S / 10)

    def start_trainings(self) -> None:
        """Start every training whose turn it is; called once at a time."""
        states = self._states.read()
        waiting = [state for state in states if state.state == QUEUED]
        if not waiting:
            return
        settings = self.settings
        refused = self._refuse(waiting)
        states = [state for state in states if state.id not in refused]
        limits = client_limit(settings), total_limit(settings)
        trainings = [*trainings_of(states), *self._joining]
        for one in next_trainings(trainings, *limits):
            self._start(one.id)

    def _refuse(self, waiting: list[State]) -> set[str]:
        """Fail trainings that exceed a limit by themselves: it was higher before.

        Returns
        -------
        Their ids.
        """
        refused = set()
        for state in waiting:
            try:
                check_demand(state, self.settings)
            except LimitReached as error:
                refused.add(state.id)
                with contextlib.suppress(CallRefused):  # a call changes it: next time
                    lifecycle.refuse_training(self.root / state.id, error)
        return refused

    def _start(self, id: str) -> None:
        """Start a training; one that cannot be started now is tried again."""
        try:
            lifecycle.start_training(self.root / id, self.settings)
            self._failures.pop(id, None)
        except Exception as error:  # a disk that refuses, a folder that was deleted
            if self._failures.get(id) != str(error):
                LOG.warning("training of %s cannot start yet: %s", id[:8], error)
            self._failures[id] = str(error)

    @contextlib.asynccontextmanager
    async def joining(self, state: State, party: dict[str, Any]) -> AsyncIterator[None]:
        """Hold the room of a party while it joins a training under way.

        Raises
        ------
        LimitReached
            If trainings take as much as they may.
        """
        async with self._looking:
            one = await asyncio.to_thread(self._take_room, state, party)
            self._joining.append(one)
        try:
            yield
        finally:
            self._joining.remove(one)

    def _take_room(self, state: State, party: dict[str, Any]) -> Training:
        trainings = [*trainings_of(self._states.read()), *self._joining]
        demand, now = party_demand(state, party), time.time()
        check_room(state.owner, demand, usage_by_client(trainings), self.settings)
        return Training(party["data"], state.owner, demand, now, now, is_running=True)


class StateCache:
    """States of all federations; those that have not changed are not read again."""

    def __init__(self, root: Path):
        self.root = root
        self._states: dict[str, tuple[tuple[int, ...], State]] = {}

    def read(self) -> list[State]:
        """All states; what cannot be read is left out."""
        states = {}
        for folder in store.federation_folders(self.root):
            name, version = folder.name, store.version(folder)
            if name in self._states and self._states[name][0] == version:
                states[name] = self._states[name]
                continue
            with contextlib.suppress(ValueError, TypeError, OSError):
                if state := store.load(folder):
                    states[name] = version, _essence(state)
        self._states = states
        return [state for _, state in states.values()]


def _essence(state: State) -> State:
    """The state; of a federation that does not train only whose it is, and its times.

    Many stay in the folder after they have ended.
    """
    if state.is_in_training:
        return state
    essence = State(state.id, state.owner, {}, 0, state=state.state)
    essence.queued, essence.started = state.queued, state.started
    return essence


def trainings_of(states: Iterable[State]) -> Iterator[Training]:
    """The trainings that wait, run or have run; one may have run before it waits."""
    for state in states:
        own = state.id, state.owner
        is_waiting = state.state == QUEUED
        if state.started is not None:
            since = state.started if is_waiting else state.queued or state.started
            is_running = state.state == TRAINING
            demand = demand_of(state) if is_running else NOTHING
            yield Training(*own, demand, since, state.started, is_running)
        if is_waiting and not state.is_stopping:
            yield Training(*own, demand_of(state), state.queued or state.created)
