"""State of each federation: a JSON file in its folder, and which calls it accepts.

The folder is also the folder of the federation's run. It holds everything: a restarted
service or actor reads it and continues from there.
"""

import contextlib
import dataclasses
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

from fedray import durable_files
from fedray.errors import CallRefused, format_count
from fedray.service.json_text import write_json

WAITING, TRAINING, TRAINED = "waiting for parties", "training", "trained"
FAILED, STOPPED = "failed", "stopped"
FILE = "federation.json"
ANSWER = "answer.json"  # global_model and global_model_info, as calls answer them
UPLOADS = "uploads"
LOG = logging.getLogger("fedray")
ID = re.compile(r"[0-9a-f]{32}")
STALE_S = 24 * 3600  # age of an unclaimed upload that is deleted


@dataclass
class State:
    """One federation. `parties` are as the config lists them, in order of joining."""

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
    started: float | None = None  # when its training began, seconds since 1970
    ended: float | None = None  # when that ended

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

    def with_party(
        self, party: dict[str, Any], call: str, files: dict[str, str]
    ) -> dict[str, Any]:
        """Fields that change when a party joins; `call` is its token.

        files : names of its uploads here, and what the client calls them.
        """
        return {
            "parties": [*self.parties, party],
            "joins": [*self.joins, call],
            "files": self.files | files,
        }

    def without_party(self, name: str, last_round: int | None) -> dict[str, Any]:
        """Fields that change when a party leaves.

        last_round : of the party; None: before training, so another can take its place.
        """
        if last_round is None:
            pairs = zip(self.parties, self.joins, strict=True)
            rest = [pair for pair in pairs if pair[0]["name"] != name]
            parties, joins = [party for party, _ in rest], [call for _, call in rest]
            return {"parties": parties, "joins": joins}
        leaver = self.party(name) | {"left": last_round + 1}
        return {"parties": [leaver if p["name"] == name else p for p in self.parties]}

    def name_party(self, party: dict[str, Any]) -> dict[str, Any]:
        """`party` with the first free name: party-0, party-1, ..."""
        used = {party["name"] for party in self.parties}
        names = (f"party-{i}" for i in itertools.count())
        return {"name": next(name for name in names if name not in used), **party}


def make_id() -> str:
    """A random id of 128 bits, which nobody can guess."""
    return secrets.token_hex(16)


def load(folder: Path) -> State | None:
    """The state in a federation's folder; None if there is no federation."""
    try:
        plain = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return State(**plain)
    except (FileNotFoundError, NotADirectoryError):
        return None


def read(folder: Path) -> State:
    """The state in the folder of a federation that exists.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    state = load(folder)
    if state is None:
        raise FileNotFoundError(folder / FILE)
    return state


def save(folder: Path, state: State) -> None:
    """Replace the state file atomically; flushed to disk when this returns."""
    durable_files.write_bytes(folder / FILE, write_json(dataclasses.asdict(state)))


def list_states(root: Path) -> Iterator[State]:
    """Every federation under `root`, oldest first; unreadable ones are left out."""
    states = []
    for folder in root.iterdir() if root.is_dir() else ():
        if ID.fullmatch(folder.name):
            with contextlib.suppress(ValueError, TypeError, OSError):
                states.append(load(folder))
    yield from sorted(
        (state for state in states if state),
        key=lambda state: (state.created, state.id),
    )


def upload_folder(root: Path) -> Path:
    """Folder of uploads under way; deletes those that nobody claimed for a day."""
    folder = root / ".incoming"
    durable_files.make_folder(folder, 0o700)
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_S:
                if path.is_dir():  # of a federation that was not answered
                    shutil.rmtree(path)
                else:
                    path.unlink()
    return folder


def create(root: Path, state: State, model: Path | None) -> Path:
    """Create a federation's folder atomically, with its uploaded model file."""
    folder, aside = root / state.id, root / ".incoming" / f"{state.id}.new"
    try:
        (aside / UPLOADS).mkdir(parents=True, mode=0o700)
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
    for file in (folder / UPLOADS).iterdir():
        if str(file) != state.model_file:
            with durable_files.name_errors(file):
                file.unlink(missing_ok=True)
    durable_files.flush(folder / UPLOADS)


def check_can_join(state: State) -> None:
    """Raise CallRefused (409) if no party can join the federation."""
    if state.state == TRAINING:
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
    if state.state == WAITING and state.n_remaining:
        parties = format_count(state.num_parties, "party has", "parties have")
        detail = f"{state.n_remaining} of {parties} yet to join."
        raise CallRefused(409, detail, "POST /start-party for each of them first.")
    hints = {
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
    if state.state not in (WAITING, TRAINING, FAILED):
        detail = f"This federation is {state.state} already."
        raise CallRefused(409, detail, "POST /stop ends it with all its parties.")
