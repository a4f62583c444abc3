"""The edge protocol, version 1: every call between an edge and the service's door.

The door that answers (`fedray.edge_door`), the agent that calls (`fedray.edge`) and the
group of edges in the cluster, which hands out tasks, all go by it. Bodies are JSON of
at most `MAX_BODY` bytes (`MAX_COMMIT` for a commit); each class has `parse`, which
refuses what is not as declared here, and `to_json`. Paths are below `PREFIX`.

========================= ============== ===============================================
call                      sends          answers
========================= ============== ===============================================
POST enrol                `Enrol`        201 `Enrolment`; 403, 409, 426
POST checkin              `CheckIn`      200 `Task`; 204 + Retry-After; 409, 410, 426
GET objects/{sha256}      Range          200, 206, 304 (ETag is the SHA-256), 416
HEAD tasks/{id}/update    -              204 Upload-Offset
PATCH tasks/{id}/update   Upload-Offset, 204 Upload-Offset; 409 + Upload-Offset where
                          up to `CHUNK`  the next byte belongs elsewhere; 413, 429
POST tasks/{id}/commit    `Commit`       200 `Verdict`; 409 if another file stands, or
                                         bytes are missing (+ Upload-Offset)
POST tasks/{id}/fail      `Fail`         200 {}
POST leave                {}             200 {}: token, uploads, invitation are erased
========================= ============== ===============================================

All but enrol carry ``Authorization: Bearer <token>``. Any call may answer 401 (unknown
or revoked token: no retry helps), 410 (the run has ended), 429 or 503 (+ Retry-After:
the same call helps later; 503 also for a run that the door does not have yet) and 507.
A refusal's body is `Refusal`.

An edge keeps a check-in open while it trains or sends, too (`wait_s`, its `task`): the
door then sees at once that its process died, and the edge hears at once when the task
is void: 204 with ``Edge-Task: void``, or 200 with another task. A check-in names its
process by `instance`, which each process makes anew: the second of one identity gets
409. A commit may be sent before its file, to ask whether it stands already.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedray.errors import EdgeMessageError

PROTOCOL = 1
MIN_VERSION = "0.1.0"  # of fedray, at the edge; older ones get 426
PREFIX = "/edge/v1"
MAX_BODY = 64 << 10  # bytes of a JSON body
MAX_COMMIT = 1 << 20  # bytes of a commit's body, report included
CHUNK = 8 << 20  # bytes of one PATCH, at most
MAX_WAIT_S = 25  # of a check-in, until it is answered 204
MAX_HAVE = 64  # objects that a check-in lists
MAX_EDGE_TEXT = 2000  # characters of why a task failed
OFFSET_HEADER = "upload-offset"
TASK_HEADER, VOID = "edge-task", "void"  # with 204 to a check-in of a task
INVITATION_HEAD = "fedray-invite"
DOOR_ACTOR, NAMESPACE = "edge-door", "fedray"  # the door's name on the cluster
SPOOL = Path("edges", "spool")  # in a run's folder: what is under way
OBJECTS, UPLOADS = "objects", "uploads"  # in it: <sha256>; <task id>.part

RUN_ID = re.compile(r"[0-9a-f]{32}")
SECRET = re.compile(r"[A-Za-z0-9_-]{43}")  # 256 bits
INVITATION = re.compile(rf"{INVITATION_HEAD}\.({RUN_ID.pattern})\.({SECRET.pattern})")
TOKEN = re.compile(rf"({RUN_ID.pattern})\.(0|[1-9][0-9]{{0,8}})\.({SECRET.pattern})")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
TaskId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
RunId = Annotated[str, Field(pattern=rf"^{RUN_ID.pattern}$")]
Name = Annotated[str, Field(min_length=1, max_length=64)]
VERSION = r"[0-9]{1,5}(\.[0-9]{1,5}){0,3}[a-z0-9.+-]{0,20}"
Version = Annotated[str, Field(pattern=rf"^{VERSION}$")]
Bytes = Annotated[int, Field(ge=0, le=1 << 44)]
Count = Annotated[int, Field(ge=0, le=1 << 53)]
State = Literal["idle", "training", "sending"]
Kind = Literal["join", "train", "update", "evaluate"]


class Message(BaseModel):
    """A JSON object of the protocol; a key that is not declared is refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    @classmethod
    def parse(cls, body: bytes | str) -> Self:
        """Read a body.

        Raises
        ------
        EdgeMessageError
            Naming each field that is wrong, and no value: it may be a secret.
        """
        try:
            return cls.model_validate_json(body or b"{}")
        except ValidationError as error:
            problems = [_describe(one) for one in error.errors(include_input=False)]
            raise EdgeMessageError(cls.__name__, problems[:8]) from None

    def to_json(self) -> bytes:
        """The body, in UTF-8."""
        return self.model_dump_json().encode()


