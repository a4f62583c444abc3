"""Actor of one REST federation while it trains: it records who joins and leaves.

It runs `fedray.federation.run` as ``fedray run`` does, as a detached actor: a training
outlives the client that asked for it, and the service's own restart.
"""

import asyncio
import functools
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from fedray import durable_files, federation, limits, models
from fedray import report as report_page
from fedray.checkpoint import LAST, RunFolder
from fedray.config import read_yaml
from fedray.errors import (
    CallRefused,
    ClusterError,
    ConfigError,
    FedrayError,
    JoinFailed,
    ModelFileError,
    OutOfMemory,
    PartyError,
    PlacementError,
    RoundFailed,
    RunFolderError,
    Stopped,
    TooFewUpdates,
    TooManyRefused,
    UnknownRun,
    WeightsMismatch,
)
from fedray.messages import Progress, RoundReport
from fedray.placement import node_affinity, run_label
from fedray.service import client_words, schemas, stop_record, store
from fedray.service.json_text import json_parts, write_json
from fedray.service.stop_record import NO_ROOM, is_requested
from fedray.service.store import (
    FAILED,
    TRAINED,
    TRAINING,
    Joining,
    State,
    check_can_join,
    check_can_leave,
)
from fedray.service.training_limits import (
    NO_ROUND,
    TimeLimit,
    count_memory_deaths,
    record_time_limit,
)

NAMESPACE = "fedray"
END_S = 60.0  # for Ray to end an actor that asks for it
FULL_DISK_S = 5.0  # between two tries to write how a training has ended
SAVE_S = 1.0  # between writes of a running training's metrics
STARTUP_S = 30.0  # from /train to an aggregator that takes calls
ONE_LESS = (
    "Mend the party, or leave it out by POST /stop-party; POST /train then goes on "
    "after the last round done. Other settings need another federation: POST "
    "/start-aggregator."
)
OTHERS = (
    "Settings and files stay as they are: POST /start-aggregator for a federation "
    "with others."
)
TRAIN_AGAIN = (
    "POST /train goes on after the last round done; if it fails again, ask the "
    "service's operator, whose log has the whole error."
)
TIME_HINT = (
    "Train fewer or shorter rounds: POST /start-aggregator for a federation with other "
    "settings; or ask the service's operator for more time."
)
OVER_LIMIT = "needs more memory than a process of a federation may take here"
RETRY = "GET /aggregators/{id} has its state; try again in a moment."
JOIN_AGAIN = (
    "Fix the party and POST /start-party again; the training goes on without it."
)
PARTY_ERRORS = (JoinFailed, RoundFailed, PartyError, PlacementError)
SETTINGS_ERRORS = (ConfigError, ModelFileError, WeightsMismatch, TooFewUpdates)
LOG = logging.getLogger("fedray")


def actor_name(id: str) -> str:
    """Name on the cluster of a federation's actor."""
    return f"federation:{run_label(id)}"


def find(folder: Path) -> ActorHandle | None:
    """The actor of a federation's training; None if there is none."""
    try:
        return ray.get_actor(actor_name(folder.name), namespace=NAMESPACE)
    except ValueError:
        return None


def get_or_start(folder: Path) -> ActorHandle:
    """The actor of a training, on the node that has its folder; started if missing.

    Only for a training that begins, or goes on after a restart: it ends itself at once
    if the folder says that the federation does not train.
    """
    node = ray.get_runtime_context().get_node_id()
    actor = ACTOR.options(
        name=actor_name(folder.name),
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=100,
        **node_affinity(node),
    )
    # Ray types it as a handle or the class itself, for hints on methods
    return actor.remote(str(folder))  # type: ignore[return-value]


def kill(folder: Path) -> None:
    """Kill the actor of a training with all that it started, if there is one."""
    if actor := find(folder):
        ray.kill(actor)


