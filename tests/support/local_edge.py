"""Edges without a door: they take a group's tasks and train by `PartyGroup`."""

import contextlib
import hashlib
import json
import threading
import time
import uuid
from pathlib import Path

import numpy as np

from fedray.edges import answers, tensor_file
from fedray.edges.plan import EdgeParty, frozen_object, read_plan
from fedray.edges.protocol import OBJECTS, SPOOL, UPLOADS, Submission, Task
from fedray.messages import ActorLocation
from fedray.party import PartyGroup


class LocalEdge:
    """One edge: what `fedray edge` does between a task and its commit.

    folder : of the run; state : the edge's own.
    """

    def __init__(self, folder: Path, party: EdgeParty):
        self.spool, self.party = folder / SPOOL, party
        self.process = uuid.uuid4().hex
        self.plan = None
        self.tasks: list[Task] = []

    def answer(self, task: Task) -> Submission:
        """Do a task; the file lies where the door would have put it."""
        self.tasks.append(task)
        content = (self.spool / OBJECTS / task.plan).read_bytes()
        if content != self.plan:
            self.plan = content
            self.group = PartyGroup(
                read_plan(content, self.party),
                lambda: ActorLocation("", "cpu", self.process),
            )
        wrapped = []
        if frozen := frozen_object(content):
            wrapped += ["with_frozen", self.read(frozen)]
        if task.learning_rate is not None:
            wrapped += ["with_learning_rate", task.learning_rate]
        base = self.read(task.base) if task.base else None
        report, update = self.do(task, wrapped, base)
        return self.submit(task, report, update)

    def read(self, sha: str):
        return tensor_file.read(self.spool / OBJECTS / sha).weights

    def do(self, task: Task, wrapped: list, base):
        place = np.array([0])
        if task.kind == "join":
            return answers.write_info(self.call(wrapped, "join", base)), None
        if task.kind == "evaluate":
            score = self.call(wrapped, "evaluate", base, (0, 1), None, task.round)
            return answers.write_score(score), None
        values = (task.round, place, base, None, task.since)
        got = self.call(wrapped, task.kind, *values)
        report, update = (got, None) if not isinstance(got, tuple) else got
        return answers.write_report(report), update

    def call(self, wrapped: list, method: str, *values):
        first, *rest = [*wrapped, method, *values]
        return getattr(self.group, first)(*rest)

    def submit(self, task: Task, report: dict, update) -> Submission:
        sha, size, path = hashlib.sha256().hexdigest(), 0, None
        if update is not None:
            path = self.spool / UPLOADS / f"{task.id}.part"
            metadata = tensor_file.update_metadata(task, update.n_samples)
            sha, size = tensor_file.write(path, update.weights, metadata)
        report = json.loads(json.dumps(report))
        name = self.party.name
        return Submission(task.id, name, sha, size, path and str(path), report)


class LocalDoor(threading.Thread):
    """Answers the tasks of a run's group with local edges, one after another.

    find : gives a function that calls a method of the group, or None if there is none.
    """

    def __init__(self, find, edges: dict[str, LocalEdge]):
        super().__init__(daemon=True)
        self.find, self.edges = find, edges
        self.ended = threading.Event()
        self.verdicts, self.errors = [], []
        self.on_task = lambda task: None

    def run(self):
        since, call = 0, None
        while not self.ended.is_set():
            try:
                call = call or self.find()
                if call is None:
                    time.sleep(0.05)
                    continue
                changes = call("changes", since)
                since = changes.sequence
                for task in changes.opened:
                    if task.name in self.edges:
                        self.on_task(task)
                        submission = self.edges[task.name].answer(task)
                        self.verdicts.append(call("commit", submission))
            except Exception as error:  # the run has ended, or its group was killed
                self.errors.append(error)
                call, since = None, 0
                time.sleep(0.05)


@contextlib.contextmanager
def local_door(run: str, folder: Path, parties: list[EdgeParty]):
    """Answer the edges of a run on this process's cluster."""
    import ray

    from fedray import placement

    def find_group(run):
        names = placement.edge_actor(run), placement.population_actor(run, "edges/1")
        for name in names:
            with contextlib.suppress(ValueError):
                return ray.get_actor(name, namespace="fedray")
        raise ValueError(run)

    def find():
        try:
            actor = find_group(run)
        except (ValueError, ray.exceptions.RaySystemError):
            return None
        return lambda method, *values: ray.get(
            getattr(actor, method).remote(*values), timeout=60
        )

    edges = {party.name: LocalEdge(folder, party) for party in parties}
    door = LocalDoor(find, edges)
    door.start()
    try:
        yield door
    finally:
        door.ended.set()
        door.join()
