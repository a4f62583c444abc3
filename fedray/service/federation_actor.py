"""Actor of one REST federation: trains it and records who joins and leaves.

It runs `fedray.federation.run` as ``fedray run`` does, as a detached actor: a training
outlives the client that asked for it, and the service's own restart.
"""

import asyncio
import contextlib
import dataclasses
import functools
import html
import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from fedray import durable_files, federation, models
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
from fedray.placement import node_affinity
from fedray.service import client_words, schemas, store
from fedray.service.store import (
    FAILED,
    STOPPED,
    TRAINED,
    TRAINING,
    WAITING,
    State,
    check_can_join,
    check_can_leave,
    check_can_train,
)

NAMESPACE = "fedray"
STOP_S = 45  # a training that has not ended by then is killed with its actor
RESTART_DELAY_S = 2.0  # after a training, so that waiting calls get their answer first
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
RETRY = "GET /aggregators/{id} has its state; try again in a moment."
JOIN_AGAIN = (
    "Fix the party and POST /start-party again; the training goes on without it."
)
PARTY_ERRORS = (JoinFailed, RoundFailed, PartyError, PlacementError)
SETTINGS_ERRORS = (ConfigError, ModelFileError, WeightsMismatch, TooFewUpdates)
LOG = logging.getLogger("fedray")


def actor_name(id: str) -> str:
    """Name on the cluster of a federation's actor."""
    return f"federation:{id}"


def get_or_start(folder: Path) -> ActorHandle:
    """The federation's actor, on the node that has its folder; started if missing."""
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
    """Kill a federation's actor with all that it started; the federation is stopped."""
    with contextlib.suppress(ValueError):  # there is none
        ray.kill(ray.get_actor(actor_name(folder.name), namespace=NAMESPACE))
    state = store.read(folder)
    if state.state != STOPPED:  # it did not end in time; now nobody else writes
        if state.state == TRAINING:
            state.ended = time.time()
        state.state = STOPPED
        store.save(folder, state)
    store.delete_all_data(folder, state)