class Federation:
    """Trains one federation, and takes in and lets go parties meanwhile.

    It lives as long as the training: a restarted actor reads the folder and continues,
    or ends itself. A call carries a token, since Ray repeats calls whose actor died: a
    repeated one does nothing.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.membership_lock = threading.Lock()  # joins and leaves, one at a time
        self.live: dict[str, Any] = {}
        self.metrics: dict[str, Any] = {}
        self.saved_at = 0.0
        threading.Thread(target=self._train_and_end, daemon=True).start()

    def __repr__(self) -> str:
        return f"federation:{Path(getattr(self, 'folder', '?')).name[:8]}"

    async def join(self, joining: Joining) -> tuple[str, int]:
        """Add a party to the training; its name, and 0: nobody has yet to join.

        Raises
        ------
        CallRefused, ConfigError
            And the training goes on without it.
        """
        return await asyncio.to_thread(self._join, joining)

    def _join(self, joining: Joining) -> tuple[str, int]:
        with self.membership_lock:
            state = store.read(self.folder)
            name = state.name_of(joining.call)
            if name is None:
                check_can_join(state, joining.max_parties)
                named = state.name_party(joining.party)
                named["joined"] = join_run(self.folder, named, joining.files)
                with store.changing(self.folder) as state:
                    state.add_party(named, joining.call, joining.files)
                    state.num_parties += 1
                name = named["name"]
            return name, state.n_remaining

    async def leave(self, party: str) -> int:
        """Remove a party from the training; the last round that it may take part in.

        Raises
        ------
        CallRefused, ConfigError
            404, 409 or 422 if it cannot leave.
        """
        return await asyncio.to_thread(self._leave, party)

    def _leave(self, party: str) -> int:
        with self.membership_lock:
            check_can_leave(store.read(self.folder), party)
            last_round = leave_run(self.folder, party)
            with store.changing(self.folder) as state:
                state.party(party)["left"] = last_round + 1
            return last_round

    async def progress(self) -> dict[str, Any]:
        """The round under way: round, stage, chosen, reported, troubled."""
        return self.live

    def _train_and_end(self) -> None:
        """Train as long as the folder says so, then end this actor."""
        try:
            with store.lock(self.folder):
                durable_files.remove_leftovers(self.folder)
            while True:
                while (state := store.read(self.folder)).state == TRAINING:
                    self._train(state)
                with store.lock(self.folder):  # nobody begins a training meanwhile
                    if store.read(self.folder).state != TRAINING:
                        end_process()
        except Exception:  # the folder was deleted, the disk refuses
            LOG.exception("%r has ended", self)
        end_process()

    def _train(self, state: State) -> None:
        self.metrics = state.metrics
        self.time_limit = TimeLimit(state.run_limits.get("max_training_s"))
        threading.Thread(target=report_page.prepare, daemon=True).start()
        try:
            if state.is_stopping:
                raise KeyboardInterrupt  # before this actor was restarted
            count_memory_deaths(self.folder)
            run_training(self.folder, state, self._on_progress)
            write_answer(self.folder)
            self._end_training(state=TRAINED)
        except (Stopped, KeyboardInterrupt):
            if self.time_limit.is_over:
                self._end_out_of_time()
            else:
                self._end_stopped()
        except Exception as error:
            LOG.exception("%r failed", self)
            self._write_newest_answer()
            failure = failure_of(error, self.folder, store.read(self.folder).words)
            self._end_training(state=FAILED, error=failure)

    def _end_out_of_time(self) -> None:
        """Keep the model of the last round done, and say why there is no other."""
        limit_s = self.time_limit.limit_s or 0.0
        reason = record_time_limit(self.folder, limit_s)
        if reason:
            self._write_newest_answer()
            self.metrics = self.metrics | {"stop_reason": reason}
            self._end_training(state=TRAINED)
            return
        detail, hint = NO_ROUND.format(limit_s=limit_s), TIME_HINT
        failure = {"status": 504, "detail": detail, "hint": hint}
        self._end_training(state=FAILED, error=failure)

    def _end_stopped(self) -> None:
        """Make room first: the model's answer may need it."""
        with store.lock(self.folder):
            store.delete_all_data(self.folder, store.read(self.folder))
        self._write_newest_answer()
        try:
            self._end_training()
        except OSError:  # no room: only the latest metrics are lost
            LOG.exception("%r has no room for its state", self)
        stop_record.finish_stop(self.folder)

    def _write_newest_answer(self) -> None:
        try:
            write_answer(self.folder)
        except Exception:  # the training's own error is the one to report
            LOG.exception("%r has no model to answer", self)

    def _end_training(self, **changes: Any) -> None:
        """Write how the training has ended; on a full disk as soon as it has room."""
        while True:
            try:
                self._write_end(changes)
                return
            except OSError as error:
                if error.errno not in NO_ROOM or is_requested(self.folder):
                    raise
                LOG.error("%r has ended; its state waits for room on the disk", self)
            time.sleep(FULL_DISK_S)

    def _write_end(self, changes: Mapping[str, Any]) -> None:
        with store.changing(self.folder) as state:
            state.metrics = self.metrics
            if state.state == TRAINING:
                for name, value in {**changes, "ended": time.time()}.items():
                    setattr(state, name, value)
        self.live = {}

    def _on_progress(self, progress: Progress) -> None:
        if not (self.folder / store.FILE).exists():  # deleted by hand
            end_process()
        if is_requested(self.folder):
            raise KeyboardInterrupt
        if self.time_limit.check(progress):
            raise KeyboardInterrupt
        for report in progress.reports:
            before = self.metrics if report.round > 1 else {}
            self.metrics = update_metrics(before, report)
        self.live = {
            "round": progress.round,
            "stage": progress.stage,
            "chosen": progress.chosen,
            "reported": progress.reported,
            "troubled": progress.troubled,
        }
        if progress.reports and time.monotonic() - self.saved_at > SAVE_S:
            self.saved_at = time.monotonic()
            with store.changing(self.folder) as state:
                state.metrics = self.metrics


