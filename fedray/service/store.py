"""What the service knows of a federation: one small file in the federation's folder.

The folder is also the folder of its run, so it is all there is: whoever has it can tell
of the federation and go on with it.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WAITING, TRAINING, TRAINED = "waiting for parties", "training", "trained"
FAILED, STOPPED = "failed", "stopped"
FILE = "federation.json"
ANSWER = "answer.json"  # global_model and global_model_info, as they are answered
UPLOADS = "uploads"
ID = re.compile(r"[0-9a-f]{32}")
STALE_S = 24 * 3600  # uploads that nobody took over are gone by then


@dataclass
class State:
    """One federation. `parties` are as the config lists them, in order of joining."""

    id: str
    owner: str | None  # client id; None where the service has no keys
    settings: dict[str, Any]  # what came in over REST, checked
    num_parties: int
    model_file: str | None = None  # absolute
    parties: list[dict[str, Any]] = field(default_factory=list)
    joins: list[str] = field(default_factory=list)  # token of each party's call
    state: str = WAITING
    call: str | None = None  # token of the call that began the training
    error: dict[str, Any] | None = None  # why it failed: status, detail, hint
    metrics: dict[str, Any] = field(default_factory=dict)  # of the last round done
    created: float = field(default_factory=time.time)  # seconds since 1970

    @property
    def n_remaining(self) -> int:
        """Parties that have yet to join."""
        return self.num_parties - len(self.parties)

    def party(self, name: str) -> dict[str, Any]:
        """One that is listed."""
        return next(party for party in self.parties if party["name"] == name)

    def joined(self, party: dict[str, Any], call: str) -> dict[str, Any]:
        """What changes when a party joins that is waited for."""
        return {"parties": [*self.parties, party], "joins": [*self.joins, call]}

    def grown(self, party: dict[str, Any], call: str) -> dict[str, Any]:
        """What changes when one more party joins while it trains."""
        return self.joined(party, call) | {"num_parties": self.num_parties + 1}

    def shrunk(self, name: str, last: int | None) -> dict[str, Any]:
        """What changes when a party leaves after round `last`; None: before training.

        Before, another one may join for it.
        """
        if last is None:
            pairs = zip(self.parties, self.joins, strict=True)
            kept = [pair for pair in pairs if pair[0]["name"] != name]
            parties, joins = [party for party, _ in kept], [call for _, call in kept]
            return {"parties": parties, "joins": joins}
        left = self.party(name) | {"left": last + 1}
        return {"parties": [left if p["name"] == name else p for p in self.parties]}

    def named(self, party: dict[str, Any]) -> dict[str, Any]:
        """The next party to join, with its name; no name is given twice."""
        taken = {party["name"] for party in self.parties}
        names = (f"party-{i}" for i in itertools.count())
        return {"name": next(name for name in names if name not in taken), **party}


def new_id() -> str:
    """An id that nobody guesses."""
    return secrets.token_hex(16)


def load(folder: Path) -> State | None:
    """The state in a federation's folder; None if there is no federation."""
    try:
        plain = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return State(**plain)
    except (FileNotFoundError, NotADirectoryError):
        return None


def save(folder: Path, state: State) -> None:
    """Replace the state by a whole new one, on the disk when this returns."""
    aside = folder / f".{FILE}.{secrets.token_hex(4)}"
    text = json.dumps(dataclasses.asdict(state), allow_nan=False)
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, folder / FILE)
    finally:
        aside.unlink(missing_ok=True)


def all_of(root: Path) -> Iterator[State]:
    """Every federation under `root`, oldest first."""
    found = []
    for folder in root.iterdir() if root.is_dir() else ():
        if ID.fullmatch(folder.name):
            with contextlib.suppress(ValueError, TypeError, OSError):
                found.append(load(folder))
    yield from sorted(filter(None, found), key=lambda state: (state.created, state.id))


def incoming(root: Path) -> Path:
    """Folder of uploads under way; forgotten ones in it are thrown away."""
    folder = root / ".incoming"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_S:
                path.unlink()
    return folder


def create(root: Path, state: State, model: Path | None) -> Path:
    """Make a federation's folder appear whole, its model file in it."""
    folder, aside = root / state.id, root / ".incoming" / f"{state.id}.new"
    try:
        (aside / UPLOADS).mkdir(parents=True, mode=0o700)
        if model:
            os.replace(model, aside / UPLOADS / model.name)
            state.model_file = str(folder / UPLOADS / model.name)
        save(aside, state)
        os.rename(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def take_over(folder: Path, party: dict[str, Any], files: list[Path]) -> dict[str, Any]:
    """Move a party's uploads into its federation; the party with its new paths."""
    moved = dict(party)
    for file in files:
        path = folder / UPLOADS / file.name
        os.replace(file, path)
        for key in ("data", "data_handler"):
            moved[key] = moved[key].replace(str(file), str(path))
    return moved


def give_up(folder: Path, party: dict[str, Any]) -> None:
    """Delete the uploads of a party that could not join after all."""
    for key in ("data", "data_handler"):
        path = Path(party[key].rpartition(":")[0] or party[key])
        if path.parent == folder / UPLOADS:
            path.unlink(missing_ok=True)


def forget_data(folder: Path, state: State) -> None:
    """Delete what parties uploaded; the model stays."""
    for file in (folder / UPLOADS).iterdir():
        if str(file) != state.model_file:
            file.unlink(missing_ok=True)
