"""Who is invited to a run from outside and who is enrolled, as its files say.

Two files in ``edges/`` of the run's folder, each only appended to under a file lock:
``invitations.jsonl`` and ``edges.jsonl``. Every process reads what is new in them, so
that the command line, the door and the aggregator need no one between them. Neither has
a secret: only hashes. `fedray.edges.registry` changes them.
"""

import hmac
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray.edges import line_files
from fedray.edges.protocol import Token, hash_secret
from fedray.errors import RunFolderError
from fedray.untrusted_text import same_name

FOLDER = "edges"  # in a run's folder
INVITATIONS, EDGES = "invitations.jsonl", "edges.jsonl"
ENROLLED, REVOKED, LEFT = "enrolled", "revoked", "left"
UNUSED, USED, EXPIRED = "unused", "used", "expired"
MADE_NAME = re.compile(r"edge-[0-9]{1,9}")  # of a population's edges
ERASED = bytes(32)
RESTORE = "Restore it, or move the folder edges/ away and invite the edges anew"


@dataclass(slots=True)
class Edge:
    """One enrolled edge.

    number : its place among the run's edges, from 0; for good.
    name : of the party; None: `edge-<number>`, of a population.
    """

    number: int
    own_name: str | None
    public_key: bytes
    token_hash: bytes
    since: float  # Unix time
    state: str = ENROLLED

    @property
    def name(self) -> str:
        """The party's name."""
        return self.own_name or f"edge-{self.number}"


@dataclass(frozen=True, slots=True)
class Batch:
    """Invitations that were made together: what each says beside its secret."""

    own_name: str | None
    expires: float  # Unix time


@dataclass(frozen=True)
class InvitationState:
    """An invitation as it is listed: its hash's beginning, never its text."""

    id: str
    name: str | None  # of the party; of who has used it
    expires: float | None  # Unix time; None once it is used
    state: str  # unused, used, expired or revoked


class Roster:
    """Invitations and edges of the run in a folder.

    Parameters
    ----------
    run_folder : need not be there yet: edges can be invited before a run begins.
    """

    def __init__(self, run_folder: Path):
        self.folder = Path(run_folder) / FOLDER
        self._reading = threading.RLock()
        self._forget()
        self.refresh()

    def _forget(self) -> None:
        self.run_id = ""
        self.edges: list[Edge] = []
        self._by_name: dict[str, Edge] = {}
        self._batches: list[Batch] = []
        self._invitations: dict[bytes, int] = {}  # hash: batch, or ~edge if it is used
        self._withdrawn: dict[bytes, int] = {}  # hash: batch
        self._tails = {
            name: line_files.Tail(self.folder / name) for name in (INVITATIONS, EDGES)
        }

    @property
    def exists(self) -> bool:
        """Whether anyone was ever invited."""
        return bool(self.run_id)

    @property
    def n_enrolled(self) -> int:
        """Edges that are neither revoked nor gone."""
        return sum(edge.state == ENROLLED for edge in self.edges)

    def refresh(self) -> None:
        """Read what other processes have added.

        Raises
        ------
        RunFolderError
            If a file cannot be read or is damaged.
        """
        try:
            with self._reading:
                if any(tail.was_replaced() for tail in self._tails.values()):
                    self._forget()
                for name, tail in self._tails.items():
                    for line in tail.new_lines():
                        self._take(name, line)
        except OSError as error:
            raise self._unusable(f"cannot be read: {error.strerror}") from None

    def _take(self, file: str, line: bytes) -> None:
        """Take in one line of a file."""
        try:
            plain = json.loads(line)
            getattr(self, f"_take_{plain['kind']}")(plain)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            raise self._unusable(f"has a damaged line in {file}") from None

    def _take_run(self, line: dict[str, Any]) -> None:
        self.run_id = self.run_id or str(line["run"])

    def _take_invite(self, line: dict[str, Any]) -> None:
        self._batches.append(Batch(line["name"], float(line["expires"])))
        batch = len(self._batches) - 1
        for hashed in map(bytes.fromhex, line["hashes"]):
            if hashed != ERASED:
                self._invitations.setdefault(hashed, batch)

    def _take_withdraw(self, line: dict[str, Any]) -> None:
        hashed = bytes.fromhex(line["invitation"])
        batch = self._invitations.get(hashed, -1)
        if batch >= 0:
            self._withdrawn[hashed] = self._invitations.pop(hashed)

    def _take_enrol(self, line: dict[str, Any]) -> None:
        edge = edge_of(line)
        if edge.number == len(self.edges):
            self.edges.append(edge)
        else:
            self.edges[edge.number] = edge
        if edge.own_name is not None:
            self._by_name[same_name(edge.own_name)] = edge
        if edge.token_hash == ERASED:
            edge.state = LEFT
            return
        hashed = bytes.fromhex(line["invitation"])
        self._invitations[hashed] = ~edge.number

    def _take_revoke(self, line: dict[str, Any]) -> None:
        self.edges[line["edge"]].state = REVOKED

    def _take_leave(self, line: dict[str, Any]) -> None:
        edge = self.edges[line["edge"]]
        edge.state, edge.public_key, edge.token_hash = LEFT, ERASED, ERASED
        for hashed in self._hashes_of(edge):
            del self._invitations[hashed]

    def find(self, name: str) -> Edge | None:
        """The edge of this name."""
        if MADE_NAME.fullmatch(name):
            number = int(name.partition("-")[2])
            edge = self.edges[number] if number < len(self.edges) else None
            return edge if edge and edge.name == name else None
        return self._by_name.get(same_name(name))

    def authenticate(self, token: Token) -> Edge | None:
        """The edge whose token this is; None if it is nobody's, or was revoked."""
        if token.run != self.run_id or token.edge >= len(self.edges):
            return None
        edge = self.edges[token.edge]
        hashed = bytes.fromhex(hash_secret(token.secret))
        is_right = hmac.compare_digest(edge.token_hash, hashed)
        return edge if is_right and edge.state == ENROLLED else None

    def invitations(self) -> Iterator[InvitationState]:
        """Every invitation whose edge has not left, in the order they were made."""
        for hashed, place in self._invitations.items():
            if place < 0:
                name = self.edges[~place].name
                yield InvitationState(hashed.hex()[:16], name, None, USED)
            else:
                yield self._state(hashed, place, UNUSED)
        for hashed, place in self._withdrawn.items():
            yield self._state(hashed, place, REVOKED)

    def _state(self, hashed: bytes, place: int, state: str) -> InvitationState:
        batch = self._batches[place]
        if state == UNUSED and time.time() > batch.expires:
            state = EXPIRED
        id = hashed.hex()[:16]
        return InvitationState(id, batch.own_name, batch.expires, state)

    def _hashes_of(self, edge: Edge) -> list[bytes]:
        """Hashes of the invitations that an edge has used."""
        items = self._invitations.items()
        return [hashed for hashed, place in items if place == ~edge.number]

    def _unusable(self, reason: str) -> RunFolderError:
        return RunFolderError(str(self.folder), reason, RESTORE)


def edge_of(line: dict[str, Any]) -> Edge:
    """The edge of a line that enrols it."""
    key, token = (bytes.fromhex(line[name]) for name in ("public_key", "token_hash"))
    return Edge(line["edge"], line["name"], key, token, line["at"])


def read_run_id(run_folder: Path) -> str | None:
    """The id in invitations and tokens of the run in a folder; None: nobody is invited.

    Only the first line is read.
    """
    try:
        with (Path(run_folder) / FOLDER / INVITATIONS).open("rb") as file:
            return str(json.loads(file.readline(4096))["run"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
