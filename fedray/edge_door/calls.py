"""The calls of ``/edge/v1``, as an ASGI application.

Nothing of a body is read before the caller is known, but for enrolling; no call waits
for Ray but those that end a task.
"""

import asyncio
import json
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from fedray.edge_door import openapi
from fedray.edge_door.open_runs import OpenRun, OpenRuns, refuse_unanswered
from fedray.edge_door.refusals import (
    EdgeRefused,
    belongs_at,
    not_authenticated,
    refusal_response,
    too_old,
)
from fedray.edge_door.uploads import Upload, read_offset
from fedray.edges import pacing
from fedray.edges.protocol import (
    CHUNK,
    MAX_BODY,
    MAX_COMMIT,
    MIN_VERSION,
    OBJECTS,
    OFFSET_HEADER,
    PREFIX,
    PROTOCOL,
    SPOOL,
    TASK_HEADER,
    VOID,
    CheckIn,
    Commit,
    Enrol,
    Fail,
    Message,
    Submission,
    Task,
    Verdict,
    read_invitation,
    read_token,
)
from fedray.edges.roster import Edge
from fedray.edges.signatures import is_signed
from fedray.errors import CallRefused, EdgeMessageError
from fedray.service.auth import Message as AsgiMessage
from fedray.service.auth import Receive, Send
from fedray.service.request_body import read_chunks
from fedray.service.responses import json_response
from fedray.service.settings import Settings
from fedray.untrusted_text import escape_line

MAX_WAITING = 4  # check-ins of one edge
HEARTBEAT_S = (24, 36)  # between check-ins of an edge that trains, where none waits
FILE_PIECE = 256 << 10  # bytes of an answer that are in memory at once
LOG = logging.getLogger("fedray")


@dataclass(frozen=True)
class Caller:
    """The edge that a token is of, and its run."""

    run: OpenRun
    edge: Edge


