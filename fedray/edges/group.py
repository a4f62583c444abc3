"""EdgeGroup: stands in the cluster for edges, with the interface of `PartyGroup`.

A plain class with async methods; one function makes it an actor. A call becomes a
task, which its edge gets at the door whenever it calls there. What it sends is
validated, lies on disk until its round is over, and is answered as a party's actor
would answer: the aggregator cannot tell one from the other.
"""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from fedray import fusion
from fedray.edges import answers, tensor_file
from fedray.edges.answers import AnswerError
from fedray.edges.board import Board, OpenTask
from fedray.edges.plan import write_plan
from fedray.edges.protocol import (
    MAX_EDGE_TEXT,
    BoardChanges,
    Kind,
    Submission,
    Task,
    Verdict,
)
from fedray.edges.spool import CommitRecord, Spool
from fedray.edges.tensor_file import read_update
from fedray.errors import PartyError
from fedray.fusion.update_checks import MAX_SAMPLES
from fedray.messages import (
    ActorLocation,
    Outcome,
    Rejection,
    Report,
    Update,
)
from fedray.party import GroupPlan
from fedray.weights import Schema, Weights, encoding

LOG = logging.getLogger("fedray")
MARGIN_S, MARGIN = 2.0, 0.05  # before a round closes, in which a call is answered
ROUNDS_KEPT = 2  # of objects that nobody is asked for any more
TAKEN: Final = "taken"
LATE: Final = "late"
REFUSED: Final = "refused"
WRAPPERS = {"with_frozen": "frozen", "with_learning_rate": "learning_rate"}
SENDING = ("train", "update")  # tasks whose commits are kept
CLOSED = "its round was closed before it came"
OF_ANOTHER = Verdict(verdict=REFUSED, why="the task is another edge's")
ABSENT = Outcome("late", detail="did not answer before the round was closed")
MAX_REPORT = 1 << 16  # bytes of a training's report: thousands wait for their turn
EXTRA_BYTES = 1 << 16  # of an update's file, beside tensors and names


@dataclass(frozen=True)
class EdgeGroupPlan:
    """Start parameters of a group of edges. Small; travels by value.

    plan : what all parties train by; which edge is asked a call says.
    run_id : under which parties keep what is their own of this run.
    folder : the run's, on the group's node.
    """

    plan: GroupPlan
    run_id: str
    folder: str


class Asked(NamedTuple):
    """Of which edge a call is, and what it has beside its arguments.

    place, name : of the edge in the run's config.
    frozen : tensors that travel once; None: there are none.
    learning_rate : instead of the config's.
    """

    place: int
    name: str
    frozen: Weights | None = None
    learning_rate: float | None = None


class Work(NamedTuple):
    """What an edge is asked for, as a task says it."""

    kind: Kind
    round: int = 0
    since: int | None = None
    attempt: int = 0


class Objects(NamedTuple):
    """What a task's edge fetches: SHA-256 and bytes, by the names that a task has."""

    base: str | None
    base_bytes: int
    plan: str
    plan_bytes: int