class Enrol(Message):
    """An edge asks to take part; it has made and flushed keys and token before.

    invitation : `fedray-invite.<run id>.<secret>`; it enrols one public key.
    name : that of the invitation, or null. Edges of a population are named here.
    public_key : Ed25519, hex; it signs commits.
    token_hash : SHA-256 of the secret in the token (`hash_secret`), hex.
    """

    invitation: Annotated[str, Field(max_length=200)]
    name: Name | None = None
    public_key: Sha256
    token_hash: Sha256
    protocol: Annotated[int, Field(ge=0, le=1 << 30)] = PROTOCOL
    version: Version


class Enrolment(Message):
    """The answer to `Enrol`, and to the same `Enrol` again.

    run : the run's id, first part of the token.
    edge : number among the run's edges, second part of the token.
    name : of the party; `edge-<number>` in a population.
    party : the same as `edge`; a task says the place that its seeds go by.
    """

    run: RunId
    party: Count
    name: Name
    edge: Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class CheckIn(Message):
    """An edge says what it does, and asks for a task.

    share : of the work of its state that is done, 0 to 1.
    task : id of the task that it trains or sends.
    have : SHA-256 of objects that it has: a task with one of them need not wait.
    wait_s : how long the answer may take; 0: at once.
    instance : 32 hex digits, made new by each process.
    """

    state: State = "idle"
    share: Annotated[float, Field(ge=0, le=1)] = 0.0
    task: TaskId | None = None
    have: Annotated[list[Sha256], Field(max_length=MAX_HAVE)] = []
    wait_s: Annotated[float, Field(ge=0, le=MAX_WAIT_S)] = 0.0
    instance: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    protocol: Annotated[int, Field(ge=0, le=1 << 30)] = PROTOCOL
    version: Version


class Task(Message):
    """What one edge is to do: train, evaluate, or say what data it has (join).

    A `train` with `since` sends a report alone: the party keeps its weights, and may be
    asked for them by an `update`. All others answer as `PartyGroup` does.

    id : hash of (run, group, round, place, base, kind, attempt): asked twice, one task.
    run, round, party : origin of the update (`fedray.messages.Origin`): the run's name,
        the round, the place.
    name : of the party; seeds go by (seed, round, name).
    base, plan, state : SHA-256 of the weights, of the plan (JSON), of the rule's state;
        they are fetched from objects/.
    since, learning_rate : as `PartyGroup.train` takes them.
    max_bytes : of the update's file.
    lease_s : seconds after which the task is void.
    """

    id: TaskId
    run: Annotated[str, Field(max_length=200)]
    group: Annotated[str, Field(max_length=200)] | None = None
    round: Count
    party: Count
    name: Name
    attempt: Count = 0
    kind: Kind
    base: Sha256 | None = None
    base_bytes: Bytes = 0
    plan: Sha256
    plan_bytes: Bytes
    state: Sha256 | None = None
    state_bytes: Bytes = 0
    since: Count | None = None
    learning_rate: float | None = None
    max_bytes: Bytes = 0
    lease_s: Annotated[float, Field(gt=0)]


class Commit(Message):
    """An edge ends a task: its file has arrived, and this is its report.

    size, sha256 : of the file; 0 and the SHA-256 of nothing where there is none.
    report : JSON text: an object, signed as it stands here.
    signature : Ed25519 over `signed_bytes`, hex.
    """

    size: Bytes
    sha256: Sha256
    report: Annotated[str, Field(max_length=MAX_COMMIT)]
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]

    def signed_bytes(self, task_id: str) -> bytes:
        """What the signature is of; the one of the task with this id."""
        head = f"fedray edge commit 1\n{task_id}\n{self.size}\n{self.sha256}\n"
        return (head + self.report).encode()


