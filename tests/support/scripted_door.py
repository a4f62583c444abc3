"""A small server of the edge protocol, to play an edge's own process against.

It holds one edge. What it hands out and answers a test decides; all calls are noted.
"""

import hashlib
import http.server
import json
import re
import ssl
import threading
from collections import deque
from pathlib import Path

from fedray.edges import protocol
from fedray.edges.protocol import CheckIn, Commit, Enrol, Fail, Task

RUN = "ab" * 16


class ScriptedDoor:
    """Serves on loopback while it is entered.

    tasks : those that are open, the first is handed out at check-ins.
    calls : (method, path) of every call, in order.
    faults : path pattern -> answers that come before the real one: a status, with
        headers, or "cut" (the connection breaks before an answer), "late cut" (after
        the call took effect).
    on_call : called with (method, path) before an answer is made.
    """

    def __init__(
        self, folder: Path, name: str = "a", tls: tuple[Path, Path] | None = None
    ):
        self.folder, self.name, self.tls = folder, name, tls
        self.objects: dict[str, bytes] = {}
        self.tasks: list[Task] = []
        self.uploads: dict[str, bytearray] = {}
        self.commits: dict[str, Commit] = {}
        self.verdicts: dict[str, dict] = {}
        self.updates: dict[str, bytes] = {}
        self.failures: list[tuple[str, Fail]] = []
        self.check_ins: list[CheckIn] = []
        self.enrolments: list[Enrol] = []
        self.calls: list[tuple[str, str]] = []
        self.faults: dict[str, deque] = {}
        self.on_call = lambda method, path: None
        self.ended: str | None = None
        self.has_left = False
        self.lock = threading.RLock()
        self.invitation = protocol.write_invitation(RUN, protocol.make_secret())

    def __enter__(self) -> "ScriptedDoor":
        door = self

        class Handler(_Handler):
            pass

        Handler.door = door
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        scheme = "http"
        if self.tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self.tls)
            self.server.socket = context.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
            scheme = "https"
        self.url = f"{scheme}://localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add_object(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self.objects[sha256] = data
        return sha256

    def open(self, kind: str, round: int, plan: bytes, base: bytes, **more) -> Task:
        """Hand out a task until it is committed or failed."""
        ask = f"{kind} {round} {hashlib.sha256(plan + base).hexdigest()} {more}"
        task = Task(
            id=hashlib.sha256(ask.encode()).hexdigest()[:32],
            run="tiny", round=round, party=3, name=self.name, kind=kind,
            base=self.add_object(base), base_bytes=len(base),
            plan=self.add_object(plan), plan_bytes=len(plan),
            max_bytes=2 * len(base) + 10_000, lease_s=600, **more,
        )  # fmt: skip
        with self.lock:
            self.tasks.append(task)
        return task

    def fault(self, pattern: str, *answers) -> None:
        self.faults[pattern] = deque(answers)

    def next_fault(self, path: str):
        with self.lock:
            for pattern, answers in self.faults.items():
                if answers and re.search(pattern, path):
                    return answers.popleft()
        return None

    def close_task(self, task_id: str) -> None:
        with self.lock:
            self.tasks = [task for task in self.tasks if task.id != task_id]

    def commit(self, task_id: str, commit: Commit) -> tuple[int, dict, dict]:
        with self.lock:
            if task_id in self.verdicts:
                is_same = self.commits[task_id].sha256 == commit.sha256
                return (200 if is_same else 409), {}, self.verdicts[task_id]
            data = bytes(self.uploads.get(task_id, b""))
            if len(data) != commit.size:
                return 409, {"Upload-Offset": str(len(data))}, {}
            assert hashlib.sha256(data).hexdigest() == commit.sha256
            self.verify(commit, task_id)
            self.commits[task_id], self.updates[task_id] = commit, data
            verdict = {"verdict": "taken", "why": "", "sha256": commit.sha256}
            self.verdicts[task_id] = verdict
            self.uploads.pop(task_id, None)
            self.close_task(task_id)
            return 200, {}, verdict

    def verify(self, commit: Commit, task_id: str) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        key = bytes.fromhex(self.enrolments[0].public_key)
        signature = bytes.fromhex(commit.signature)
        public = Ed25519PublicKey.from_public_bytes(key)
        public.verify(signature, commit.signed_bytes(task_id))