class EdgeGroup:
    """Tasks of edges, and what they send; what is asked of them subclasses say.

    on_leave : takes the run and the name of an edge that has left at the door.
    """

    def __init__(
        self,
        plan: EdgeGroupPlan,
        locate: Callable[[], ActorLocation],
        on_leave: Callable[[str, str], None] = lambda run, name: None,
    ):
        self.on_leave = on_leave
        self.run_id, self.plan, self.config = plan.run_id, plan.plan, plan.plan.config
        self.location = locate()
        shared = self.plan.blueprint.shared_parameters
        self.rule = fusion.from_config(self.config, shared)
        self.spool, self.board = Spool(Path(plan.folder), plan.plan.name), Board()
        self.max_samples = MAX_SAMPLES
        self._disk = asyncio.Lock()
        self._round = 0
        self._busy: set[str] = set()  # tasks whose calls have not returned
        self._used: dict[str, int] = {}  # SHA-256 of objects: the last round with it
        self._samples: dict[str, int] = {}  # that each edge has declared
        self._answered: dict[str, CommitRecord] = {}  # what is not kept on disk

    def __repr__(self) -> str:
        plan = getattr(self, "plan", None)  # Ray asks before __init__ too
        return f"edges:{plan.run if plan else '?'}"

    async def for_edge(self, place: int, name: str, method: str, *values: Any) -> Any:
        """Call a method as of a party's actor: of one edge, or of a population.

        place, name : of the edge; of a population of the first, and of its actor.
        """
        edge, rest = Asked(place, name), [*values]
        while method in WRAPPERS:
            key, (value, method, *rest) = WRAPPERS[method], rest
            edge = edge._replace(**{key: value})
        return await getattr(self, method)(edge, *rest)

    async def changes(self, since: int) -> BoardChanges:
        """Wait for changes among the open tasks, for the door."""
        return await self.board.changes(since)

    async def commit(self, submission: Submission) -> Verdict | None:
        """Take what an edge has sent, durably; see `protocol.Group.commit`."""
        open_task = self.board.tasks.get(submission.task_id)
        if record := self._commit(submission.task_id):
            is_own = record.name == submission.name
            return _verdict(record) if is_own else OF_ANOTHER
        if open_task is None:
            return Verdict(verdict=LATE, why=CLOSED)
        if open_task.task.name != submission.name:
            return OF_ANOTHER
        if submission.size and submission.path is None:
            return None
        async with open_task.guard:
            return await self._accept(open_task, submission)

    async def _accept(self, open_task: OpenTask, submission: Submission) -> Verdict:
        """Judge and keep a commit, unless one came just before it."""
        if record := self._commit(submission.task_id):
            return _verdict(record)
        task = open_task.task
        record = await asyncio.to_thread(self._judge, open_task, submission)
        if task.id not in self.board.tasks:  # closed meanwhile
            return Verdict(verdict=LATE, why=CLOSED)
        if task.kind in SENDING:
            is_kept = record.verdict == TAKEN and submission.path is not None
            path = Path(submission.path) if is_kept and submission.path else None
            await asyncio.to_thread(self.spool.keep_commit, record, path)
            if task.id not in self.board.tasks:  # closed while it was written
                await asyncio.to_thread(self.spool.remove_commit, task.id)
                return Verdict(verdict=LATE, why=CLOSED)
        else:
            self._answered[record.task_id] = record
        await self.board.finish(record.task_id, self._answer(task, record))
        return _verdict(record)

    def _commit(self, task_id: str) -> CommitRecord | None:
        return self._answered.get(task_id) or self.spool.commit(task_id)

    async def fail(self, task_id: str, name: str, kind: str, message: str) -> None:
        """An edge gives a task back: its call fails, as a party's would."""
        open_task = self.board.tasks.get(task_id)
        if open_task is None or open_task.task.name != name:
            return
        error = PartyError(name, stage_of(open_task.task), kind, message, "at the edge")
        await self.board.finish(task_id, error)

    async def leave(self, name: str) -> None:
        """Erase what an edge has sent and is not fused; its open calls fail."""
        own = [key for key, one in self.board.tasks.items() if one.task.name == name]
        for task_id in own:
            await self.fail(task_id, name, "left", "it has left the federation")
        await asyncio.to_thread(self.spool.erase, name, own)
        if name in (party.name for party in self.config.parties):
            self.on_leave(self.plan.run, name)

    async def _objects(
        self, edge: Asked, round: int, payload: Weights | None
    ) -> Objects:
        """Put weights and plan where the edges fetch them, once however many calls."""
        async with self._disk:  # one call at a time writes or removes objects
            await asyncio.to_thread(self._begin_round, round)
            base, base_bytes = None, 0
            if payload is not None:
                put = self.spool.put_weights
                base, base_bytes = await asyncio.to_thread(put, payload)
            plan, plan_bytes = await asyncio.to_thread(self._put_plan, edge)
            self._note_used(*filter(None, (base, plan)))
        return Objects(base, base_bytes, plan, plan_bytes)

    def _task(self, edge: Asked, work: Work, objects: Objects) -> Task:
        """The task of a call; the same for a call that is made again."""
        kind, round, since, attempt = work
        while True:
            key = (self.run_id, round, edge.place, objects.base, kind, since, attempt)
            task_id = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
            record = self.spool.commit(task_id)
            if record is None or self.spool.has_file(record):
                break
            attempt += 1  # it was fused, and what it was fused into is lost
        sends = kind == "update" or (kind == "train" and since is None)
        return Task(
            id=task_id, run=self.plan.run, round=round, party=edge.place,
            name=edge.name, attempt=attempt, kind=kind, since=since,
            learning_rate=edge.learning_rate,
            max_bytes=objects.base_bytes + EXTRA_BYTES if sends else 0,
            lease_s=self.config.round_timeout_s, **objects._asdict(),
        )  # fmt: skip

    def update_schema(self, names: Iterable[str]) -> Schema:
        """Tensors of an edge's update as it travels.

        names : of the global weights that its edge gets every round.
        """
        forms = {name: self.plan.blueprint.schema[name] for name in names}
        extra = self.rule.extra_schema(forms)
        return encoding.update_form(forms, self.config.wire_dtype) | extra

    def _begin_round(self, round: int) -> None:
        """Drop what rounds before this one have left on disk."""
        if round <= self._round:
            return
        self._round = round
        self._answered.clear()
        self.spool.remove_before(round, self._busy)
        open_tasks = [one.task for one in self.board.tasks.values()]
        open_objects = {sha for task in open_tasks for sha in (task.base, task.plan)}
        before = round - ROUNDS_KEPT
        self._used = {
            sha: last
            for sha, last in self._used.items()
            if last >= before or sha in open_objects
        }
        self.spool.keep_objects(self._used)

    def _note_used(self, *shas: str) -> None:
        """Let objects stay for this round and a few more."""
        is_new = not self._used.keys() >= {*shas}
        self._used |= dict.fromkeys(shas, self._round)
        if is_new:
            self.spool.keep_objects(self._used)

    def _put_plan(self, edge: Asked) -> tuple[str, int]:
        """Write an edge's plan, and the tensors that travel once."""
        frozen = ""
        if edge.frozen:
            frozen, _ = self.spool.put_weights(edge.frozen)
            self._note_used(frozen)
        config, place = self.config, edge.place
        if place >= len(config.parties):  # it has joined since this actor was started
            config, place = config.with_changes(parties=(), num_parties=None), 0
        plan = replace(self.plan, config=config, parties=range(place, place + 1))
        n_parties = self.config.num_parties or 1
        return self.spool.put_bytes(write_plan(plan, self.run_id, frozen, n_parties))

    async def _done(
        self, task: Task, needed: Schema | None, patience_s: float | None
    ) -> CommitRecord | None:
        """Wait until a task is done; None if it is not in time."""
        if record := self.spool.commit(task.id):
            return record
        if patience_s is not None and patience_s <= 0:
            return None
        new = OpenTask(
            task,
            needed,
            self.spool.object(task.base or ""),
            self._samples.get(task.name, self.max_samples),
            asyncio.get_running_loop().create_future(),
        )
        open_task = await self.board.open(new)
        try:
            waiting = asyncio.shield(open_task.ended)
            return await asyncio.wait_for(waiting, patience_s)
        except TimeoutError:
            await self.board.close(task.id)
            return None

    def _round_s(self, kind: Kind) -> float:
        """How long a call may wait: it is answered before its round is closed.

        Where late updates are folded later it goes on until the aggregator would take
        it for hung; where there are no rounds, as long as its lease.
        """
        config = self.config
        is_folded = config.late == "next_round" and kind == "train"
        if is_folded:
            return (1 - 2 * MARGIN) * config.round_timeout_s
        if config.aggregation == "buffered" and kind == "train":
            return (1 - 2 * MARGIN) * (config.lease_s or config.round_timeout_s)
        whole_s = config.closes_after_s
        return whole_s - min(MARGIN_S, MARGIN * whole_s)

    def _judge(self, open_task: OpenTask, submission: Submission) -> CommitRecord:
        """Validate what was sent, as the aggregator would."""
        task = open_task.task
        record = CommitRecord(
            task.id, task.name, task.round, submission.sha256, submission.size,
            submission.report, TAKEN,
        )  # fmt: skip
        try:
            rejection = self._rejection(open_task, submission)
        except AnswerError as error:
            rejection = Rejection("other", f"its report cannot be read: {error}")
            record = replace(record, report={})
        if rejection is None:
            return record
        return replace(
            record, verdict=REFUSED, why=rejection.detail, code=rejection.code
        )

    def _rejection(
        self, open_task: OpenTask, submission: Submission
    ) -> Rejection | None:
        """Why what was sent must not be used; None if it may.

        Raises
        ------
        AnswerError
            If the report is not of the form that it has to be.
        """
        task, plain = open_task.task, submission.report
        if task.kind == "join":
            answers.read_info(plain, self.location.node)
            return None
        if task.kind == "evaluate":
            answers.read_score(plain, task.party, self.location)
            return None
        if len(json.dumps(plain)) > MAX_REPORT:
            raise AnswerError(f"it has more than {MAX_REPORT} bytes")
        report = answers.read_report(plain, task.round, task.party, self.location)
        if self.config.dp_sgd is not None and report.spending is None:
            return Rejection("other", "does not say what its privacy has cost")
        if report.refused or open_task.needed is None:
            return report.refused.get(task.party)
        if submission.path is None:
            return Rejection("schema", "sent a report without an update")
        path, needed = Path(submission.path), open_task.needed
        update = read_update(path, task, needed, open_task.max_samples)
        if isinstance(update, Rejection):
            return update
        if update.n_samples != int(report.n_samples[0]):
            return Rejection("count", "n_samples differs between report and update")
        return self._exceeds_norm(update, open_task)

    def _exceeds_norm(self, update: Update, open_task: OpenTask) -> Rejection | None:
        most, dtype = self.config.max_update_norm, self.config.wire_dtype
        if most is None:
            return None
        forms = self.plan.blueprint.schema
        base = tensor_file.read(open_task.base).weights
        base = encoding.unpack(base, forms, dtype)
        weights = {name: update.weights[name] for name in base}
        weights = encoding.unpack(weights, forms, dtype, base)
        return fusion.exceeds_norm(weights, base, most)

    def _answer(self, task: Task, record: CommitRecord) -> CommitRecord | PartyError:
        """What a call that waits for a task gets: a refused training is no error."""
        if record.verdict == TAKEN or task.kind in SENDING:
            return record
        return PartyError(
            task.name, stage_of(task), "refused", record.why, "at the edge"
        )

    def _report(self, task: Task, record: CommitRecord) -> Report:
        """An edge's report; of one that cannot be read, that it is refused."""
        node = self.location
        if record.report:
            report = answers.read_report(record.report, task.round, task.party, node)
        else:
            report = replace(
                empty_report(task, self.location), n_samples=np.ones(1, int)
            )
        if record.verdict == REFUSED:
            return replace(
                report, refused={task.party: Rejection(record.code, record.why)}
            )
        return report


def _verdict(record: CommitRecord) -> Verdict:
    why = record.why[:MAX_EDGE_TEXT]
    plain = {"verdict": record.verdict, "why": why, "sha256": record.sha256}
    return Verdict.model_validate(plain)


def stage_of(task: Task) -> str:
    """What a task is, in an error's message."""
    words = {"join": "joining", "evaluate": "evaluating", "update": "sending"}
    return f"{words.get(task.kind, 'training')} round {task.round}".removesuffix(
        " round 0"
    )


def empty_report(task: Task, location: ActorLocation) -> Report:
    """A report without numbers: nothing was trained, or nothing is known of it."""
    loss, drift = np.full((2, 1), np.nan)
    return Report(
        task.round, location.node, np.array([task.party]), np.zeros(1, int), loss,
        drift, 0.0, 0,
    )  # fmt: skip


def new_attempt() -> int:
    """An attempt that no other call has."""
    return time.time_ns() % (1 << 53)
