"""State of each federation: a JSON file in its folder, and which calls it accepts.

The folder is also the folder of the federation's run. It holds everything: a restarted
service or actor reads it and continues from there. Whoever changes the state holds the
folder's lock meanwhile (flock, which the kernel frees if the process dies): the
service's processes, and the actor of a training.
"""

import contextlib
import copy
import dataclasses
import errno
import fcntl
import itertools
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from fedray import durable_files
from fedray.errors import CallRefused, format_count
from fedray.service.json_text import write_json

WAITING, QUEUED, TRAINING = "waiting for parties", "queued", "training"
TRAINED, FAILED, STOPPED = "trained", "failed", "stopped"
FILE = "federation.json"
LOCK = "federation.lock"
STOP_REQUEST = "stop-requested"  # an empty file: it is being stopped
STOP_RECORD = "stopped"  # the same file once that is done
ANSWER = "answer.json"  # global_model and global_model_info, as calls answer them
UPLOADS = "uploads"
INCOMING = ".incoming"  # beside the federations: uploads under way
LOG = logging.getLogger("fedray")
ID = re.compile(r"[0-9a-f]{32}")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
RESERVE, RESERVE_BYTES = ".reserve", 256 << 10  # below the service's folder
LOCK_S = 60.0  # for a change of another process, which takes milliseconds


@dataclass(frozen=True)
class Joining:
    """A party that joins.

    party : as the config lists it, without a name.
    call : token of its call.
    files : names of its uploads here, and what the client calls them.
    max_parties : that a federation may have.
    """

    party: dict[str, Any]
    call: str
    files: dict[str, str]
    max_parties: int


