"""Invites, enrols, revokes, rotates and lets go edges; `Roster` reads what it writes.

What a method has changed is on disk when it returns.
"""

import contextlib
import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from fedray import durable_files
from fedray.edges import line_files
from fedray.edges.protocol import (
    Enrol,
    Enrolment,
    hash_secret,
    make_secret,
    read_invitation,
    write_invitation,
)
from fedray.edges.roster import (
    EDGES,
    ENROLLED,
    INVITATIONS,
    LEFT,
    MADE_NAME,
    Batch,
    Edge,
    Roster,
    edge_of,
)
from fedray.errors import CallRefused, ConfigError, format_count
from fedray.untrusted_text import name_problem, same_name

LOCK = "lock"
DAYS = 7.0  # that an invitation is valid
MAX_COUNT = 1_000_000  # invitations made by one command
PER_LINE = 500  # of them


class Registry(Roster):
    """The roster of a run, and what changes it, one process at a time."""

    def begin(self) -> str:
        """The run's id in invitations and tokens, which is made if need be.

        Raises
        ------
        RunFolderError
            If the disk refuses.
        """
        if not self.exists:
            with self._lock():
                self._append(INVITATIONS, self._first_line())
        return self.run_id

    def _first_line(self) -> list[dict[str, Any]]:
        """The line that gives the run its id, unless it has one."""
        if self.exists:
            return []
        return [{"kind": "run", "run": secrets.token_hex(16), "at": time.time()}]

    def invite(
        self, name: str | None = None, count: int = 1, days: float = DAYS
    ) -> list[str]:
        """Make invitations; their texts, of which only hashes are kept.

        name : of the one party that this invites; None: edges of a population.

        Raises
        ------
        ConfigError
            If the name is taken, or cannot be one; if a number is out of range.
        RunFolderError
            If the disk refuses.
        """
        _check_invite(name, count, days)
        with self._lock():
            if name is not None:
                self._check_free(name)
            texts = self._invite(name, count, days)
        return texts

    def _invite(self, name: str | None, count: int, days: float) -> list[str]:
        """Write new invitations, within the lock."""
        secret_texts = [make_secret() for _ in range(count)]
        at = time.time()
        lines = self._first_line()
        common = {"kind": "invite", "name": name, "expires": at + days * 86400}
        for start in range(0, count, PER_LINE):
            few = secret_texts[start : start + PER_LINE]
            lines.append({**common, "at": at, "hashes": [*map(hash_secret, few)]})
        self._append(INVITATIONS, lines)
        return [write_invitation(self.run_id, secret) for secret in secret_texts]

    def _check_free(self, name: str) -> None:
        """Refuse a name that is enrolled; withdraw an invitation that it has."""
        edge = self._by_name.get(same_name(name))
        if edge is not None and edge.state == ENROLLED:
            advice = "rotate gives it a new invitation, revoke shuts it out"
            raise ConfigError([f"{name} is enrolled already: {advice}"])
        self._withdraw_of(name)

    def _withdraw_of(self, name: str) -> bool:
        """Let no unused invitation of this name be valid; whether there was one."""
        batches = {
            i
            for i, batch in enumerate(self._batches)
            if batch.own_name and same_name(batch.own_name) == same_name(name)
        }
        items = self._invitations.items() if batches else ()
        hashes = [hashed for hashed, batch in items if batch in batches]
        self._withdraw(hashes)
        return bool(hashes)

    def _withdraw(self, hashes: Sequence[bytes]) -> None:
        lines = [{"kind": "withdraw", "invitation": one.hex()} for one in hashes]
        self._append(INVITATIONS, lines)

    def enrol(self, request: Enrol) -> Enrolment:
        """Enrol one edge; see `enrol_all`."""
        answer = self.enrol_all([request])[0]
        if isinstance(answer, CallRefused):
            raise answer
        return answer

    def enrol_all(self, requests: Sequence[Enrol]) -> list[Enrolment | CallRefused]:
        """Enrol edges with one write and one flush; an answer for each, in order.

        The same invitation with the same key gets the same answer again.

        Raises
        ------
        RunFolderError
            If the disk refuses; then none is enrolled.
        """
        with self._lock():
            answers: list[Enrolment | CallRefused] = []
            lines: list[dict[str, Any]] = []
            accepted: dict[bytes, dict[str, Any]] = {}
            for request in requests:
                try:
                    answers.append(self._admit(request, accepted, lines))
                except CallRefused as error:
                    answers.append(error)
            self._append(EDGES, lines)
        return answers

    def _admit(
        self,
        request: Enrol,
        accepted: dict[bytes, dict[str, Any]],
        lines: list[dict[str, Any]],
    ) -> Enrolment:
        """Answer one request; a new edge's line is added to `lines`.

        accepted : lines of this call, by hash of their invitation.
        """
        hashed = self.hash_of(request)
        if hashed in accepted:
            return self._repeat(request, edge_of(accepted[hashed]))
        if self.is_known(request):
            return self._repeat(request, self.edges[~self._invitations[hashed]])
        batch = self._check(request)
        before = self._by_name.get(same_name(batch.own_name or ""))
        n_new = sum(line["edge"] >= len(self.edges) for line in lines)
        number = before.number if before else len(self.edges) + n_new
        line = {
            "kind": "enrol",
            "edge": number,
            "name": batch.own_name,
            "invitation": hashed.hex(),
            "public_key": request.public_key,
            "token_hash": request.token_hash,
            "at": time.time(),
        }
        lines.append(line)
        accepted[hashed] = line
        return self._answer(edge_of(line))

    def hash_of(self, request: Enrol) -> bytes:
        """The hash of a request's invitation.

        Raises
        ------
        CallRefused
            403 if it is none of this run.
        """
        invitation = read_invitation(request.invitation)
        if invitation is None or invitation.run != self.run_id:
            raise _no_invitation("it is none of this run")
        return bytes.fromhex(hash_secret(invitation.secret))

    def is_known(self, request: Enrol) -> bool:
        """Whether the request's invitation has enrolled an edge already."""
        return self._invitations.get(self.hash_of(request), 0) < 0

    def check(self, request: Enrol) -> Enrolment | None:
        """Answer a request that needs no write; None: `enrol_all` has to.

        Raises
        ------
        CallRefused
            403 or 409, at no cost.
        """
        if self.is_known(request):
            number = ~self._invitations[self.hash_of(request)]
            return self._repeat(request, self.edges[number])
        self._check(request)
        return None

    def _check(self, request: Enrol) -> Batch:
        """The batch of an invitation that may be used; CallRefused 403 if not."""
        hashed = self.hash_of(request)
        if hashed in self._withdrawn:
            raise _no_invitation("it was revoked, or replaced by a newer one")
        place = self._invitations.get(hashed)
        if place is None:
            raise _no_invitation("it is not known here")
        batch = self._batches[place]
        if time.time() > batch.expires:
            raise _no_invitation("it has expired")
        if request.name not in (None, batch.own_name):
            wanted = batch.own_name or "no name: edges of a population are named here"
            raise _no_invitation(f"it is of another name; it has {wanted}")
        return batch

    def _repeat(self, request: Enrol, edge: Edge) -> Enrolment:
        if edge.state != ENROLLED:
            raise _no_invitation("who has used it is revoked")
        is_same = (request.public_key, request.token_hash) == (
            edge.public_key.hex(),
            edge.token_hash.hex(),
        )
        if not is_same:
            detail = "This invitation has enrolled another key or token."
            raise CallRefused(409, detail, "Ask for an invitation of your own.")
        return self._answer(edge)

    def _answer(self, edge: Edge) -> Enrolment:
        number = edge.number
        return Enrolment(
            run=self.run_id, party=number, name=edge.name, edge=str(number)
        )

    def revoke(self, which: str) -> str:
        """Shut out an edge by its name, or an invitation by its id; what it was.

        A name that is invited and has not enrolled is its invitation's.

        Raises
        ------
        ConfigError
            If there is no such edge or unused invitation.
        """
        with self._lock():
            edge = self.find(which)
            if edge is not None and edge.state == ENROLLED:
                self._append(EDGES, [_line("revoke", edge)])
                return f"edge {edge.name}"
            if hashes := self._unused_by_id(which):
                self._withdraw(hashes)
                return f"invitation {which}"
            if self._withdraw_of(which):
                return f"invitation of {which}"
        raise ConfigError([self._describe_missing(which)])

    def shut_out(self, name: str) -> None:
        """Let no edge of this name take part any more, nor enrol; there may be none."""
        with self._lock():
            self._withdraw_of(name)
            edge = self.find(name)
            if edge is not None and edge.state == ENROLLED:
                self._append(EDGES, [_line("revoke", edge)])

    def rotate(self, name: str, days: float = DAYS) -> str:
        """Shut out an edge's key and token; an invitation to enrol anew in its place.

        Raises
        ------
        ConfigError
            If there is no such edge. One of a population has no place to keep: revoke
            it and invite another.
        """
        with self._lock():
            edge = self.find(name)
            if edge is None or edge.state == LEFT:
                raise ConfigError([self._describe_missing(name)])
            if edge.own_name is None:
                advice = "revoke it, and invite another"
                raise ConfigError([f"{name} is one of a population: {advice}"])
            self._withdraw_of(name)
            texts = self._invite(edge.own_name, 1, days)
            self._append(EDGES, [_line("revoke", edge)])
        return texts[0]

    def leave(self, number: int) -> None:
        """Let an edge leave: its token, key and invitation are erased from the files.

        Raises
        ------
        RunFolderError
            If the disk refuses.
        """
        with self._lock():
            edge = self.edges[number]
            if edge.state == LEFT:
                return
            # invitations first: after a crash they would else enrol once more
            if hashes := self._hashes_of(edge):
                texts = [hashed.hex().encode() for hashed in hashes]
                self._erase(INVITATIONS, b"|".join(texts))
            own = rb'\{"kind":"enrol","edge":%d,.*$' % number
            self._erase(EDGES, own)
            self._append(EDGES, [_line("leave", edge)])

    def _unused_by_id(self, id: str) -> list[bytes]:
        if not re.fullmatch(r"[0-9a-f]{8,64}", id):
            return []
        items = self._invitations.items()
        return [one for one, i in items if i >= 0 and one.hex().startswith(id)]

    def _describe_missing(self, which: str) -> str:
        n_edges = format_count(self.n_enrolled, "edge is", "edges are")
        where = f"{n_edges} enrolled; `fedray edges list` and `invitations` have them"
        return f"no edge or unused invitation {which[:80]!r}: {where}"

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep other processes from changing the files, having read what they wrote."""
        handle = self._writing(self._open_lock)
        try:
            self._writing(lambda: fcntl.flock(handle, fcntl.LOCK_EX))
            self.refresh()
            yield
        finally:
            os.close(handle)

    def _open_lock(self) -> int:
        durable_files.make_folder(self.folder, 0o700)
        return os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)

    def _append(self, name: str, lines: Iterable[dict[str, Any]]) -> None:
        """Write lines, flushed, and take them in."""
        texts = [json.dumps(line, separators=(",", ":")) + "\n" for line in lines]
        if texts:
            data = "".join(texts).encode()
            self._writing(lambda: line_files.append(self.folder / name, data))
            self.refresh()

    def _erase(self, name: str, pattern: bytes) -> None:
        """Overwrite the hashes in whatever matches."""
        self._writing(lambda: line_files.erase(self.folder / name, pattern))

    def _writing(self, write: Callable[[], Any]) -> Any:
        try:
            return write()
        except OSError as error:
            raise self._unusable(f"cannot be written: {error.strerror}") from None


def _line(kind: str, edge: Edge) -> dict[str, Any]:
    return {"kind": kind, "edge": edge.number, "at": time.time()}


def _no_invitation(why: str) -> CallRefused:
    detail = f"This invitation enrols nobody: {why}."
    return CallRefused(403, detail, "Ask who invited you for a new one.")


def _check_invite(name: str | None, count: int, days: float) -> None:
    problems = []
    if name is not None:
        if problem := name_problem(name):
            problems.append(f"{name[:80]!r} cannot be a party's name: {problem}")
        elif MADE_NAME.fullmatch(same_name(name)):
            problems.append(f"{name}: such names are given to edges of a population")
        if count != 1:
            problems.append("a name is one party's: leave --name or --count out")
    if not 1 <= count <= MAX_COUNT:
        problems.append(f"count must be 1 to {MAX_COUNT}, got {count}")
    if not 0 < days <= 3650:
        problems.append(f"days must be above 0 and at most 3650, got {days:g}")
    if problems:
        raise ConfigError(problems)
