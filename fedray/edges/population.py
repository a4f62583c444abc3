"""Edges by the thousand behind one actor: updates are folded as they come, from disk.

In memory there is one model, however many edges send theirs: an update is mapped from
its file when its turn comes, folded in config order, and let go.
"""

import asyncio
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedray import policy
from fedray.config.edges import POPULATION
from fedray.edges import answers
from fedray.edges.contacts import read_contacts
from fedray.edges.group import (
    ABSENT,
    EXTRA_BYTES,
    REFUSED,
    Asked,
    EdgeGroup,
    EdgeGroupPlan,
    Objects,
    Work,
    new_attempt,
)
from fedray.edges.protocol import Task
from fedray.edges.roster import FOLDER
from fedray.edges.spool import CommitRecord
from fedray.edges.tensor_file import read_update
from fedray.errors import PartyError, TooFewUpdates
from fedray.fusion import FusionRule, RoundContext, State
from fedray.fusion.update_checks import MAX_SAMPLES
from fedray.messages import (
    FAILED,
    Outcome,
    PartyInfo,
    Report,
    Score,
    Update,
)
from fedray.privacy.sample_budget import Spending
from fedray.weights import Schema, Weights, encoding, n_bytes

N_LEASES = 8  # of a round, where edges wait for room on disk
PRESENT_S = 900.0  # since an edge was last heard of, in which it counts as present


class Ask(NamedTuple):
    """What all edges of one call are asked.

    like : what the call has beside its arguments; place and name are each edge's own.
    until : monotonic clock, seconds.
    """

    like: Asked
    work: Work
    objects: Objects
    needed: Schema | None
    until: float


class Slot(NamedTuple):
    """One edge's part in a round: its row of the report, and what it answers.

    opened : monotonic clock, seconds.
    """

    k: int
    task: Task
    answer: "asyncio.Task[CommitRecord | PartyError | None]"
    opened: float


class Fold:
    """Takes updates in config order: into one model, or all of them if the rule asks.

    dtype : in which weights travel; forms : of the global weights.
    keeps_files : whether a file stays until its round is over; a group that is killed
        then has not to ask its edge again.
    """

    keeps_files = True

    def __init__(
        self, rule: FusionRule, context: RoundContext, forms: Schema, dtype: str
    ):
        self.rule, self.context, self.forms, self.dtype = rule, context, forms, dtype
        self._one = rule.accumulator(context) if rule.associative else None
        self._all: list[Update | None] = []
        own = {name: forms[name] for name in context.weights}
        self.needed = encoding.update_form(own, dtype) | rule.extra_schema(own)

    def add(self, update: Update | None) -> None:
        """Take the next one; None: there is none of this edge."""
        if self._one is None:
            self._all.append(update)
        elif update is not None:
            base, state = self.context.weights, self.context.state
            weights = encoding.unpack(update.weights, self.forms, self.dtype, base)
            update = replace(update, weights=weights)
            self._one.add(self.rule.to_additive(update, base, state))

    def result(self, sender: encoding.Sender) -> list[Update | None]:
        """One update for all as it travels, or each edge's; None: there is none."""
        if self._one is None:
            return self._all
        try:
            update = self._one.result()
        except TooFewUpdates:
            return [None]
        base = self.context.weights
        packed = encoding.pack(update.weights, self.dtype, base, sender)
        return [replace(update, weights=packed)]


