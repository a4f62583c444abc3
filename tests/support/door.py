"""The edges' door in a thread of the test, with a scripted group. No Ray."""

import asyncio
import contextlib
import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from support.simulated_edge import Connection, SimulatedEdge
from support.waiting import wait_for

from fedray.edge_door.actor import MAX_CONNECTIONS, MAX_PER_ADDRESS, make_server
from fedray.edge_door.open_runs import OpenRuns
from fedray.edge_door.tls import Certificate
from fedray.edges.protocol import (
    OBJECTS,
    SPOOL,
    BoardChanges,
    Submission,
    Task,
    Verdict,
)
from fedray.edges.registry import Registry
from fedray.service.http_server import listen
from fedray.service.settings import Settings


class ScriptedGroup:
    """A group whose tasks a test opens and closes; it keeps what is committed."""

    def __init__(self, spool: Path):
        self.spool = spool
        self.sequence = time.time_ns()
        self.tasks: dict[str, Task] = {}
        self.commits: dict[str, tuple[Submission, Verdict]] = {}
        self.contents: dict[str, bytes] = {}
        self.failures: list[tuple[str, ...]] = []
        self.left: list[str] = []
        self.ended: str | None = None
        self.is_down = False
        self.verdict = "taken"

    async def changes(self, since: int) -> BoardChanges:
        until = time.monotonic() + 5
        while since == self.sequence and time.monotonic() < until:
            await asyncio.sleep(0.005)
        self.check_up()
        opened = tuple(self.tasks.values())
        return BoardChanges(self.sequence, True, opened, (), self.ended)

    def check_up(self) -> None:
        if self.is_down:
            raise ConnectionError("the group's actor is dead")

    async def commit(self, submission: Submission) -> Verdict | None:
        self.check_up()
        if submission.task_id in self.commits:
            return self.commits[submission.task_id][1]
        task = self.tasks.get(submission.task_id)
        if task is None or task.name != submission.name:
            return Verdict(verdict="late", why="its round was closed")
        if submission.path is None and submission.size > 0:
            return None
        if submission.path is not None:
            path = Path(submission.path)
            self.contents[submission.task_id] = path.read_bytes()
            path.unlink()
        verdict = Verdict(verdict=self.verdict, sha256=submission.sha256)
        self.commits[submission.task_id] = submission, verdict
        return verdict

    async def fail(self, task_id: str, name: str, kind: str, message: str) -> None:
        self.check_up()
        self.failures.append((task_id, name, kind, message))

    async def leave(self, name: str) -> None:
        self.left.append(name)

    def open(self, name: str, **changes) -> Task:
        """Ask an edge for something."""
        plan = self.add_object(b"{}")
        fields = {
            "id": hashlib.sha256(f"{name} {len(self.tasks)}".encode()).hexdigest()[:32],
            "run": "clinics",
            "round": 1,
            "party": 0,
            "name": name,
            "kind": "train",
            "plan": plan,
            "plan_bytes": 2,
            "max_bytes": 1 << 20,
            "lease_s": 600.0,
        }
        task = Task(**fields | changes)
        self.tasks[task.id] = task
        self.sequence += 1
        return task

    def close(self, task: Task) -> None:
        del self.tasks[task.id]
        self.sequence += 1

    def end(self, reason: str) -> None:
        self.ended = reason
        self.sequence += 1

    def add_object(self, content: bytes) -> str:
        sha = hashlib.sha256(content).hexdigest()
        folder = self.spool / OBJECTS
        folder.mkdir(parents=True, exist_ok=True)
        (folder / sha).write_bytes(content)
        return sha


class DoorScene:
    """A run's folder, its registry and group, and a door that can be killed."""

    def __init__(self, folder: Path, tls: tuple[str, str] | None = None, **settings):
        self.folder, self.tls = folder / "run", tls
        limits = {
            "max_connections": MAX_CONNECTIONS,
            "max_connections_per_address": MAX_PER_ADDRESS,
        }
        self.settings = Settings(root=str(folder / "service"), **limits | settings)
        self.registry = Registry(self.folder)
        self.run_id = self.registry.begin()
        self.group = ScriptedGroup(self.folder / SPOOL)
        self.runs: OpenRuns | None = None
        self.port = 0

    @contextlib.contextmanager
    def open(self) -> Iterator["DoorScene"]:
        """Serve as long as the block lasts."""
        self.start()
        try:
            self.call(self.runs.open, self.run_id, self.folder, ["group"])
            wait_for(lambda: not self.open_run.unready, "the group's tasks")
            yield self
        finally:
            self.kill()

    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        file = Path(self.settings.root) / "runs.json"
        certificate = Certificate(*self.tls) if self.tls else None

        async def serve() -> None:
            self.runs = OpenRuns(file, lambda name: self.group, lambda: [self.folder])
            self.runs.load()
            self.server = make_server(self.runs, self.settings, certificate)
            self.serving = asyncio.ensure_future(self.server.serve([self.sock]))
            while not self.server.started:
                await asyncio.sleep(0.001)

        self.sock = listen("127.0.0.1", self.port)
        self.port = self.sock.getsockname()[1]
        self.server = None
        asyncio.run_coroutine_threadsafe(serve(), self.loop).result(600)

    def kill(self) -> None:
        """End it as a killed process does: every connection breaks."""

        def end() -> None:
            for run in self.runs:
                run.close()
            for connection in list(self.server.server_state.connections):
                connection.transport.abort()
            self.server.force_exit = self.server.should_exit = True

        async def wait() -> None:
            self.loop.call_soon(end)
            await asyncio.wait([self.serving])
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(wait(), self.loop).result(600)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    @property
    def open_run(self):
        return self.runs._runs[self.run_id]

    def call(self, function, *arguments):
        """Call a function of the door's own thread."""

        async def run():
            return function(*arguments)

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(600)

    def connect(self, **options) -> Connection:
        return Connection(self.port, **options)

    def enrol(self, name: str | None = None) -> SimulatedEdge:
        """An edge that has enrolled."""
        edge = SimulatedEdge(name)
        (invitation,) = Registry(self.folder).invite(name)
        with self.connect(ca=self.ca) as connection:
            return edge.enrolled(connection.send(edge.enrol(invitation)))

    ca: str | None = None