@dataclass
class State:
    """One federation. `parties` are as the config lists them, in order of joining."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    id: str
    owner: str | None  # client id; None where the service has no keys
    settings: dict[str, Any]  # form values of /start-aggregator, checked
    num_parties: int
    model_file: str | None = None  # absolute
    parties: list[dict[str, Any]] = field(default_factory=list)
    joins: list[str] = field(default_factory=list)  # token of each party's call
    state: str = WAITING
    call: str | None = None  # token of the call that began the training
    error: dict[str, Any] | None = None  # why it failed: status, detail, hint
    files: dict[str, str] = field(default_factory=dict)  # upload's name -> the client's
    metrics: dict[str, Any] = field(default_factory=dict)  # of the last round done
    created: float = field(default_factory=time.time)  # seconds since 1970
    queued: float | None = None  # when it began to wait for its turn to train
    started: float | None = None  # when its training began, seconds since 1970
    ended: float | None = None  # when that ended
    model_bytes: dict[str, int] = field(default_factory=dict)  # as `ModelBytes`
    run_limits: dict[str, Any] = field(default_factory=dict)  # keys of its run's config
    memory_deaths: int = 0  # of its training's actor, since that began
    kernel_kills: int = 0  # `count_kernel_kills` when that actor started
    is_stopping: bool = False  # a stop was requested and is not done; not saved

    @property
    def is_in_training(self) -> bool:
        """Whether it trains, or waits for its turn to."""
        return self.state in (QUEUED, TRAINING)

    @property
    def n_remaining(self) -> int:
        """Parties that have yet to join."""
        return self.num_parties - len(self.parties)

    @property
    def name(self) -> str:
        """A name for people: the client's model file, and the id's first letters."""
        file = self.files.get(Path(self.model_file or "").name, "")
        stem = PurePath(file.removeprefix("model_file").strip()).stem
        return f"{stem or self.settings.get('model_type', 'model')}-{self.id[:4]}"

    @property
    def elapsed_s(self) -> float | None:
        """Seconds of its training so far; None before it began."""
        if self.started is None:
            return None
        return max(0.0, (self.ended or time.time()) - self.started)

    @property
    def words(self) -> dict[str, str]:
        """What the client calls its files and paths, by what they are here."""
        paths = {
            party["data"]: f"data_path {os.path.relpath(party['data'], root)}"
            for party in self.parties
            if (root := party.get("data_root"))
        }
        return self.files | paths

    def party(self, name: str) -> dict[str, Any]:
        """The party of this name."""
        return next(party for party in self.parties if party["name"] == name)

    def add_party(
        self, party: dict[str, Any], call: str, files: dict[str, str]
    ) -> None:
        """Note that a party has joined; `call` is the token of its call.

        files : names of its uploads here, and what the client calls them.
        """
        self.parties.append(party)
        self.joins.append(call)
        self.files |= files

    def remove_party(self, name: str) -> None:
        """Note that a party has left before the training began."""
        i = [party["name"] for party in self.parties].index(name)
        del self.parties[i], self.joins[i]

    def name_of(self, call: str) -> str | None:
        """The party that joined by the call of this token."""
        pairs = zip(self.joins, self.parties, strict=True)
        return next((party["name"] for join, party in pairs if join == call), None)

    def name_party(self, party: dict[str, Any]) -> dict[str, Any]:
        """`party` with the first free name: party-0, party-1, ..."""
        used = {party["name"] for party in self.parties}
        names = (f"party-{i}" for i in itertools.count())
        return {"name": next(name for name in names if name not in used), **party}


FORM = TypeAdapter(State)


def make_id() -> str:
    """A random id of 128 bits, which nobody can guess."""
    return secrets.token_hex(16)


def load(folder: Path) -> State | None:
    """The state in a federation's folder; None if there is no federation.

    Raises
    ------
    ValueError, OSError
        If the file cannot be read, or is not one that the service wrote.
    """
    try:
        plain = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    state = FORM.validate_python(plain)
    _check(state)
    state.is_stopping = (folder / STOP_REQUEST).exists()
    with contextlib.suppress(FileNotFoundError):
        stopped_at = (folder / STOP_RECORD).stat().st_mtime
        if state.started is not None and state.ended is None:
            state.ended = stopped_at
        state.state, state.is_stopping = STOPPED, False
    return state


def _check(state: State) -> None:
    """Raise ValueError for a state that the service did not write."""
    keys = ("name", "data", "data_handler")
    for party in state.parties:
        if not all(isinstance(party.get(key), str) for key in keys):
            raise ValueError(f"a party without {', '.join(keys)}")
    if state.state not in (WAITING, QUEUED, TRAINING, TRAINED, FAILED, STOPPED):
        raise ValueError(f"unknown state {state.state!r}")


def read(folder: Path) -> State:
    """The state in the folder of a federation that exists.

    Raises
    ------
    CallRefused
        404 if there is none.
    """
    state = load(folder)
    if state is None:
        raise no_such_aggregator()
    return state


def no_such_aggregator() -> CallRefused:
    """The refusal of a federation that does not exist, or that another client has."""
    hint = "GET /aggregators lists your own; POST /start-aggregator makes one."
    return CallRefused(404, "There is no such aggregator.", hint)


def save(folder: Path, state: State) -> None:
    """Replace the state file atomically; flushed to disk when this returns."""
    plain = dataclasses.asdict(state)
    del plain["is_stopping"]
    durable_files.write_bytes(folder / FILE, write_json(plain))


def version(folder: Path) -> tuple[int, ...]:
    """Numbers that differ once the state has changed; none if there is no federation.

    For whoever looks often: it reads no file.
    """
    numbers: list[int] = []
    for name in (FILE, STOP_REQUEST, STOP_RECORD):
        with contextlib.suppress(OSError):
            file = (folder / name).stat()
            # the inode, too: times of two writes within milliseconds are the same
            numbers += [file.st_mtime_ns, file.st_ino]
    return tuple(numbers)


@contextlib.contextmanager
def lock(folder: Path, timeout_s: float = LOCK_S) -> Iterator[None]:
    """Hold the lock of a federation's folder, against other processes and threads.

    Raises
    ------
    CallRefused
        404 if there is no such folder, 503 if another holds it for that long.
    """
    until = time.monotonic() + timeout_s
    while True:
        try:
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except (FileNotFoundError, NotADirectoryError):
            raise no_such_aggregator() from None
        try:
            if _has_locked(handle, folder):
                yield
                return
        finally:
            os.close(handle)
        if time.monotonic() > until:
            detail = "Another call is changing this federation."
            raise CallRefused(503, detail, "Try again in a moment.")
        time.sleep(0.01)


def _has_locked(handle: int, folder: Path) -> bool:
    """Lock an open file, unless another has, or the folder was removed meanwhile."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle), (folder / LOCK).stat())
    except (BlockingIOError, FileNotFoundError):
        return False