class EdgePopulation(EdgeGroup):
    """Edges of a population: those that a call names train, and are combined here."""

    def __init__(self, plan: EdgeGroupPlan, *callbacks: Any):
        super().__init__(plan, *callbacks)
        edges = self.config.edges
        assert edges is not None
        self.folder = Path(plan.folder) / FOLDER
        self.max_samples = edges.max_samples or MAX_SAMPLES
        self.spool_bytes = edges.spool_bytes

    async def join(self, edge: Asked, payload: Weights | None = None) -> PartyInfo:
        """Answer for edges that are asked nothing before they are chosen."""
        process = self.location.process
        node, none = self.location.node, np.zeros(1, np.int64)
        return PartyInfo(node, "cpu", none, 1, process)

    async def train(
        self, edge: Asked, round: int, parties: np.ndarray, payload: Weights, *rest: Any
    ) -> tuple[Report | Update | None, ...]:
        """Let edges train; a report with a row for each, and their updates in one.

        Rows of edges that have not answered in time, or failed, are empty: `absent`
        says why. If the rule must see all updates, one for each party is returned.
        """
        started = time.monotonic()
        objects = await self._objects(edge, round, payload)
        fold = self._fold(round, payload, rest[0] if rest else None)
        until = started + self._round_s("train")
        ask = Ask(edge, Work("train", round), objects, fold.needed, until)
        report = self._empty(round, parties)
        n_open = max(1, self.spool_bytes // (objects.base_bytes + EXTRA_BYTES))
        fold.keeps_files = len(parties) <= n_open  # until the round is over
        slots: deque[Slot] = deque()
        for k, place in enumerate(parties.tolist()):
            if len(slots) >= n_open:
                await self._give_up(slots[0], (until - started) / N_LEASES)
                await self._take(slots.popleft(), report, fold)
            task = self._task_of(ask, place)
            answer = asyncio.create_task(self._one(ask, task))
            slots.append(Slot(k, task, answer, time.monotonic()))
        while slots:
            await self._take(slots.popleft(), report, fold)
        seconds = time.monotonic() - started
        first = self.config.party_name(int(parties[0]))
        sender = encoding.Sender(self.config.seed, round, first)
        updates = await asyncio.to_thread(fold.result, sender)
        return replace(report, seconds=seconds, n_bytes=n_bytes(payload)), *updates

    async def evaluate(
        self,
        edge: Asked,
        payload: Weights,
        part: tuple[int, int] = (0, 1),
        parties: np.ndarray | None = None,
        round: int = 0,
    ) -> Score:
        """Ask those that are present how the weights do on their own test samples."""
        places = self._present(np.zeros(0, int) if parties is None else parties)
        places = np.array_split(places, part[1])[part[0]]
        objects = await self._objects(edge, round, payload)
        work = Work("evaluate", round, attempt=new_attempt())
        until = time.monotonic() + self._round_s("evaluate")
        ask = Ask(edge, work, objects, None, until)
        tasks = [self._task_of(ask, place) for place in places.tolist()]
        calls = [self._one(ask, task) for task in tasks]
        scores = []
        for task, answer in zip(tasks, await asyncio.gather(*calls), strict=True):
            if isinstance(answer, CommitRecord):
                plain = answer.report
                scores.append(answers.read_score(plain, task.party, self.location))
        merged = policy.join_scores([score.scores for score in scores])
        moved = sum(score.n_bytes for score in scores)
        return Score(self.location.node, merged, moved)

    def _fold(self, round: int, payload: Weights, state: State | None) -> Fold:
        forms, dtype = self.plan.blueprint.schema, self.config.wire_dtype
        weights = encoding.unpack(payload, forms, dtype)
        return Fold(self.rule, RoundContext(round, weights, state or {}), forms, dtype)

    def _present(self, places: np.ndarray) -> np.ndarray:
        """Those of some places whose edges were heard of a short time ago."""
        numbers = places - POPULATION
        rows = read_contacts(self.folder, int(numbers.max(initial=-1)) + 1)
        return places[rows["last_seen"][numbers] > time.time() - PRESENT_S]

    def _task_of(self, ask: Ask, place: int) -> Task:
        edge = ask.like._replace(place=place, name=self.config.party_name(place))
        return self._task(edge, ask.work, ask.objects)

    async def _one(self, ask: Ask, task: Task) -> CommitRecord | PartyError | None:
        """What one edge answers; None: nothing in time."""
        try:
            patience_s = ask.until - time.monotonic()
            return await self._done(task, ask.needed, patience_s)
        except PartyError as error:
            return error

    async def _give_up(self, slot: Slot, lease_s: float) -> None:
        """Wait for an edge no longer than its lease: others wait for room on disk."""
        rest_s = slot.opened + lease_s - time.monotonic()
        if not (await asyncio.wait([slot.answer], timeout=max(0.0, rest_s)))[0]:
            await self.board.finish(slot.task.id, None)

    async def _take(self, slot: Slot, report: Report, fold: Fold) -> None:
        """Wait for one edge's answer; note it in the report and fold its update."""
        task, answer, update = slot.task, await slot.answer, None
        if isinstance(answer, PartyError):
            report.absent[task.party] = Outcome(FAILED, "call", answer.why)
        elif answer is None:
            report.absent[task.party] = ABSENT
        else:
            self._note(report, slot.k, self._report(task, answer))
            if answer.verdict != REFUSED:
                path = self.spool.file(task.id)
                read = await asyncio.to_thread(
                    read_update, path, task, fold.needed, self.max_samples
                )
                update = read if isinstance(read, Update) else None
        await asyncio.to_thread(fold.add, update)
        if update is not None and not fold.keeps_files:
            self.spool.remove_file(task.id)

    def _empty(self, round: int, parties: np.ndarray) -> Report:
        """A report whose rows are all empty yet."""
        n, node = len(parties), self.location.node
        loss, drift = np.full((2, n), np.nan)
        rates = np.full(n, np.nan) if self.config.scheduler is not None else None
        no_samples, spending = np.zeros(n, np.int64), None
        if self.config.dp_sgd is not None:
            epsilon, of_run, noise, rate = np.zeros((4, n))
            delta, n_steps = self.config.dp_sgd.delta or 0.0, np.zeros(n, np.int64)
            spending = Spending(epsilon, of_run, noise, rate, n_steps, delta)
        return Report(
            round, node, parties, no_samples, loss, drift, 0.0, 0,
            process=self.location.process, learning_rate=rates, spending=spending,
        )  # fmt: skip

    @staticmethod
    def _note(report: Report, k: int, own: Report) -> None:
        """Fill one row of a report with what its edge said."""
        report.n_samples[k], report.loss[k] = own.n_samples[0], own.loss[0]
        report.drift[k] = own.drift[0]
        report.refused.update(own.refused)
        report.notes.update(own.notes)
        if report.learning_rate is not None and own.learning_rate is not None:
            report.learning_rate[k] = own.learning_rate[0]
        if report.spending is not None and own.spending is not None:
            columns = zip(report.spending[:-1], own.spending[:-1], strict=True)
            for column, value in columns:
                column[k] = value[0]
