"""Arrays that parties keep on their own node between rounds.

Layers that stay at their party, its own model, its control variates, its document
vectors: what does not travel is saved in `party_dir` before a round is reported, so
that a party that was killed, or trains a round again, goes on from the same bits.
"""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedray import durable_files
from fedray.errors import DataError
from fedray.party.loading import GroupPlan
from fedray.weights import Weights, npz

HEADER = "header"
STATE, FINETUNED = "state", "finetuned"  # folders within the run's in party_dir


class PartyState(NamedTuple):
    """Arrays of a party after a round; round 0: none are there.

    problem : why those of a later round cannot be used; empty if nothing is wrong.
    """

    arrays: Weights
    round: int = 0
    problem: str = ""


class StateFile(NamedTuple):
    """A file of the store: arrays of some parties after one round.

    number : files are numbered as they are written.
    since : the first round since the weights that this round was trained from were
        fused.
    parties : empty where the file is damaged.
    """

    path: Path
    round: int
    number: int
    since: int
    parties: tuple[str, ...]

    @property
    def is_damaged(self) -> bool:
        """Whether it cannot be read."""
        return not self.parties


class PartyStateStore:
    """Files of one run on one node: `folder`/<round>-<number>-<writer>.npz.

    One file holds the arrays of all parties that an actor trained in a round, and names
    them: parties may move to another actor of the node, or be dealt otherwise. Of a
    party's arrays those written last count; all that it had after the same or a later
    round are from before a restart.

    Parameters
    ----------
    folder : on the party's node; see `check`.
    n_kept : fusions that an aggregator may go back by; rounds since then can be trained
        again, and the arrays that they start from are there. All others are deleted.
    writer : a name of whoever writes, which no other process of the node has.
    """

    def __init__(self, folder: Path, n_kept: int, writer: str = ""):
        self.folder, self.n_kept = folder, n_kept
        self.writer = hashlib.sha256(writer.encode()).hexdigest()[:8]
        self._headers: dict[Path, StateFile] = {}  # of files that have been looked at

    def check(self) -> None:
        """Raise DataError if the folder cannot be written."""
        try:
            durable_files.make_folder(self.folder, 0o700)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            needed = "a folder that can be written, on the party's own node (party_dir)"
            raise DataError(str(self.folder), str(error.strerror), needed) from None

    def recall(self, parties: Sequence[str], before: int) -> list[PartyState]:
        """Each party's newest arrays from before a round; they may be read-only."""
        files = [file for file in self._files() if file.round < before]
        history = _history(files)
        damaged = max((file.round for file in files if file.is_damaged), default=0)
        contents: dict[Path, dict[str, Weights]] = {}
        states = []
        for party in parties:
            state, lost = PartyState({}), damaged
            for row in reversed(history.get(party, [])):
                if row.path not in contents:
                    contents[row.path] = _read(row.path) or {}
                if party in contents[row.path]:
                    state = PartyState(contents[row.path][party], row.round)
                    break
                lost = max(lost, row.round)
            if lost > state.round:
                problem = f"what is there of round {lost} is damaged"
                state = state._replace(problem=problem)
            states.append(state)
        return states

    def save(
        self,
        round: int,
        parties: Sequence[str],
        arrays: Mapping[str, Sequence[np.ndarray]],
        since: int | None = None,
    ) -> None:
        """Write parties' arrays after a round; on disk when this returns.

        Parameters
        ----------
        arrays : by name, one of each party; they may differ in shape.
        since : see `StateFile`; None: `round`.

        Raises
        ------
        OSError
            If the disk refuses; all is as before then.
        """
        durable_files.make_folder(self.folder, 0o700)
        self._remove_leftovers()
        number = 1 + max((file.number for file in self._files()), default=0)
        path = self.folder / f"{round:06d}-{number:06d}-{self.writer}.npz"
        since = round if since is None else since
        file = StateFile(path, round, number, since, tuple(parties))
        _write(file, arrays)
        self._headers[path] = file
        self._prune()

    def _files(self) -> list[StateFile]:
        """All files; of new ones the header is read."""
        headers, files = self._headers, []
        with contextlib.suppress(OSError):
            for path in sorted(self.folder.glob("[0-9]*.npz")):
                file = headers.get(path) or _read_header(path)
                if file is not None:
                    headers[path] = file
                    files.append(file)
        return files

    def _prune(self) -> None:
        """Delete files that no round can need again; shorten those half in use."""
        files = self._files()
        needed: dict[Path, list[str]] = {}
        for party, rows in _history(files).items():
            for row in _needed(rows, self.n_kept):
                needed.setdefault(row.path, []).append(party)
        oldest = min((f.round for f in files if f.path in needed), default=0)
        for file in files:
            names = needed.get(file.path, [])
            with contextlib.suppress(OSError):  # another actor's, who did it already
                if not names and (file.parties or file.round < oldest):
                    file.path.unlink(missing_ok=True)
                    self._headers.pop(file.path, None)
                elif file.parties and 2 * len(names) < len(file.parties):
                    self._shorten(file, names)

    def _shorten(self, file: StateFile, names: Sequence[str]) -> None:
        """Write a file again with these of its parties."""
        rows = _read(file.path) or {}
        if not all(name in rows for name in names):
            return
        shorter = file._replace(parties=tuple(names))
        of_first = rows[names[0]]
        _write(shorter, {name: [rows[p][name] for p in names] for name in of_first})
        self._headers[file.path] = shorter

    def _remove_leftovers(self) -> None:
        """Delete what this writer was killed over."""
        for path in self.folder.glob(f".*-{self.writer}.????????.part.npz"):
            path.unlink(missing_ok=True)