class _Handler(http.server.BaseHTTPRequestHandler):
    door: ScriptedDoor
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def __getattr__(self, name: str):
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _serve(self) -> None:
        door, path = self.door, self.path.removeprefix(f"{protocol.PREFIX}/")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with door.lock:
            door.calls.append((self.command, path))
        door.on_call(self.command, path)
        fault = door.next_fault(f"{self.command} {path}")
        if fault == "cut":
            return self._cut()
        if isinstance(fault, tuple):
            return self._answer(*fault)
        try:
            answer = self._route(path, body)
        except protocol.EdgeMessageError as error:
            answer = 400, {}, {"error": "bad", "detail": str(error), "hint": ""}
        if fault == "late cut":
            return self._cut()
        if isinstance(fault, str) and fault.startswith("after "):
            return self._answer(answer[0], answer[1], answer[2], int(fault[6:]))
        return self._answer(*answer)

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _answer(self, status: int, headers=None, body=b"", n_most=None) -> None:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        data = b"" if status == 204 else data
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data if n_most is None else data[:n_most])
        if n_most is not None:
            self.wfile.flush()
            self._cut()

    def _refuse(self, status: int, detail: str, **more):
        return status, {}, {"error": "no", "detail": detail, "hint": "", **more}

    def _route(self, path: str, body: bytes):
        door = self.door
        if path == "enrol":
            return self._enrol(Enrol.parse(body))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        parts = protocol.read_token(token)
        known = door.enrolments[0].token_hash if door.enrolments else ""
        if parts is None or protocol.hash_secret(parts.secret) != known:
            return self._refuse(401, "unknown token")
        if path == "checkin":
            return self._check_in(CheckIn.parse(body))
        if path == "leave":
            door.has_left = True
            return 200, {}, {}
        kind, _, rest = path.partition("/")
        if kind == "objects":
            return self._object(rest)
        task_id, _, call = rest.partition("/")
        if call == "update":
            return self._update(task_id, body)
        if call == "commit":
            return door.commit(task_id, Commit.parse(body))
        door.failures.append((task_id, Fail.parse(body)))
        door.close_task(task_id)
        return 200, {}, {}

    def _enrol(self, enrol: Enrol):
        door = self.door
        if enrol.invitation != door.invitation:
            return self._refuse(403, "the invitation is unknown")
        with door.lock:
            first = door.enrolments[0] if door.enrolments else enrol
            if first.public_key != enrol.public_key:
                return self._refuse(409, "it was used")
            door.enrolments.append(enrol)
        return 201, {}, {"run": RUN, "party": 7, "name": door.name, "edge": "7"}

    def _check_in(self, check_in: CheckIn):
        door = self.door
        with door.lock:
            door.check_ins.append(check_in)
            if door.ended is not None:
                return self._refuse(410, "ended", reason=door.ended)
            is_void = check_in.task not in (None, *(task.id for task in door.tasks))
            if not door.tasks:
                void = {protocol.TASK_HEADER: protocol.VOID} if is_void else {}
                return 204, {"Retry-After": "0", **void}, {}
            return 200, {}, json.loads(door.tasks[0].to_json())

    def _object(self, sha256: str):
        data = self.door.objects.get(sha256)
        if data is None:
            return self._refuse(404, "no such object")
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if match:
            return 206, {}, data[int(match[1]) :]
        return 200, {}, data

    def _update(self, task_id: str, body: bytes):
        with self.door.lock:
            have = self.door.uploads.setdefault(task_id, bytearray())
            if self.command == "PATCH":
                if int(self.headers["Upload-Offset"]) != len(have):
                    return 409, {"Upload-Offset": str(len(have))}, {}
                have += body
            return 204, {"Upload-Offset": str(len(have))}, {}