class EdgeCalls:
    """Answers edges.

    Parameters
    ----------
    runs : that the door has.
    settings : limits of bodies and connections.
    """

    def __init__(self, runs: OpenRuns, settings: Settings):
        self.runs, self.settings = runs, settings
        self.rng = random.Random()
        self.n_waiting = 0
        self.routes: dict[str, Callable[..., Awaitable[Response]]] = {
            "POST enrol": self._enrol,
            "POST checkin": self._check_in,
            "POST leave": self._leave,
            "GET objects/*": self._get_object,
            "HEAD objects/*": self._get_object,
            "HEAD tasks/*/update": self._get_offset,
            "PATCH tasks/*/update": self._take_chunk,
            "POST tasks/*/commit": self._commit,
            "POST tasks/*/fail": self._fail,
            "GET health": self._get_health,
            "GET openapi.json": self._get_description,
        }

    async def __call__(self, scope: AsgiMessage, receive: Receive, send: Send) -> None:
        """Answer one call."""
        try:
            response = await self._answer(Request(scope, receive, send))
        except Exception as error:
            if not isinstance(error, CallRefused | EdgeMessageError):
                LOG.exception("call to %s failed", escape_line(scope["path"][:80]))
            response = refusal_response(error, scope)
        response.headers.setdefault("cache-control", "no-store")
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        name, id = _route(request.scope["path"])
        call = self.routes.get(f"{request.method} {name}")
        if call is None:
            is_there = any(one.endswith(f" {name}") for one in self.routes)
            what = f"There is no call {request.method} {request.scope['path'][:80]}."
            status = 405 if is_there else 404
            raise CallRefused(status, what, f"See {PREFIX}/openapi.json.")
        if request.headers.get("content-encoding", "identity") != "identity":
            hint = "Send the body as it is, without Content-Encoding."
            raise CallRefused(415, "A compressed body is not read.", hint)
        if name in ("enrol", "health", "openapi.json"):
            return await call(request)
        caller = self._authenticate(request)
        return await (call(request, caller, id) if id else call(request, caller))

    def _authenticate(self, request: Request) -> Caller:
        """Whose token a call has.

        Raises
        ------
        CallRefused
            401 if nobody's, 410 if the run has ended, 503 if it is not there.
        """
        values = request.headers.getlist("authorization")
        scheme, _, text = (values[0] if len(values) == 1 else "").partition(" ")
        token = read_token(text) if scheme.lower() == "bearer" else None
        if token is None:
            raise not_authenticated()
        run = self.runs.find(token.run)
        run.registry.refresh()
        edge = run.registry.authenticate(token)
        if edge is None:
            raise not_authenticated()
        run.check_open()
        return Caller(run, edge)

    async def _read(self, request: Request, kind: type[Message], limit: int) -> Any:
        """The body of a call as a message; 426 where its edge is too old."""
        body = bytearray()
        async for chunk in read_chunks(request, self.settings, limit):
            body += chunk
        try:
            message = kind.parse(bytes(body))
        except EdgeMessageError:
            _check_protocol(bytes(body))
            raise
        if isinstance(message, Enrol | CheckIn):
            _check_version(message.protocol, message.version)
        return message

    async def _enrol(self, request: Request) -> Response:
        enrol: Enrol = await self._read(request, Enrol, MAX_BODY)
        invitation = read_invitation(enrol.invitation)
        if invitation is None:
            detail, hint = "This is no invitation.", "Send it whole, as it was given."
            raise CallRefused(403, detail, hint)
        run = self.runs.find(invitation.run)
        run.check_open()
        return _message(await run.enrol(enrol), 201)

    async def _check_in(self, request: Request, caller: Caller) -> Response:
        check_in: CheckIn = await self._read(request, CheckIn, MAX_BODY)
        run, edge = caller.run, caller.edge
        run.presence.begin(edge, check_in)
        is_gone = False
        try:
            answer = _find_answer(run, edge, check_in)
            has_waited = False
            if answer is None and self._may_wait(caller, check_in):
                is_gone = await self._wait(request, caller, check_in)
                answer, has_waited = _find_answer(run, edge, check_in), True
            run.check_open()
            return answer or self._empty(check_in, has_waited)
        finally:
            run.presence.end(edge, check_in, is_gone)

    def _may_wait(self, caller: Caller, check_in: CheckIn) -> bool:
        if caller.run.presence.n_open(caller.edge) > MAX_WAITING:
            return False
        n_edges = self._count_active()
        has_room = self.n_waiting < self.settings.max_connections // 2
        return check_in.wait_s > 0 and has_room and pacing.may_wait(n_edges)

    def _count_active(self) -> int:
        return sum(run.presence.n_active() for run in self.runs)

    async def _wait(self, request: Request, caller: Caller, check_in: CheckIn) -> bool:
        """Wait until the edge's tasks change; whether it has hung up meanwhile."""
        event = caller.run.board.watch(caller.edge.name)
        hang_up = asyncio.ensure_future(_wait_for_hang_up(request))
        change = asyncio.ensure_future(self._wait_for_answer(event, caller, check_in))
        self.n_waiting += 1
        try:
            first = asyncio.FIRST_COMPLETED
            waits_s = check_in.wait_s
            await asyncio.wait((hang_up, change), timeout=waits_s, return_when=first)
            return hang_up.done()
        finally:
            self.n_waiting -= 1
            hang_up.cancel()
            change.cancel()
            caller.run.board.unwatch(caller.edge.name, event)

    async def _wait_for_answer(
        self, event: asyncio.Event, caller: Caller, check_in: CheckIn
    ) -> None:
        while caller.run.ended is None:
            await event.wait()
            event.clear()
            if _find_answer(caller.run, caller.edge, check_in) is not None:
                return

    def _empty(self, check_in: CheckIn, has_waited: bool) -> Response:
        """204: nothing to do; when to come back."""
        if has_waited:
            after_s = 0
        elif check_in.state != "idle":
            after_s = round(self.rng.uniform(*HEARTBEAT_S))
        else:
            after_s = pacing.return_after_s(self._count_active(), self.rng)
        return Response(status_code=204, headers={"retry-after": str(after_s)})

    async def _get_object(self, request: Request, caller: Caller, id: str) -> Response:
        run, edge = caller.run, caller.edge
        run.check_ready()
        path = run.folder / SPOOL / OBJECTS / id
        is_name = len(id) == 64 and set(id) <= set("0123456789abcdef")
        if not is_name or not run.board.tasks_of(edge.name) or not path.is_file():
            detail = "There is no such object for this edge now."
            raise CallRefused(404, detail, "A task names the objects that it needs.")
        tag = f'"{id}"'
        headers = {"etag": tag, "cache-control": "private, immutable"}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return ObjectResponse(
            path, headers, lambda n: run.presence.note_download(edge, n)
        )

    async def _get_offset(self, request: Request, caller: Caller, id: str) -> Response:
        _, upload = await self._upload(caller, id)
        headers = {OFFSET_HEADER: str(upload.n_bytes), "cache-control": "no-store"}
        return Response(status_code=204, headers=headers)

    async def _take_chunk(self, request: Request, caller: Caller, id: str) -> Response:
        task, upload = await self._upload(caller, id)
        offset = read_offset(request.headers.get(OFFSET_HEADER, ""))
        before = upload.n_bytes
        if offset > task.max_bytes:
            raise belongs_at(before, f"The file has at most {task.max_bytes} bytes.")
        chunks = read_chunks(
            request, self.settings, min(CHUNK, task.max_bytes - offset)
        )
        rate = 0.0
        try:
            rate = await upload.receive(offset, chunks)
        finally:
            n_bytes = max(0, upload.n_bytes - before)
            caller.run.presence.note_upload(caller.edge, n_bytes, rate)
        return Response(status_code=204, headers={OFFSET_HEADER: str(upload.n_bytes)})

    async def _upload(self, caller: Caller, id: str) -> tuple[Task, Upload]:
        """A task of the caller's that is open, and its file.

        Raises
        ------
        CallRefused
            409 if it has no such task now, 503 if that is not known yet.
        """
        run = caller.run
        task = run.board.task_of(caller.edge.name, id)
        if task is None:
            run.check_ready()
            wanted = run.board.next_task(caller.edge.name)
            now = f"its task is {wanted.id}" if wanted else "it has none"
            detail = f"This task is not open for {caller.edge.name}: {now}."
            more = {"task": wanted.id if wanted else None}
            raise EdgeRefused(409, detail, "Check in for a task.", more=more)
        return task, await run.uploads.open(task)

    async def _commit(self, request: Request, caller: Caller, id: str) -> Response:
        commit: Commit = await self._read(request, Commit, MAX_COMMIT)
        report = self._check_signature(caller.edge, id, commit)
        run, name = caller.run, caller.edge.name
        task, upload = run.board.task_of(name, id), None
        if task is None:
            run.check_ready()
        elif commit.size > 0:
            upload = await run.uploads.open(task)
        # no byte of the file changes between what is judged and what is taken
        async with upload.lock if upload else asyncio.Lock():
            path = _whole_file(upload, commit) if upload else None
            submission = Submission(id, name, commit.sha256, commit.size, path, report)
            verdict = await self._submit(caller, id, submission)
        if verdict is None:
            n_there = upload.n_bytes if upload else 0
            detail = f"{n_there} of {commit.size} bytes have arrived."
            raise belongs_at(n_there, detail)
        if task is not None:
            run.board.finish(id)
            run.uploads.delete(id)
        if verdict.sha256 not in (None, commit.sha256):
            detail = "Another file stands for this task; it was committed first."
            more = {"sha256": verdict.sha256, "verdict": verdict.verdict}
            raise EdgeRefused(409, detail, "Check in for a task.", more=more)
        return _message(verdict)

    @staticmethod
    def _check_signature(edge: Edge, id: str, commit: Commit) -> dict[str, Any]:
        """The report of a commit that the edge has signed.

        Raises
        ------
        CallRefused
            422 if it has not, or the report is no object.
        """
        signature = bytes.fromhex(commit.signature)
        if not is_signed(edge.public_key, signature, commit.signed_bytes(id)):
            detail = "The signature is not of this commit by the key that is enrolled."
            hint = "Sign its signed_bytes with the edge's private key."
            raise CallRefused(422, detail, hint)
        try:
            report = json.loads(commit.report)
        except (ValueError, RecursionError):
            report = None
        if not isinstance(report, dict):
            raise CallRefused(422, "report is no JSON object.", "Send one.")
        return report

    async def _submit(
        self, caller: Caller, id: str, submission: Submission
    ) -> Verdict | None:
        """What the group says to a commit; of a task that is closed, one that knows."""
        run, name = caller.run, caller.run.board.group_of(id)
        groups = [run.groups[name]] if name else [*run.groups.values()]
        late = Verdict(verdict="late", why="the task is not open any more")
        try:
            answers = [await group.commit(submission) for group in groups]
        except Exception as error:
            raise refuse_unanswered(error) from None
        if name is not None:
            return answers[0]
        verdicts = [one for one in answers if one is not None]
        return max(verdicts, key=lambda one: one.sha256 is not None, default=late)

    async def _fail(self, request: Request, caller: Caller, id: str) -> Response:
        fail: Fail = await self._read(request, Fail, MAX_BODY)
        run, name = caller.run, caller.edge.name
        if run.board.task_of(name, id) is None:
            run.check_ready()
        elif (group := run.board.group_of(id)) is not None:
            message = escape_line(fail.message)
            try:
                await run.groups[group].fail(id, name, fail.kind, message)
            except Exception as error:
                raise refuse_unanswered(error) from None
            run.uploads.delete(id)
        return json_response({})

    async def _leave(self, request: Request, caller: Caller) -> Response:
        run, edge = caller.run, caller.edge
        for task in run.board.tasks_of(edge.name):
            run.uploads.delete(task.id)
        await asyncio.to_thread(run.registry.leave, edge.number)
        for group in run.groups.values():
            try:
                await group.leave(edge.name)
            except Exception as error:  # it reads the registry when it is back
                refuse_unanswered(error)
        return json_response({})

    async def _get_health(self, request: Request) -> Response:
        plain = {"status": "ok", "protocol": PROTOCOL, "min_version": MIN_VERSION}
        return json_response(plain)

    async def _get_description(self, request: Request) -> Response:
        return json_response(openapi.describe())