def open_store(plan: GroupPlan, name: str) -> PartyStateStore:
    """Where the parties of an actor keep what is theirs, in a folder of this name.

    Raises
    ------
    DataError
        If there is no such folder.
    """
    folder = plan.config.require_party_folder()
    if plan.own_folder:
        folder = Path(plan.own_folder).expanduser() / name
    return PartyStateStore(folder, plan.config.n_repeatable_rounds, plan.name)


class PartyRow(NamedTuple):
    """Where a party's arrays after a round lie; ordered as they count."""

    round: int
    number: int
    since: int
    path: Path


def _history(files: Sequence[StateFile]) -> dict[str, list[PartyRow]]:
    """Each party's rows that count, in the order of their rounds.

    A row is void once one of the same or an earlier round is written after it.
    """
    rows: dict[str, list[PartyRow]] = {}
    for file in sorted(files, key=lambda file: file.number):
        row = PartyRow(file.round, file.number, file.since, file.path)
        for party in file.parties:
            own = rows.setdefault(party, [])
            while own and own[-1].round >= row.round:
                own.pop()
            own.append(row)
    return rows


def _needed(rows: Sequence[PartyRow], n_kept: int) -> list[PartyRow]:
    """The newest of a party's rows, and those that its last fusions started from."""
    starts = sorted({row.since for row in rows})[-n_kept:]
    before = [[row for row in rows if row.round < start] for start in starts]
    return [*{rows[-1], *(some[-1] for some in before if some)}]


def _write(file: StateFile, arrays: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Replace a file: a header, and for each name the numbers of all parties."""
    shapes = {name: [array.shape for array in each] for name, each in arrays.items()}
    header = {"since": file.since, "parties": file.parties, "shapes": shapes}
    members = {HEADER: np.frombuffer(json.dumps(header).encode(), np.uint8)}
    for name, each in arrays.items():
        members[f"={name}"] = np.concatenate([array.ravel() for array in each])
    with durable_files.replace_file(file.path, 0o600) as aside:
        npz.save(members, aside)


def _read_header(path: Path) -> StateFile | None:
    """What a file says of itself; None if it is gone, or another program's."""
    try:
        round, number = map(int, path.stem.split("-")[:2])
    except ValueError:
        return None
    since, parties = round, tuple[str, ...]()
    try:
        with np.load(path, allow_pickle=False) as archive:
            header = json.loads(archive[f"w:{HEADER}"].tobytes())
        since, parties = int(header["since"]), tuple(map(str, header["parties"]))
    except FileNotFoundError:
        return None
    except Exception:  # a damaged zip raises of many kinds
        pass
    return StateFile(path, round, number, since, parties)


def _read(path: Path) -> dict[str, Weights] | None:
    """All of a file, by party; None if it is damaged or gone."""
    try:
        members = npz.load(path)
        header = json.loads(members.pop(HEADER).tobytes())
        parties: dict[str, Weights] = {name: {} for name in header["parties"]}
        for name, shapes in header["shapes"].items():
            ends = np.cumsum([int(np.prod(shape, dtype=int)) for shape in shapes])
            pieces = np.split(members[f"={name}"], ends[:-1])
            for own, piece, shape in zip(parties.values(), pieces, shapes, strict=True):
                own[name] = piece.reshape(shape)
        return parties
    except Exception:  # a damaged zip raises of many kinds
        return None
