"""An edge without data, training or torch: real calls of the edges' protocol.

`SimulatedEdge` makes `Call`s and keeps what an edge keeps (key, token, place); sending
them is apart from it: `Connection` sends them one by one (hostile tests), and
benchmarks/edges.py many at once. What it uploads is made from the weights that it
downloads, so that it is valid wherever a test does not make it otherwise.
"""

import hashlib
import http.client
import json
import secrets
import ssl
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PREFIX = "/edge/v1"
CHUNK = 8 << 20
VERSION = "0.1.0"
SIGNED = ("size", "sha256", "report")  # of a commit, in this order

INFO = {  # what an edge declares before its first round
    "device": "cpu", "process": "simulated", "n_train": 40, "n_test": 0, "data": "same",
    "moved": [], "n_frozen_bytes": 0, "budget": None,
}  # fmt: skip
REPORT = {  # what it says of a training
    "process": "simulated", "n_samples": 40, "loss": 1.0, "drift": 0.0, "seconds": 0.1,
    "n_bytes": 0, "n_frozen_bytes": 0, "data": "same", "note": "",
    "learning_rate": None, "has_rate": False, "refused": None, "spending": None,
    "drifted": None,
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A request: path from `PREFIX` on."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Answer:
    """Its answer."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    def json(self) -> Any:
        """Its body, in which no NaN may be."""
        return json.loads(self.body, parse_constant=refuse_constant)


def refuse_constant(name: str) -> None:
    """An answer's JSON has no NaN."""
    raise AssertionError(f"{name} in the JSON of an answer")


def json_call(method: str, path: str, token: str | None, value: Any) -> Call:
    """A call with JSON in it."""
    headers = {"Content-Type": "application/json"} | bearer(token)
    return Call(method, path, headers, json.dumps(value).encode())


def bearer(token: str | None) -> dict[str, str]:
    """The header that says who calls."""
    return {"Authorization": f"Bearer {token}"} if token else {}


@dataclass
class SimulatedEdge:
    """One edge: its key and token, and the calls that it makes."""

    name: str | None = None  # an edge of a population is named when it enrols
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    instance: str = field(default_factory=lambda: secrets.token_hex(16))
    run: str = ""
    edge: str = ""
    party: Any = None

    @property
    def token(self) -> str:
        """By it a door knows run and edge."""
        return f"{self.run}.{self.edge}.{self.secret}"

    @property
    def public_key(self) -> str:
        """In hex."""
        return self.key.public_key().public_bytes_raw().hex()

    def enrol(self, invitation: str, **changes: Any) -> Call:
        """Take part: only this call has no token."""
        value = {
            "invitation": invitation,
            "name": self.name,
            "public_key": self.public_key,
            "token_hash": hashlib.sha256(self.secret.encode()).hexdigest(),
            "protocol": 1,
            "version": VERSION,
        }
        return json_call("POST", "/enrol", None, value | changes)

    def enrolled(self, answer: Answer) -> "SimulatedEdge":
        """Take over what the answer to `enrol` says; itself."""
        assert answer.status == 201, answer
        value = answer.json()
        self.run, self.edge = value["run"], value["edge"]
        self.party, self.name = value["party"], value["name"]
        return self

    def checkin(self, wait_s: float = 0, **changes: Any) -> Call:
        """Ask for a task, or say what is done."""
        value = {
            "state": "idle", "share": 0.0, "task": None, "have": [], "wait_s": wait_s,
            "instance": self.instance, "protocol": 1, "version": VERSION,
        }  # fmt: skip
        return json_call("POST", "/checkin", self.token, value | changes)

    def download(self, sha: str, start: int = 0, **headers: str) -> Call:
        """Weights or a plan, from a byte on."""
        ranged = {"Range": f"bytes={start}-"} if start else {}
        return Call("GET", f"/objects/{sha}", bearer(self.token) | ranged | headers)

    def offset(self, task: str) -> Call:
        """How much of an upload is there."""
        return Call("HEAD", f"/tasks/{task}/update", bearer(self.token))

    def upload(self, task: str, offset: int, piece: bytes, **headers: str) -> Call:
        """A piece of an update."""
        mine = {
            "Upload-Offset": str(offset),
            "Content-Type": "application/octet-stream",
        }
        return Call(
            "PATCH", f"/tasks/{task}/update", bearer(self.token) | mine | headers, piece
        )

    def commit(self, task: str, content: bytes, report: Any, **changes: Any) -> Call:
        """Say that an upload is whole, with the report of a training."""
        sha = hashlib.sha256(content).hexdigest()
        return self.commit_hash(task, len(content), sha, json.dumps(report), **changes)

    def commit_hash(
        self, task: str, size: int, sha: str, report: str, **changes: Any
    ) -> Call:
        """The same of a content whose hash is known; the report is JSON text."""
        value = {"size": size, "sha256": sha, "report": report} | changes
        if "signature" not in value:
            value["signature"] = self.sign(task, *(value[k] for k in SIGNED))
        return json_call("POST", f"/tasks/{task}/commit", self.token, value)

    def sign(self, task: str, size: int, sha: str, report: str) -> str:
        """Signature over a commit, in hex."""
        text = f"fedray edge commit 1\n{task}\n{size}\n{sha}\n{report}"
        return self.key.sign(text.encode()).hex()

    def fail(self, task: str, kind: str = "other", message: str = "") -> Call:
        """Give a task up."""
        value = {"kind": kind, "message": message}
        return json_call("POST", f"/tasks/{task}/fail", self.token, value)

    def leave(self) -> Call:
        """Take part no longer."""
        return json_call("POST", "/leave", self.token, {})


class Connection:
    """Sends calls one by one over a connection that is kept open."""

    def __init__(self, port: int, ca: str | None = None, timeout_s: float = 600.0):
        if ca is None:
            self.http = http.client.HTTPConnection("127.0.0.1", port, timeout_s)
        else:
            context = ssl.create_default_context(cafile=ca)
            self.http = http.client.HTTPSConnection(
                "127.0.0.1", port, timeout=timeout_s, context=context
            )

    def send(self, call: Call) -> Answer:
        """The answer; a connection that was closed meanwhile is opened again."""
        for is_last in (False, True):
            try:
                self.http.request(
                    call.method, PREFIX + call.path, call.body, dict(call.headers)
                )
                got = self.http.getresponse()
                headers = {name.lower(): value for name, value in got.getheaders()}
                return Answer(got.status, headers, got.read())
            except (ConnectionError, http.client.HTTPException):
                self.http.close()
                if is_last:
                    raise
        raise AssertionError("not reached")

    def close(self) -> None:
        """Close it."""
        self.http.close()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_) -> None:
        self.close()