class Verdict(Message):
    """What became of a commit; the same however often it is sent.

    verdict : taken: it counts. late: its round was closed. refused: `why` says it.
    sha256 : of the file that stands for the task.
    """

    verdict: Literal["taken", "late", "refused"]
    why: Annotated[str, Field(max_length=MAX_EDGE_TEXT)] = ""
    sha256: Sha256 | None = None


class Fail(Message):
    """An edge gives a task back.

    kind : refused (its owner's policy), data, memory, training, other.
    """

    kind: Annotated[str, Field(pattern=r"^[a-z_]{1,32}$")]
    message: Annotated[str, Field(max_length=MAX_EDGE_TEXT)] = ""


class Refusal(BaseModel):
    """Body of an answer of 400 and above.

    min_version : with 426: the fedray that the edge needs at least.
    reason : with 410: why the run has ended.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)
    error: str
    detail: str
    hint: str
    min_version: str | None = None
    reason: str | None = None


class Invitation(NamedTuple):
    """An invitation's parts."""

    run: str
    secret: str


class Token(NamedTuple):
    """A token's parts."""

    run: str
    edge: int
    secret: str


def make_secret() -> str:
    """256 random bits as text."""
    return secrets.token_urlsafe(32)


def hash_secret(secret: str) -> str:
    """What is kept of a secret: SHA-256, hex. 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def write_invitation(run: str, secret: str) -> str:
    """The text of an invitation."""
    return f"{INVITATION_HEAD}.{run}.{secret}"


def read_invitation(text: str) -> Invitation | None:
    """The parts of an invitation; None if it is none."""
    match = INVITATION.fullmatch(text.strip())
    return Invitation(match[1], match[2]) if match else None


def write_token(run: str, edge: str | int, secret: str) -> str:
    """The token of an edge, from its enrolment and the secret that it made."""
    return f"{run}.{edge}.{secret}"


def read_token(text: str) -> Token | None:
    """The parts of a token; None if it is none."""
    match = TOKEN.fullmatch(text)
    return Token(match[1], int(match[2]), match[3]) if match else None


@dataclass(frozen=True)
class BoardChanges:
    """What has changed in a group's tasks since the door last asked.

    sequence : what the door asks with next.
    is_whole : `opened` are all tasks that are open; the door forgets what it had. So it
        is for a `since` that the group does not know: of a door or group started anew.
        (A group counts from `time.time_ns()`, so that it knows its own numbers.)
    opened : each for the edge of its `name`, which gets it at its next check-in, again
        after a lost answer, until it is closed.
    closed : ids of tasks that are void or done.
    ended : why the run has ended, or None; check-ins are answered 410 then.
    """

    sequence: int
    is_whole: bool = False
    opened: tuple[Task, ...] = ()
    closed: tuple[str, ...] = ()
    ended: str | None = None


@dataclass(frozen=True)
class Submission:
    """A commit as the door hands it to the group: signed, and of the edge it is of.

    path : the complete file, whose SHA-256 and size were checked; the group moves it.
        None where the commit has none, or it is not there, or no more.
    report : the object that was signed.
    """

    task_id: str
    name: str
    sha256: str
    size: int
    path: str | None
    report: dict[str, Any]


class Group(Protocol):
    """What the door calls of a group of edges: an async actor, named on the cluster.

    A run tells the door by ``door.open_run.remote(run id, run folder, [actor names])``
    which groups it has, and by ``door.close_run.remote(run id, reason)`` that it ended;
    the id is `Registry.begin`'s. A door that starts again knows the runs it had.
    """

    async def changes(self, since: int) -> BoardChanges:
        """Wait up to some 20 s for changes after `since`; may be empty."""
        ...

    async def commit(self, submission: Submission) -> Verdict | None:
        """Take a file, durably; a task that has a commit answers what that was.

        The verdict's `sha256` is that of the commit that stands. A task that is not
        `submission.name`'s is refused. None: the task has no commit, and of its file
        (`size` > 0) there is no `path` yet.
        """
        ...

    async def fail(self, task_id: str, name: str, kind: str, message: str) -> None:
        """A task will not be done."""
        ...

    async def leave(self, name: str) -> None:
        """An edge has left: erase what it has sent and is not fused."""
        ...


def _describe(error: Any) -> str:
    """One problem of pydantic's, without the value."""
    where = ".".join(map(str, error["loc"])) or "the body"
    return f"{where[:80]}: {error['msg'][:200]}"