class ObjectResponse(FileResponse):
    """A file of the spool; tells how many of its bytes were handed over."""

    chunk_size = FILE_PIECE

    def __init__(
        self, path: Path, headers: Mapping[str, str], note: Callable[[int], None]
    ):
        super().__init__(path, media_type="application/octet-stream", headers=headers)
        self.note = note

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it."""
        n_bytes = 0

        async def count(message: AsgiMessage) -> None:
            nonlocal n_bytes
            n_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await super().__call__(scope, receive, count)
        finally:
            self.note(n_bytes)


def _route(path: str) -> tuple[str, str]:
    """A call's name, as `EdgeCalls.routes` has it, and the id in its path."""
    head, _, rest = path.partition(f"{PREFIX}/")
    parts = rest.split("/")
    if head or len(parts) > 3 or len(path) > 200:
        return "", ""
    if parts[0] in ("objects", "tasks") and len(parts) > 1 and parts[1]:
        return "/".join((parts[0], "*", *parts[2:])), parts[1]
    return rest, ""


def _find_answer(run: OpenRun, edge: Edge, check_in: CheckIn) -> Response | None:
    """What a check-in is answered at once; None: nothing has changed for this edge."""
    task = run.board.next_task(edge.name)
    if check_in.task is not None and not run.unready:
        if run.board.task_of(edge.name, check_in.task) is not None:
            return None
        if task is None:
            headers = {TASK_HEADER: VOID, "retry-after": "0"}
            return Response(status_code=204, headers=headers)
    if task is None or check_in.task == task.id:
        return None
    run.presence.note_task(edge, task)
    return _message(task)


