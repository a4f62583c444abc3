"""The actor of one federation: it plays the driver, and outlives who asked for it."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from fedray import federation, models
from fedray import report as pages
from fedray.checkpoint import RunFolder
from fedray.config import read_yaml
from fedray.errors import (
    CallRefused,
    ClusterError,
    FedrayError,
    JoinFailed,
    PartyError,
    PlacementError,
    RoundFailed,
    RunFolderError,
    Stopped,
    UnknownRun,
)
from fedray.federation import Result, Watch, blueprint_of, read_config, run
from fedray.messages import Progress, RoundReport
from fedray.placement import on_node
from fedray.service import schemas
from fedray.service import store as states
from fedray.service.state_checks import check_leaving, check_open, check_ready
from fedray.service.store import FAILED, STOPPED, TRAINED, TRAINING, WAITING, State

NAMESPACE = "fedray"
STOP_S = 45  # a training that does not end by then is killed with its actor
ANEW_S = 2.0  # after a training: whoever waited for it has its answer by then
SAVE_S = 1.0  # how often the metrics of a running training reach the disk
LOG = logging.getLogger("fedray")


def name_of(id: str) -> str:
    """Name on the cluster of a federation's actor."""
    return f"federation:{id}"


def reach(folder: Path) -> ActorHandle:
    """The federation's actor, on this node; started if it is not there.

    Its folder is on this node's disk, and so must be the actor.
    """
    here = ray.get_runtime_context().get_node_id()
    actor = ACTOR.options(
        name=name_of(folder.name),
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=100,
        **on_node(here),
    )
    return actor.remote(str(folder))


def end(folder: Path) -> None:
    """Kill a federation's actor for good, with all that it started, and say so."""
    with contextlib.suppress(ValueError):  # there is none
        ray.kill(ray.get_actor(name_of(folder.name), namespace=NAMESPACE))
    state = states.load(folder)
    if state.state != STOPPED:  # it did not end in time; now nobody else writes
        state.state = STOPPED
        states.save(folder, state)
    states.forget_data(folder, state)


