"""Joins, leaves, trainings and stops of a federation, which is a folder.

Only a training has a process, its actor; until it begins and once it has ended, the
service's processes change the folder themselves. Whoever does holds the folder's lock.
What a call changes it changes to the end, also if its client hangs up (`run_to_end`).
"""

import asyncio
import contextlib
import dataclasses
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from fedray.checkpoint import is_locked
from fedray.errors import CallRefused, ConfigError
from fedray.federation import read_config
from fedray.placement import node_affinity
from fedray.service import client_words, federation_actor, schemas, stop_record, store
from fedray.service.demands import check_demand, run_limits
from fedray.service.federation_actor import (
    RETRY,
    join_run,
    leave_run,
    write_no_answer,
)
from fedray.service.settings import Settings
from fedray.service.store import (
    FAILED,
    QUEUED,
    TRAINING,
    WAITING,
    Joining,
    State,
    check_can_join,
    check_can_leave,
    check_can_train,
)
from fedray.service.uploads import FormData

T = TypeVar("T")
STOP_S = 45.0  # a training that has not ended by then is killed with its actor
ACTOR_S = 30.0  # for an actor that is just being started
PROGRESS_S = 1.0  # for an actor's answer about the round under way
POLL_S = 0.05  # between two looks whether a training has ended
LOOK_S = 1.0  # between two looks whether its actor is there
START_LOCK_S = 0.2  # for a call that changes a federation whose turn it is
N_CHANGES = 8  # federations that are changed at a time
ANSWER_S = 120.0  # for writing the answer of a training whose actor was killed
CHANGES = ThreadPoolExecutor(N_CHANGES, "changes")
WRITING_ANSWER = asyncio.Lock()  # each takes a process with a framework
Turns = WeakValueDictionary[Path, asyncio.Lock]
TURNS: WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = WeakKeyDictionary()
LOG = logging.getLogger("fedray")


class InTraining(Exception):
    """The federation trains: its actor is the one to make this change."""


async def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Await it to its end, also if the caller is cancelled: a client has hung up.

    The cancellation is raised once the work is done, so that what the caller then
    cleans up is not in use.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
        except Exception:
            break  # the task's own, which result() raises
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # nobody is there to hear of it
        raise cancelled
    return task.result()


async def _in_turn(folder: Path, change: Callable[..., T], *arguments: Any) -> T:
    """Change a federation in a thread; who waits for its turn takes none."""
    loop = asyncio.get_running_loop()
    turn = TURNS.setdefault(loop, Turns()).setdefault(folder, asyncio.Lock())
    async with turn:
        return await loop.run_in_executor(CHANGES, change, *arguments)


async def join(
    folder: Path, party: dict[str, Any], form: FormData, max_parties: int
) -> tuple[str, int]:
    """Add a party with its uploads in a form; its name, and how many have yet to join.

    Raises
    ------
    CallRefused, ConfigError, OSError
        And the uploads are deleted.
    """
    joining = Joining(party, secrets.token_hex(8), form.words, max_parties)
    joining = await _in_turn(folder, _claim_uploads, folder, joining, form.paths)
    try:
        return await _change(
            folder,
            lambda: join_folder(folder, joining),
            lambda actor: actor.join.remote(joining),
        )
    except Exception:
        await asyncio.to_thread(store.delete_party_uploads, folder, joining.party)
        raise


def _claim_uploads(folder: Path, joining: Joining, uploads: list[Path]) -> Joining:
    with store.lock(folder):  # a stop either deletes them, or comes before
        check_can_join(store.read(folder), joining.max_parties)
        party = store.claim_uploads(folder, joining.party, uploads)
    return dataclasses.replace(joining, party=party)


def join_folder(folder: Path, joining: Joining) -> tuple[str, int]:
    """Add a party to a federation that does not train.

    Raises
    ------
    InTraining
        If it does.
    """
    with store.changing(folder) as state:
        if state.name_of(joining.call) is None:
            check_can_join(state, joining.max_parties)
            _check_not_training(state)
            named = state.name_party(joining.party)
            if state.state == QUEUED:  # one more than were waited for
                if has_run(folder):
                    named["joined"] = join_run(folder, named, joining.files)
                state.num_parties += 1
            state.add_party(named, joining.call, joining.files)
        return state.name_of(joining.call) or "", state.n_remaining