def end_process() -> None:
    """End the calling actor for good, with all that it started; does not return.

    A lock that the caller holds is held until the process has ended.
    """
    ray.kill(ray.get_runtime_context().current_actor)
    time.sleep(END_S)
    os._exit(1)  # Ray does not answer: restarted later, the actor ends again


def run_training(
    folder: Path, state: State, watch: federation.Watch
) -> federation.Result:
    """Train to the last round, continuing after rounds that are done.

    Raises
    ------
    FedrayError
        Stopped if `watch` raised KeyboardInterrupt.
    """
    most = state.run_limits.get("max_memory")
    if most is not None:
        limits.limit_growth(most)
    config = schemas.whole_config(state.settings, state.model_file, state.parties)
    config |= state.run_limits
    return federation.run(config, run_dir=folder, resume=True, watch=watch)


def write_answer(folder: Path) -> bool:
    """Write model file and answer from the newest checkpoint; False without one."""
    if not (folder / "config.yaml").exists():
        return False
    run = RunFolder(folder)
    checkpoint, _ = run.newest_checkpoint()
    if checkpoint is None:
        return False
    weights = run.complete(checkpoint.weights)
    config = federation.read_config(read_yaml(folder / "config.yaml"))
    adapter = models.named(config.model_type)
    blueprint = federation.load_blueprint(folder, config)
    file = find_model_file(folder)
    if file is None or file.stat().st_mtime_ns < checkpoint_time(folder):
        file = folder / f"global_model{adapter.suffix}"
        adapter.write(blueprint, weights, file)
    model, info = adapter.answer(blueprint, weights)
    plain = {"global_model": model, "global_model_info": info}
    path = folder / store.ANSWER
    with durable_files.replace_file(path) as temporary, temporary.open("wb") as answer:
        answer.writelines(json_parts(plain))
    return True


def checkpoint_time(folder: Path) -> int:
    """When the newest checkpoint was written, in ns since 1970; 0 without one."""
    checkpoints = RunFolder(folder).checkpoints.rglob("round-*")
    return max((path.stat().st_mtime_ns for path in checkpoints), default=0)


def write_no_answer(folder: Path) -> None:
    """Write that there is no model to answer."""
    missing = {"global_model": None, "global_model_info": None}
    durable_files.write_bytes(folder / store.ANSWER, write_json(missing))