class Federation:
    """Holds one federation's folder; the only writer of its state.

    A restarted one reads the folder, and goes on with a training that was under way.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.state: State = states.load(self.folder)
        self.lock, self.turnover = threading.RLock(), threading.Lock()
        self.stopping, self.ended_ = threading.Event(), threading.Event()
        self.live: dict[str, Any] = {}
        self.thread: threading.Thread | None = None
        self.saved = 0.0
        if self.state.state == TRAINING:
            self._start()
        elif self.state.state == WAITING:  # so that /train need not wait for it
            threading.Thread(target=self._prepare, daemon=True).start()

    def __repr__(self) -> str:
        return f"federation:{Path(getattr(self, 'folder', '?')).name[:8]}"

    async def join(self, party: dict[str, Any], call: str) -> tuple[str, int]:
        """Take in a party; its name, and how many have yet to join.

        Raises
        ------
        CallRefused
            409 if no more can join.
        """
        if self.state.state == TRAINING:
            return await asyncio.to_thread(self._join_late, party, call)
        with self.lock:
            before = self.state
            if call not in before.joins:  # else Ray asked again
                check_open(before)
                self._save(**before.joined(before.named(party), call))
            now = self.state
            return now.parties[now.joins.index(call)]["name"], now.n_remaining

    def _join_late(self, party: dict[str, Any], call: str) -> tuple[str, int]:
        with self.turnover:
            if call not in self.state.joins:
                named = self.state.named(party)
                named["joined"] = join(self.folder, named)
                with self.lock:
                    self._save(**self.state.grown(named, call))
            place = self.state.joins.index(call)
            return self.state.parties[place]["name"], self.state.n_remaining

    async def leave(self, party: str) -> int:
        """Let a party go; the last round that it may have a part in.

        Raises
        ------
        CallRefused
            404 or 409 if it cannot leave.
        """
        return await asyncio.to_thread(self._leave, party)

    def _leave(self, party: str) -> int:
        with self.turnover:
            check_leaving(self.state, party)
            is_waiting = self.state.state == WAITING
            last = 0 if is_waiting else leave(self.folder, party)
            with self.lock:
                if is_waiting:
                    states.give_up(self.folder, self.state.party(party))
                self._save(**self.state.shrunk(party, None if is_waiting else last))
            return last

    async def train(self, call: str) -> None:
        """Begin to train.

        Raises
        ------
        CallRefused
            409 if parties are missing, or it is training or done.
        """
        with self.lock:
            if self.state.call == call:
                return  # Ray asked again
            check_ready(self.state)
            self._save(state=TRAINING, call=call, error=None)
            self._start()

    async def ended(self) -> str:
        """Wait until no training is under way; the state then."""
        while self.state.state == TRAINING:
            await asyncio.sleep(0.02)
        return self.state.state

    async def progress(self) -> dict[str, Any]:
        """The round under way: round, stage, chosen, reported, troubled."""
        return self.live

    async def stop(self) -> None:
        """End a training, keep the model there is, and take no more calls."""
        self.stopping.set()
        if self.thread is not None:
            await asyncio.to_thread(self.thread.join, STOP_S)
        with self.lock:
            if self.state.state != STOPPED:
                self._save(state=STOPPED)

    def _prepare(self) -> None:
        models.named(self.state.settings.get("model_type", "pytorch"))
        pages.prepare()

    def _start(self) -> None:
        self.thread = threading.Thread(target=self._train, daemon=True)
        self.thread.start()

    def _train(self) -> None:
        try:
            train(self.folder, self.state, self._watch)
            keep(self.folder)
            self._end(state=TRAINED)
        except Stopped:
            self._keep_what_there_is()
            self._end(state=STOPPED)
        except Exception as error:
            LOG.exception("%r failed", self)
            self._keep_what_there_is()
            self._end(state=FAILED, error=failure_of(error, self.folder))
        if not self.stopping.is_set():
            time.sleep(ANEW_S)
            with self.lock:  # no call is under way that changes anything
                if self.state.state in (TRAINED, FAILED) and not self.stopping.is_set():
                    self._begin_anew()

    def _begin_anew(self) -> None:
        """Leave framework and weights behind: the next process starts from the folder.

        An actor between calls is then as small as one that never trained.
        """
        ray.kill(ray.get_runtime_context().current_actor, no_restart=False)
        time.sleep(60)

    def _keep_what_there_is(self) -> None:
        try:
            keep(self.folder)
        except Exception:  # what went wrong first is what is told
            LOG.exception("%r keeps no model", self)

    def _end(self, **changes: Any) -> None:
        with self.lock:
            if self.state.state == TRAINING:
                self._save(**changes)
            self.live = {}

    def _watch(self, progress: Progress) -> None:
        if self.stopping.is_set():
            raise KeyboardInterrupt
        for report in progress.reports:
            known = self.state.metrics if report.round > 1 else {}
            self.state.metrics = metrics(report, known)
        self.live = {
            "round": progress.round,
            "stage": progress.stage,
            "chosen": progress.chosen,
            "reported": progress.reported,
            "troubled": progress.troubled,
        }
        if progress.reports and time.monotonic() - self.saved > SAVE_S:
            self.saved = time.monotonic()
            with self.lock:
                self._save()

    def _save(self, **changes: Any) -> None:
        """What is told is on the disk first: the service reads it there."""
        changed = dataclasses.replace(self.state, **changes)
        states.save(self.folder, changed)
        self.state = changed


AGAIN = "Mend it and POST /train again: it goes on after the last round done."
OF_A_PARTY = (JoinFailed, RoundFailed, PartyError, PlacementError)


def train(folder: Path, state: State, watch: Watch) -> Result:
    """Train to the last round, going on after rounds that are done.

    Raises
    ------
    FedrayError
        Stopped if `watch` raised KeyboardInterrupt.
    """
    config = schemas.with_parties(state.settings, state.model_file, state.parties)
    return run(config, run_dir=folder, resume=True, watch=watch)


def keep(folder: Path) -> bool:
    """Write model file and answer from the newest round; is there one?"""
    import orjson

    if not (folder / "config.yaml").exists():
        return False
    checkpoint, _ = RunFolder(folder).newest()
    if checkpoint is None:
        return False
    config = read_config(read_yaml(folder / "config.yaml"))
    adapter = models.named(config.model_type)
    blueprint = blueprint_of(folder, config)
    if model_of(folder) is None:
        model = folder / f"global_model{adapter.suffix}"
        adapter.write(blueprint, checkpoint.weights, model)
    model, info = adapter.answer(blueprint, checkpoint.weights)
    aside = folder / f".{states.ANSWER}"
    plain = {"global_model": model, "global_model_info": info}
    aside.write_bytes(orjson.dumps(plain, _plain, orjson.OPT_SERIALIZE_NUMPY))
    os.replace(aside, folder / states.ANSWER)
    return True


def model_of(folder: Path) -> Path | None:
    """The model file of a federation that has one."""
    found = sorted(folder.glob("global_model.*"))
    kinds = [path for path in found if path.suffix not in (".part", ".safetensors")]
    return kinds[0] if kinds else None


def metrics(report: RoundReport, before: dict[str, Any]) -> dict[str, Any]:
    """What is told of a federation in short, after one more round."""
    return {
        "round": report.round,
        "loss": report.loss if report.loss is not None else before.get("loss"),
        "accuracy": report.accuracy
        if report.accuracy is not None
        else before.get("accuracy"),
        "bytes_moved": before.get("bytes_moved", 0) + report.bytes_moved,
    }


def failure_of(error: Exception, folder: Path) -> dict[str, Any]:
    """Why a training failed, without the server's paths: status, detail, hint."""
    status = 502 if isinstance(error, OF_A_PARTY) else 500
    if not isinstance(error, FedrayError):
        return {"status": 500, "detail": type(error).__name__, "hint": AGAIN}
    text = str(error).split(" Mend the parties and go on")[0]
    text = text.replace(f"{folder}/{states.UPLOADS}/", "").replace(f"{folder}/", "")
    text = text.replace(str(folder), "the federation's folder")
    text = text.replace("; go on with --resume", "").replace(" with --resume", "")
    return {"status": status, "detail": text[:4000], "hint": AGAIN}