@contextlib.contextmanager
def changing(
    folder: Path, timeout_s: float = LOCK_S, makes_room: bool = False
) -> Iterator[State]:
    """The state, under the folder's lock; what the block changes is saved at its end.

    Nothing is saved if the block raises.

    Parameters
    ----------
    timeout_s : for the lock.
    makes_room : the change frees disk: on a full one it is saved in the room that
        `keep_reserve` has kept.

    Raises
    ------
    CallRefused
        404 if there is no such federation, 503 if its lock is not to be had.
    OSError
        If the disk refuses; the state is as before.
    """
    with lock(folder, timeout_s):
        state = read(folder)
        before = copy.deepcopy(state)
        yield state
        if state != before:
            try:
                save(folder, state)
            except OSError as error:
                if not makes_room or error.errno not in NO_ROOM:
                    raise
                with contextlib.suppress(FileNotFoundError):
                    os.truncate(folder.parent / RESERVE, 0)
                save(folder, state)


def keep_reserve(root: Path) -> None:
    """Keep some room on the disk, for changes that make more of it."""
    with contextlib.suppress(OSError), (root / RESERVE).open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)


def note_call(folder: Path) -> None:
    """Note when a federation was last called for."""
    with contextlib.suppress(OSError):
        os.utime(folder / LOCK)


def last_call(folder: Path) -> float:
    """When a federation was last called for or changed, in seconds since 1970."""
    times = [0.0]
    for name in (FILE, LOCK):
        with contextlib.suppress(OSError):
            times.append((folder / name).stat().st_mtime)
    return max(times)


def federation_folders(root: Path) -> list[Path]:
    """Folders of all federations under `root`, in the order of their ids."""
    paths = root.iterdir() if root.is_dir() else ()
    return sorted(path for path in paths if ID.fullmatch(path.name))


def list_states(root: Path) -> Iterator[State]:
    """Every federation under `root`, oldest first; unreadable ones are left out."""
    states = []
    for folder in federation_folders(root):
        with contextlib.suppress(ValueError, TypeError, OSError):
            states.append(load(folder))
    yield from sorted(
        (state for state in states if state),
        key=lambda state: (state.created, state.id),
    )


def upload_folder(root: Path) -> Path:
    """Folder of uploads under way."""
    folder = root / INCOMING
    durable_files.make_folder(folder, 0o700)
    keep_reserve(root)
    return folder