async def leave(folder: Path, party: str) -> tuple[int, int]:
    """Remove a party; the last round that may ask it, how many have yet to join.

    Raises
    ------
    CallRefused, ConfigError
        404, 409 or 422 if it cannot leave.
    """
    last_round = await _change(
        folder,
        lambda: leave_folder(folder, party),
        lambda actor: actor.leave.remote(party),
    )
    return last_round, (await asyncio.to_thread(store.read, folder)).n_remaining


def leave_folder(folder: Path, party: str) -> int:
    """Remove a party from a federation that does not train; the last round done.

    Raises
    ------
    InTraining
        If it does.
    """
    with store.changing(folder, makes_room=True) as state:
        check_can_leave(state, party)
        _check_not_training(state)
        leaver = state.party(party)
        if state.state != WAITING and has_run(folder):
            last_round = leave_run(folder, party)
            leaver["left"] = last_round + 1
            return last_round
        state.remove_party(party)
        if state.state != WAITING:
            state.num_parties -= 1
            _check_without(state)
    # only now: a party that is listed has its data
    store.delete_party_uploads(folder, leaver)
    store.keep_reserve(folder.parent)
    return 0


def _check_without(state: State) -> None:
    """Raise ConfigError if the parties that stay cannot train."""
    if not state.parties:
        raise ConfigError(["no party is there in round 1: let another one join first"])
    try:
        read_config(
            schemas.whole_config(state.settings, state.model_file, state.parties)
        )
    except ConfigError as error:
        raise client_words.config_error(error, state.words) from None


def has_run(folder: Path) -> bool:
    """Whether a training of this federation has begun, now or before it failed."""
    return (folder / "config.yaml").exists()


async def _change(
    folder: Path, own: Callable[[], T], by_actor: Callable[[Any], Any]
) -> T:
    """Make a change by the service itself, or by the actor while it trains.

    own : may be called more than once; raises InTraining.
    """
    until = time.monotonic() + ACTOR_S
    while True:
        with contextlib.suppress(InTraining):
            return await _in_turn(folder, own)
        actor = await asyncio.to_thread(federation_actor.find, folder)
        if actor is not None:
            try:
                return await by_actor(actor)
            except RayTaskError as error:
                raise (error.cause or error) from None
            except RayActorError:
                pass  # it has just ended: the folder says how
        if time.monotonic() > until:
            detail = "The training has only begun, or is about to end."
            raise CallRefused(409, detail, RETRY)
        await asyncio.sleep(POLL_S)


def _check_not_training(state: State) -> None:
    if state.state == TRAINING:
        raise InTraining


def queue_training(folder: Path, call: str, settings: Settings) -> None:
    """Let a training wait for its turn; a call of this token that did so does nothing.

    Raises
    ------
    CallRefused
        409 if parties are missing, or it is training or done; 413 or 422 if it exceeds
        a limit by itself.
    """
    with store.changing(folder) as state:
        if state.call != call:
            check_can_train(state)
            check_demand(state, settings)
            state.state, state.call, state.error = QUEUED, call, None
            state.queued, state.memory_deaths = time.time(), 0


def start_training(folder: Path, settings: Settings) -> None:
    """Begin the training of a federation whose turn it is, unless it is being stopped.

    Killed between the two steps it goes on: see `resume_training`.

    Raises
    ------
    CallRefused
        503 if a call is changing the federation: it is to be tried again.
    """
    with store.changing(folder, START_LOCK_S) as state:
        if state.state != QUEUED or state.is_stopping:
            return
        state.run_limits = run_limits(settings)
        state.state, state.started, state.ended = TRAINING, time.time(), None
    federation_actor.get_or_start(folder)