def _plain(value: Any) -> Any:
    """What orjson does not take itself: arrays without dimensions, odd strides."""
    return value.tolist()


STARTS_S = 30.0  # from /train to an aggregator that takes calls
ASK_AGAIN = "GET /aggregators/{id} tells its state; try again in a moment."
MEND = "Mend the party and POST /start-party again; the training goes on without it."


def join(folder: Path, party: dict[str, Any]) -> int:
    """Let a party into the training that is under way; its first round.

    Raises
    ------
    CallRefused, ConfigError
        And the training goes on without it.
    """
    return _asked(folder, lambda: federation.join(str(folder), party).round)


def leave(folder: Path, party: str) -> int:
    """Let a party go; the last round that it may have a part in."""
    return _asked(folder, lambda: federation.leave(str(folder), party))


def _asked(folder: Path, ask: Callable[[], int]) -> int:
    until = time.monotonic() + STARTS_S
    while True:
        try:
            return ask()
        except (JoinFailed, PlacementError) as error:
            told = failure_of(error, folder)["detail"]
            raise CallRefused(502, told, MEND) from None
        except (UnknownRun, RunFolderError, ClusterError):
            is_training = states.load(folder).state == TRAINING
            if not is_training or time.monotonic() > until:
                told = "The training has only begun, or is about to end."
                raise CallRefused(409, told, ASK_AGAIN) from None
        time.sleep(0.2)


ACTOR = ray.remote(Federation)  # once: each time would be another class to Ray
