"""The calls of the edge protocol, as an edge makes them; see `fedray.edges.protocol`.

Each body is noted in sent.jsonl before it leaves.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from fedray.edge.errors import CallFailed, EdgeEnded, Unreachable
from fedray.edge.http_client import Answer, Call, HttpClient, retry_after_of
from fedray.edge.sent_log import SentLog
from fedray.edges.protocol import (
    OFFSET_HEADER,
    TASK_HEADER,
    VOID,
    CheckIn,
    Commit,
    Enrol,
    Enrolment,
    Fail,
    Refusal,
    Task,
    Verdict,
)
from fedray.errors import EdgeMessageError
from fedray.untrusted_text import escape_line

JSON = {"Content-Type": "application/json"}
T = TypeVar("T")
MAX_SHOWN = 400  # characters of what a service says


class Invited(NamedTuple):
    """The answer to a check-in: a task, or when to come back.

    is_void : whether the task that this edge works at is not waited for any more.
    """

    task: Task | None
    retry_after_s: float | None
    is_void: bool = False


class Service:
    """One edge's calls to its service; for one thread.

    Raises
    ------
    Unreachable
        Where the same call may succeed later.
    EdgeEnded
        Where no further call can: the run has ended, the edge is not known any more.
    CallFailed
        Where this call is refused.
    """

    def __init__(self, http: HttpClient, sent_log: SentLog):
        self.http, self.sent_log = http, sent_log

    def enrol(self, enrol: Enrol) -> Enrolment:
        """Take part: the same call again gets the same answer."""
        answer = self._post("enrol", "enrol", enrol.to_json())
        if answer.status == 403:
            remedy = "ask the service's operator for a new one"
            raise EdgeEnded(f"the invitation is refused: {_words(answer)}; {remedy}")
        if answer.status == 409:
            remedy = "use the state folder that it was used with, or a new invitation"
            raise EdgeEnded(f"the invitation has enrolled another edge; {remedy}")
        if answer.status not in (200, 201):
            raise self._refused(answer)
        return self._parse(Enrolment.parse, answer)

    def check_in(self, check_in: CheckIn) -> Invited:
        """Say what this edge does, and hear what it is to do."""
        answer = self._post(
            "checkin", "checkin", check_in.to_json(), wait_s=check_in.wait_s
        )
        if answer.status == 204:
            is_void = answer.headers.get(TASK_HEADER) == VOID
            return Invited(None, retry_after_of(answer), is_void)
        if answer.status != 200:
            raise self._refused(answer)
        return Invited(self._parse(Task.parse, answer), None)

    def fetch(self, sha256: str, n_bytes: int, path: Path) -> None:
        """Download an object; goes on where an earlier download broke off.

        Raises
        ------
        CallFailed
            If the service has another object under this name, or none.
        """
        part = path.with_suffix(".part")
        with part.open("ab") as file:
            os.fchmod(file.fileno(), 0o600)
            if file.tell() > n_bytes:
                file.truncate(0)
            while (offset := file.tell()) < n_bytes:
                self._fetch_rest(sha256, offset, n_bytes, file)
                if file.tell() == offset:
                    raise Unreachable(f"{self.http.url} sends nothing of an object")
            file.flush()
            os.fsync(file.fileno())
        if digest_of(part) != sha256:
            part.unlink()
            what = f"{self.http.url} sent another object than {sha256[:12]}"
            raise Unreachable(f"{what}: its SHA-256 differs; fetched anew")
        part.rename(path)

    def size_of(self, sha256: str) -> int:
        """Bytes of an object."""
        answer = self.http.call(Call("HEAD", f"objects/{sha256}"))
        text = answer.headers.get("content-length", "")
        if answer.status != 200 or not (text.isascii() and text.isdecimal()):
            raise self._refused(answer)
        return int(text[:16])

    def _fetch_rest(
        self, sha256: str, offset: int, n_bytes: int, file: BinaryIO
    ) -> None:
        has_begun = False

        def write(status: int, piece: bytes) -> None:
            nonlocal has_begun
            if status == 200 and not has_begun:  # the whole, whatever was asked for
                file.truncate(0)
            has_begun = True
            if file.tell() + len(piece) > n_bytes:
                raise Unreachable(f"{self.http.url} sends more than it said")
            file.write(piece)

        headers = {"Range": f"bytes={offset}-"} if offset else {}
        path = f"objects/{sha256}"
        try:
            answer = self.http.call(Call("GET", path, None, headers, write))
        finally:
            file.flush()
        if answer.status not in (200, 206):
            raise self._refused(answer)

    def offset(self, task_id: str) -> int:
        """Bytes of a task's update that the service has."""
        answer = self.http.call(Call("HEAD", f"tasks/{task_id}/update"))
        if answer.status not in (200, 204):
            raise self._refused(answer)
        return _offset_of(answer)

    def send_chunk(self, task_id: str, offset: int, chunk: bytes) -> int:
        """Send a piece of an update; where the next one begins."""
        headers = {
            OFFSET_HEADER: str(offset),
            "Content-Type": "application/octet-stream",
        }
        path = f"tasks/{task_id}/update"
        answer = self._send("update", Call("PATCH", path, chunk, headers))
        if answer.status == 409 and OFFSET_HEADER in answer.headers:
            return _offset_of(answer)
        if answer.status not in (200, 204):
            raise self._refused(answer)
        return _offset_of(answer)

    def commit(self, task_id: str, commit: Commit) -> Verdict | int:
        """End a task: what became of it, or the offset of bytes that are missing."""
        answer = self._post("commit", f"tasks/{task_id}/commit", commit.to_json())
        if answer.status == 409 and OFFSET_HEADER in answer.headers:
            return _offset_of(answer)
        if answer.status != 200:
            raise self._refused(answer)
        return self._parse(Verdict.parse, answer)

    def fail(self, task_id: str, fail: Fail) -> None:
        """Give a task back; that the service does not know it any more is no matter."""
        with contextlib.suppress(CallFailed):
            answer = self._post("fail", f"tasks/{task_id}/fail", fail.to_json())
            if answer.status != 200:
                raise self._refused(answer)

    def leave(self) -> bool:
        """Leave the run: the service erases what it has of this edge.

        False if it does not know this edge, as after a leave whose answer was lost.
        """
        answer = self._post("leave", "leave", b"{}")
        if answer.status not in (200, 401):
            raise self._refused(answer)
        return answer.status == 200

    def _post(self, kind: str, path: str, body: bytes, wait_s: float = 0.0) -> Answer:
        return self._send(kind, Call("POST", path, body, JSON, wait_s=wait_s))

    def _send(self, kind: str, call: Call) -> Answer:
        """Make a call whose body is noted each time that it leaves."""
        body = call.body or b""
        note = partial(self.sent_log.add, kind, body)
        return self.http.call(call._replace(on_send=note))

    def _parse(self, parse: Callable[[bytes], T], answer: Answer) -> T:
        try:
            return parse(answer.body)
        except EdgeMessageError as error:
            what = f"{self.http.url} answers what this version cannot read"
            raise Unreachable(
                f"{what} ({escape_line(str(error))[:MAX_SHOWN]})"
            ) from None

    def _refused(self, answer: Answer) -> CallFailed | EdgeEnded:
        """The error of an answer that is not what was asked for."""
        words, url = _words(answer), self.http.url
        if answer.status == 401:
            remedy = "its operator has revoked it, or keeps another list of edges"
            return EdgeEnded(
                f"{url} does not know this edge any more ({words}): {remedy}"
            )
        if answer.status == 410:
            reason = _refusal(answer).reason or words
            return EdgeEnded(f"the run has ended: {_short(reason)}", is_done=True)
        if answer.status == 426:
            needed = _refusal(answer).min_version
            version = f"fedray {_short(needed)}" if needed else "a newer fedray"
            what = f"{url} needs {version} at least"
            return EdgeEnded(f"{what}: update it here, pip install -U fedray")
        return CallFailed(answer.status, words)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _offset_of(answer: Answer) -> int:
    text = answer.headers.get(OFFSET_HEADER, "")
    if not text.isascii() or not text.isdecimal() or len(text) > 16:
        raise CallFailed(answer.status, "the service does not say which bytes it has")
    return int(text)


def _refusal(answer: Answer) -> Refusal:
    try:
        return Refusal.model_validate_json(answer.body)
    except ValueError:
        return Refusal(error="", detail="", hint="")


def _words(answer: Answer) -> str:
    """What the service says of a refusal, in one harmless line."""
    refusal = _refusal(answer)
    words = f"{refusal.detail} {refusal.hint}".strip()
    return _short(words or "it gives no reason")


def _short(text: str) -> str:
    return escape_line(text)[:MAX_SHOWN]