def refuse_training(folder: Path, why: CallRefused) -> None:
    """Fail a training that waits and will never have its turn.

    Raises
    ------
    CallRefused
        503 if a call is changing the federation.
    """
    with store.changing(folder, START_LOCK_S) as state:
        if state.state == QUEUED:
            error = {"status": why.status, "detail": why.detail, "hint": why.hint}
            state.state, state.error = FAILED, error


def resume_training(folder: Path) -> bool:
    """Start the actor of a training that has none; whether it had none."""
    if federation_actor.find(folder) is not None:
        return False
    if store.read(folder).state != TRAINING or is_locked(folder):
        return False  # it has ended meanwhile, or another cluster's trains
    federation_actor.get_or_start(folder)
    return True


async def wait_until_ended(folder: Path) -> None:
    """Wait until a federation neither trains nor waits to."""
    before: tuple[int, ...] | None = None
    while True:
        version = store.version(folder)
        if version != before:
            state = await asyncio.to_thread(store.load, folder)
            if state is None or not state.is_in_training:
                return
            before = version
        await asyncio.sleep(POLL_S)


async def progress(folder: Path) -> dict[str, Any]:
    """The round under way of a training; nothing if its actor does not answer."""
    actor = await asyncio.to_thread(federation_actor.find, folder)
    if actor is not None:
        with contextlib.suppress(RayError, TimeoutError):
            return await asyncio.wait_for(actor.progress.remote(), PROGRESS_S)
    return {}


async def stop(folder: Path) -> None:
    """End a federation with its training, keep its newest model, delete all uploads.

    A repeated call does what is still to do. What was stopped stays so, whichever
    process is killed meanwhile: the request is in the folder.

    Raises
    ------
    CallRefused
        507 if it is stopped, but there is no room for the answer with its model.
    OSError
        If the disk refuses.
    """
    with await asyncio.to_thread(stop_record.request_stop, folder):
        if (await asyncio.to_thread(store.read, folder)).state == TRAINING:
            await _wait_for_actor(folder)
        await asyncio.to_thread(federation_actor.kill, folder)
        has_answer = await _write_missing_answer(folder)
        await _in_turn(folder, stop_record.finish_stop, folder)
    if not has_answer:
        detail = (
            "This federation is stopped and its uploads are deleted, but the service's "
            "disk has no room for an answer with its model, which is kept."
        )
        raise CallRefused(507, detail, "POST /stop answers it once there is room.")


async def _wait_for_actor(folder: Path) -> None:
    """Wait until a training that is to stop has ended, or its actor is gone."""
    until = time.monotonic() + STOP_S
    ended = asyncio.ensure_future(wait_until_ended(folder))
    try:
        while not ended.done() and time.monotonic() < until:
            if await asyncio.to_thread(federation_actor.find, folder) is None:
                return
            await asyncio.wait([ended], timeout=LOOK_S)
    finally:
        ended.cancel()


async def _write_missing_answer(folder: Path) -> bool:
    """Write the newest model of a training whose actor did not; False without room."""
    if not await asyncio.to_thread(_is_answer_missing, folder):
        return True
    async with WRITING_ANSWER:
        if not await asyncio.to_thread(_is_answer_missing, folder):
            return True  # another call has written it
        return await _write_answer(folder)


async def _write_answer(folder: Path) -> bool:
    node = ray.get_runtime_context().get_node_id()
    task = WRITE_ANSWER.options(**node_affinity(node), max_retries=1)
    try:
        await asyncio.wait_for(task.remote(folder), ANSWER_S)
    except (RayError, TimeoutError) as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, OSError) and cause.errno in store.NO_ROOM:
            return False
        LOG.exception("%s has no model to answer", folder)
        if isinstance(error, RayTaskError):  # it would be so the next time, too
            await asyncio.to_thread(write_no_answer, folder)
    return True


def _is_answer_missing(folder: Path) -> bool:
    """Whether there is a checkpoint that is newer than the answer."""
    try:
        answered = (folder / store.ANSWER).stat().st_mtime_ns
    except FileNotFoundError:
        answered = 0
    return federation_actor.checkpoint_time(folder) > answered


# its process ends with it: it holds the model and a framework
WRITE_ANSWER = ray.remote(max_calls=1)(federation_actor.write_answer)