class Refused(Exception):
    """The service does not take a part of an update."""

    def __init__(self, answer: Answer):
        super().__init__(answer)
        self.answer = answer


def fetch(edge: SimulatedEdge, connection: Connection, sha: str) -> bytes:
    """An object, whose hash is right."""
    answer = connection.send(edge.download(sha))
    if answer.status != 200:
        raise Refused(answer)
    assert hashlib.sha256(answer.body).hexdigest() == sha
    return answer.body


def send_update(
    edge: SimulatedEdge, connection: Connection, task: str, content: bytes
) -> None:
    """Upload a content in pieces, from where an earlier upload broke off."""
    answer = connection.send(edge.offset(task))
    if answer.status != 204:
        raise Refused(answer)
    offset = int(answer.headers["upload-offset"])
    while offset < len(content):
        piece = content[offset : offset + CHUNK]
        answer = connection.send(edge.upload(task, offset, piece))
        if answer.status != 204:
            raise Refused(answer)
        offset = int(answer.headers["upload-offset"])


def metadata_of(task: Mapping[str, Any], n_samples: int = 40) -> dict[str, str]:
    """What an update's file says of itself."""
    value = {name: task[name] for name in ("run", "round", "party", "base")}
    return {name: str(one) for name, one in value.items()} | {
        "n_samples": str(n_samples)
    }


def with_metadata(base: bytes, metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with the arrays of another and metadata of its own."""
    (n_header,) = struct.unpack_from("<Q", base)
    header = json.loads(base[8 : 8 + n_header])
    header["__metadata__"] = dict(metadata)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + base[8 + n_header :]