def create(root: Path, state: State, model: Path | None) -> Path:
    """Create a federation's folder atomically, with its uploaded model file."""
    folder, aside = root / state.id, root / INCOMING / f"{state.id}.new"
    try:
        aside.mkdir(mode=0o700, parents=True)
        (aside / UPLOADS).mkdir(mode=0o700)
        with lock(aside):
            if model:
                durable_files.move(model, aside / UPLOADS / model.name)
                state.model_file = str(folder / UPLOADS / model.name)
            save(aside, state)
            durable_files.move(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def claim_uploads(
    folder: Path, party: dict[str, Any], files: list[Path]
) -> dict[str, Any]:
    """Move a party's uploads into its federation; returns the party with new paths.

    Raises
    ------
    OSError
        If the disk refuses; nothing of the party is in the federation then.
    """
    moved = dict(party)
    for file in files:
        path = folder / UPLOADS / file.name
        try:
            durable_files.move(file, path)
        except OSError:
            delete_party_uploads(folder, moved)
            raise
        for key in ("data", "data_handler"):
            moved[key] = moved[key].replace(str(file), str(path))
    return moved


def delete_party_uploads(folder: Path, party: dict[str, Any]) -> None:
    """Delete the uploads of a party that has left, or could not join.

    What cannot be deleted is logged; `delete_all_data` tries again.
    """
    for key in ("data", "data_handler"):
        path = Path(party[key].rpartition(":")[0] or party[key])
        if path.parent == folder / UPLOADS:
            try:
                path.unlink(missing_ok=True)
                durable_files.flush(path.parent)
            except OSError:
                LOG.exception("%s stays until the federation is stopped", path)


def delete_all_data(folder: Path, state: State) -> None:
    """Delete everything that parties uploaded; the initial model stays.

    Raises
    ------
    OSError
        If the disk refuses.
    """
    model = Path(state.model_file or "").name
    for file in uploads_in(folder):
        if file.name != model:
            with durable_files.name_errors(file):
                file.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        durable_files.flush(folder / UPLOADS)


def uploads_in(folder: Path) -> list[Path]:
    """Files that lie in a federation's folder of uploads."""
    try:
        return sorted((folder / UPLOADS).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def check_can_join(state: State, max_parties: int) -> None:
    """Raise CallRefused (409) if no party can join the federation."""
    _check_not_stopping(state)
    if state.is_in_training:
        if state.num_parties >= max_parties:
            joined = format_count(state.num_parties, "party has", "parties have")
            detail = f"{joined} joined, the most of this service."
            raise CallRefused(409, detail, "POST /start-aggregator for another one.")
        return
    if state.state != WAITING:
        hint = "POST /start-aggregator for another one."
        raise CallRefused(409, f"This federation is {state.state}.", hint)
    if not state.n_remaining:
        joined = format_count(state.num_parties, "party has", "parties have")
        detail = f"{joined} joined already, and no more are wanted."
        hint = "POST /train, or start one with more num_parties."
        raise CallRefused(409, detail, hint)


def check_can_train(state: State) -> None:
    """Raise CallRefused (409) if parties are missing, or it trains or has trained."""
    _check_not_stopping(state)
    if state.state == WAITING and state.n_remaining:
        parties = format_count(state.num_parties, "party has", "parties have")
        detail = f"{state.n_remaining} of {parties} yet to join."
        raise CallRefused(409, detail, "POST /start-party for each of them first.")
    hints = {
        QUEUED: "GET /aggregators/{id} says when its turn comes; POST /stop ends it.",
        TRAINING: "GET /aggregators/{id} has its progress; POST /stop ends it.",
        TRAINED: "GET /aggregators/{id}/weights gives the model; POST /stop ends it.",
        STOPPED: "POST /start-aggregator for a new one.",
    }
    if state.state in hints:
        detail = f"This federation is {state.state} already."
        raise CallRefused(409, detail, hints[state.state])


def check_can_leave(state: State, party: str) -> None:
    """Raise CallRefused: 404 for an unknown party, 409 if the training is over."""
    if party not in [member["name"] for member in state.parties]:
        detail = (
            "This federation has no such party." if party else "party_id is missing."
        )
        raise CallRefused(404, detail, "GET /aggregators/{id} lists its parties.")
    if state.state == STOPPED:
        hint = "No party of it is left running: there is nothing to do."
        raise CallRefused(409, "This federation is stopped already.", hint)
    _check_not_stopping(state)
    if state.state not in (WAITING, QUEUED, TRAINING, FAILED):
        detail = f"This federation is {state.state} already."
        raise CallRefused(409, detail, "POST /stop ends it with all its parties.")


def _check_not_stopping(state: State) -> None:
    if state.is_stopping:
        hint = "POST /stop answers its model once that is done."
        raise CallRefused(409, "This federation is being stopped.", hint)