def _whole_file(upload: Upload, commit: Commit) -> str | None:
    """The path of a file that is as its commit says; None if bytes are missing.

    Raises
    ------
    CallRefused
        409 if it is another one; it is deleted then.
    """
    if not upload.is_on_disk():
        upload.restart()
    if upload.n_bytes < commit.size:
        return None
    if upload.n_bytes == commit.size and upload.hash.hexdigest() == commit.sha256:
        return str(upload.path)
    upload.restart()
    detail = "What has arrived is not the file of this SHA-256; it was deleted."
    raise belongs_at(0, detail)


def _check_protocol(body: bytes) -> None:
    """Raise CallRefused 426 if a body that cannot be read is of another protocol."""
    try:
        protocol = json.loads(body)["protocol"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return
    if isinstance(protocol, int) and protocol != PROTOCOL:
        raise too_old(protocol)


def _check_version(protocol: int, version: str) -> None:
    """Raise CallRefused 426 if the edge is too old, or newer than the service."""
    if protocol != PROTOCOL or _numbers(version) < _numbers(MIN_VERSION):
        raise too_old(protocol, version)


def _numbers(version: str) -> list[int]:
    numbers = []
    for part in version.split("."):
        digits = len(part) - len(part.lstrip("0123456789"))
        numbers.append(int(part[:digits] or 0))
    return numbers


def _message(message: Message, status: int = 200) -> Response:
    return Response(message.to_json(), status, media_type="application/json")


async def _wait_for_hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