def find_model_file(folder: Path, which: str = LAST) -> Path | None:
    """The file of the last or best global model; None before there is one."""
    files = sorted(folder.glob(f"{which}.*"))
    models_ = [path for path in files if path.suffix not in (".part", ".safetensors")]
    return models_[0] if models_ else None


def client_report(folder: Path, words: dict[str, str]) -> bytes | None:
    """The page report.html, with the client's names for files; None without one."""
    try:
        page = (folder / "report.html").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return client_words.hide_paths_in_page(page, words, folder).encode()


def update_metrics(before: dict[str, Any], report: RoundReport) -> dict[str, Any]:
    """Round, latest scores, and all bytes moved, after one more round.

    What is not finite is None, as JSON has no other word for it.
    """
    scores: dict[str, Any] = {}
    for key in ("loss", "accuracy"):
        value = getattr(report, key)
        scores[key] = before.get(key) if value is None else _finite(value)
    numbers = {name: _finite(value) for name, value in report.numbers}
    if numbers := numbers or before.get("metrics", {}):
        scores["metrics"] = numbers
    if spread := report.spread or before.get("spread"):
        scores["spread"] = spread
    if report.staleness is not None:
        scores["staleness"] = _finite(report.staleness)
    if privacy := report.privacy or before.get("privacy"):
        scores["privacy"] = privacy
    moved = report_page.total((before.get("bytes_moved", 0), report.bytes_moved))
    stop = {"stop_reason": report.stop_reason} if report.stop_reason else {}
    return {"round": report.round, **scores, "bytes_moved": moved, **stop}


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def failure_of(error: Exception, folder: Path, words: dict[str, str]) -> dict[str, Any]:
    """Status, detail and hint of a training that failed, in the client's words."""
    if isinstance(error, MemoryError):
        error = OutOfMemory("the training", OVER_LIMIT)
    if not isinstance(error, FedrayError):
        detail = f"The training ended with {type(error).__name__} in the service."
        return {"status": 500, "detail": detail, "hint": TRAIN_AGAIN}
    detail = client_words.translate(error.summary, words, folder)
    status, hint = 500, TRAIN_AGAIN
    if isinstance(error, PARTY_ERRORS):
        status, hint = 502, ONE_LESS
    elif isinstance(error, TooManyRefused):
        hint = f"GET /aggregators/{{id}} has whose and why. {ONE_LESS}"
    elif isinstance(error, OutOfMemory):
        status, hint = 413, OTHERS
    elif isinstance(error, SETTINGS_ERRORS):
        hint = OTHERS
    return {"status": status, "detail": detail, "hint": hint}


def join_run(folder: Path, party: dict[str, Any], files: dict[str, str]) -> int:
    """Add a party to the training that is under way; its first round.

    Raises
    ------
    CallRefused, ConfigError
        And the training continues without it.
    """
    own = schemas.config_party(party)
    joining = functools.partial(federation.join, str(folder), own)
    return _retry(folder, files, lambda: joining().round)


def leave_run(folder: Path, party: str) -> int:
    """Remove a party from a run; the last round that it may take part in."""
    return _retry(folder, {}, lambda: federation.leave(str(folder), party))


def _retry(folder: Path, files: dict[str, str], change: Callable[[], int]) -> int:
    """Change a run's members; wait for its aggregator if that only starts."""
    until = time.monotonic() + STARTUP_S
    while True:
        try:
            return change()
        except (JoinFailed, PlacementError) as error:
            detail = failure_of(error, folder, files)["detail"]
            raise CallRefused(502, detail, JOIN_AGAIN) from None
        except ConfigError as error:
            raise client_words.config_error(error, files, folder) from None
        except (UnknownRun, RunFolderError, ClusterError):
            is_training = store.read(folder).state == TRAINING
            if not is_training or time.monotonic() > until:
                detail = "The training has only begun, or is about to end."
                raise CallRefused(409, detail, RETRY) from None
        time.sleep(0.2)


ACTOR = ray.remote(Federation)  # once: a second class would be another one to Ray