class Federation:
    """Holds one federation's folder; the only writer of its state.

    A restarted actor reads the folder and continues a training that was under way. A
    call carries a token, since Ray repeats calls whose actor died: a repeated one does
    nothing.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        durable_files.remove_leftovers(self.folder)
        self.state: State = store.read(self.folder)
        self.lock = threading.RLock()
        self.membership_lock = threading.Lock()  # joins and leaves, one at a time
        self.stop_requested = threading.Event()
        self.live: dict[str, Any] = {}
        self.thread: threading.Thread | None = None
        self.saved_at = 0.0
        if self.state.state == TRAINING:
            self._start_training()
        elif self.state.state == WAITING:  # so that /train need not wait for imports
            threading.Thread(target=self._import_frameworks, daemon=True).start()

    def __repr__(self) -> str:
        return f"federation:{Path(getattr(self, 'folder', '?')).name[:8]}"

    async def join(
        self, party: dict[str, Any], call: str, files: dict[str, str]
    ) -> tuple[str, int]:
        """Add a party; its name, and how many parties have yet to join.

        files : names of its uploads here, and what the client calls them.

        Raises
        ------
        CallRefused
            409 if no more can join.
        """
        if self.state.state == TRAINING:
            return await asyncio.to_thread(self._join_training, party, call, files)
        with self.lock:
            before = self.state
            if call not in before.joins:
                check_can_join(before)
                named = before.name_party(party)
                self._save(**before.with_party(named, call, files))
            return self._name_and_remaining(call)

    def _join_training(
        self, party: dict[str, Any], call: str, files: dict[str, str]
    ) -> tuple[str, int]:
        with self.membership_lock:
            if call not in self.state.joins:
                named = self.state.name_party(party)
                named["joined"] = join_run(self.folder, named, files)
                with self.lock:
                    changes = self.state.with_party(named, call, files)
                    self._save(**changes, num_parties=self.state.num_parties + 1)
            return self._name_and_remaining(call)

    def _name_and_remaining(self, call: str) -> tuple[str, int]:
        state = self.state
        return state.parties[state.joins.index(call)]["name"], state.n_remaining

    async def leave(self, party: str) -> int:
        """Remove a party; the last round that it may take part in.

        Raises
        ------
        CallRefused
            404 or 409 if it cannot leave.
        """
        return await asyncio.to_thread(self._leave, party)

    def _leave(self, party: str) -> int:
        with self.membership_lock:
            check_can_leave(self.state, party)
            is_waiting = self.state.state == WAITING
            last = 0 if is_waiting else leave_run(self.folder, party)
            with self.lock:
                leaver = self.state.party(party)
                changes = self.state.without_party(party, None if is_waiting else last)
                self._save(**changes)
                if is_waiting:  # only now: a party that is listed has its data
                    store.delete_party_uploads(self.folder, leaver)
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
                return
            check_can_train(self.state)
            now = time.time()
            self._save(state=TRAINING, call=call, error=None, started=now, ended=None)
            self._start_training()

    async def wait_until_ended(self) -> str:
        """Wait until no training is under way; the state then."""
        while self.state.state == TRAINING:
            await asyncio.sleep(0.02)
        return self.state.state

    async def progress(self) -> dict[str, Any]:
        """The round under way: round, stage, chosen, reported, troubled."""
        return self.live

    async def stop(self) -> None:
        """End a training, keep the newest model, and take no more calls."""
        self.stop_requested.set()
        if self.thread is not None:
            await asyncio.to_thread(self.thread.join, STOP_S)
        with self.lock:
            if self.state.state != STOPPED:
                self._save(state=STOPPED)

    def _import_frameworks(self) -> None:
        models.named(self.state.settings.get("model_type", "pytorch"))
        report_page.prepare()

    def _start_training(self) -> None:
        self.thread = threading.Thread(target=self._train, daemon=True)
        self.thread.start()

    def _train(self) -> None:
        try:
            run_training(self.folder, self.state, self._on_progress)
            write_answer(self.folder)
            self._end_training(state=TRAINED)
        except Stopped:
            self._write_newest_answer()
            self._end_training(state=STOPPED)
        except Exception as error:
            LOG.exception("%r failed", self)
            self._write_newest_answer()
            failure = failure_of(error, self.folder, self.state.words)
            self._end_training(state=FAILED, error=failure)
        if not self.stop_requested.is_set():
            time.sleep(RESTART_DELAY_S)
            with self.lock:  # no call is under way that changes anything
                is_over = self.state.state in (TRAINED, FAILED)
                if is_over and not self.stop_requested.is_set():
                    self._restart_process()

    def _restart_process(self) -> None:
        """Free the memory of framework and weights: Ray restarts the killed actor.

        An actor between calls is then as small as one that never trained.
        """
        ray.kill(ray.get_runtime_context().current_actor, no_restart=False)
        time.sleep(60)

    def _write_newest_answer(self) -> None:
        try:
            write_answer(self.folder)
        except Exception:  # the training's own error is the one to report
            LOG.exception("%r has no model to answer", self)

    def _end_training(self, **changes: Any) -> None:
        with self.lock:
            if self.state.state == TRAINING:
                self._save(**changes, ended=time.time())
            self.live = {}

    def _on_progress(self, progress: Progress) -> None:
        if self.stop_requested.is_set():
            raise KeyboardInterrupt
        for report in progress.reports:
            before = self.state.metrics if report.round > 1 else {}
            self.state.metrics = update_metrics(before, report)
        self.live = {
            "round": progress.round,
            "stage": progress.stage,
            "chosen": progress.chosen,
            "reported": progress.reported,
            "troubled": progress.troubled,
        }
        if progress.reports and time.monotonic() - self.saved_at > SAVE_S:
            self.saved_at = time.monotonic()
            with self.lock:
                self._save()

    def _save(self, **changes: Any) -> None:
        """Change the state; on disk first, because the service reads it there."""
        changed = dataclasses.replace(self.state, **changes)
        store.save(self.folder, changed)
        self.state = changed


def run_training(
    folder: Path, state: State, watch: federation.Watch
) -> federation.Result:
    """Train to the last round, continuing after rounds that are done.

    Raises
    ------
    FedrayError
        Stopped if `watch` raised KeyboardInterrupt.
    """
    config = schemas.whole_config(state.settings, state.model_file, state.parties)
    return federation.run(config, run_dir=folder, resume=True, watch=watch)


def write_answer(folder: Path) -> bool:
    """Write model file and answer from the newest checkpoint; False without one."""
    import orjson

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
    if find_model_file(folder) is None:
        file = folder / f"global_model{adapter.suffix}"
        adapter.write(blueprint, weights, file)
    model, info = adapter.answer(blueprint, weights)
    plain = {"global_model": model, "global_model_info": info}
    data = orjson.dumps(plain, _to_list, orjson.OPT_SERIALIZE_NUMPY)
    durable_files.write_bytes(folder / store.ANSWER, data)
    return True


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
    for path, name in words.items():
        own = path if "/" in path else f"{folder}/{store.UPLOADS}/{path}"
        page = page.replace(html.escape(own), html.escape(name))
    page = page.replace(html.escape(f"{folder}/"), "")
    return page.replace(html.escape(str(folder)), "the federation's folder").encode()


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
    moved = before.get("bytes_moved", 0) + report.bytes_moved
    stop = {"stop_reason": report.stop_reason} if report.stop_reason else {}
    return {"round": report.round, **scores, "bytes_moved": moved, **stop}


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def failure_of(error: Exception, folder: Path, words: dict[str, str]) -> dict[str, Any]:
    """Status, detail and hint of a training that failed, in the client's words."""
    if not isinstance(error, FedrayError):
        detail = f"The training ended with {type(error).__name__} in the service."
        return {"status": 500, "detail": detail, "hint": TRAIN_AGAIN}
    detail = client_words.translate(error.summary, words, folder)
    status, hint = 500, TRAIN_AGAIN
    if isinstance(error, PARTY_ERRORS):
        status, hint = 502, ONE_LESS
    elif isinstance(error, TooManyRefused):
        hint = f"GET /aggregators/{{id}} has whose and why. {ONE_LESS}"
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
    joining = functools.partial(federation.join, str(folder), party)
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


def _to_list(value: Any) -> Any:
    """Arrays that orjson does not take itself: without dimensions, or strided."""
    return value.tolist()


ACTOR = ray.remote(Federation)  # once: a second class would be another one to Ray
