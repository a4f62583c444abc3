"""Edges that a config lists by name: each answers as a party's actor of its own would.

One actor stands for all of them; a call says of which edge it is.
"""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np

from fedray.edges import answers
from fedray.edges.group import (
    ABSENT,
    REFUSED,
    Asked,
    EdgeGroup,
    Work,
    empty_report,
    new_attempt,
)
from fedray.edges.protocol import Task
from fedray.edges.spool import CommitRecord
from fedray.edges.tensor_file import read_update
from fedray.errors import PartyError
from fedray.messages import PartyInfo, Report, Score, Update
from fedray.weights import Schema, Weights


class NamedEdges(EdgeGroup):
    """Named edges of one run; `for_edge` has the methods of `PartyGroup`."""

    async def join(self, edge: Asked, payload: Weights | None = None) -> PartyInfo:
        """Ask an edge what data it has, and let it try a step; as `PartyGroup.join`.

        One that has not enrolled, or sleeps, answers once it comes.
        """
        objects = await self._objects(edge, 0, payload)
        task = self._task(edge, Work("join", attempt=new_attempt()), objects)
        record = await self._done(task, None, None)
        assert record is not None  # it is waited for without an end
        info = answers.read_info(record.report, self.location.node)
        self._samples[edge.name] = int(info.n_train[0])
        return info

    async def train(
        self, edge: Asked, round: int, parties: np.ndarray, payload: Weights, *rest: Any
    ) -> Report | tuple[Report | Update | None, ...]:
        """Let an edge train; its report, and its update unless it trains apart.

        Of one that has not answered before the round is closed the report says so.

        rest : state and since, as of `PartyGroup.train`.
        """
        since = rest[1] if len(rest) > 1 else None
        objects = await self._objects(edge, round, payload)
        task = self._task(edge, Work("train", round, since), objects)
        if since is not None:
            report, *_ = await self._trained(edge, task, None)
            assert isinstance(report, Report)
            return report
        return await self._trained(edge, task, payload)

    async def update(
        self, edge: Asked, round: int, parties: np.ndarray, payload: Weights, *rest: Any
    ) -> tuple[Report | Update | None, ...]:
        """Report and update of an edge that trained apart; as `PartyGroup.update`."""
        objects = await self._objects(edge, round, payload)
        task = self._task(edge, Work("update", round, rest[1]), objects)
        return await self._trained(edge, task, payload)

    async def evaluate(
        self,
        edge: Asked,
        payload: Weights,
        part: tuple[int, int] = (0, 1),
        parties: np.ndarray | None = None,
        round: int = 0,
    ) -> Score:
        """How the weights do on an edge's own test samples.

        Raises
        ------
        PartyError
            If it does not answer in time.
        """
        objects = await self._objects(edge, round, payload)
        work = Work("evaluate", round, attempt=new_attempt())
        task = self._task(edge, work, objects)
        record = await self._done(task, None, self._round_s(task.kind))
        if record is None:
            stage = f"evaluating round {round}"
            raise PartyError(edge.name, stage, "absent", ABSENT.detail, "")
        return answers.read_score(record.report, edge.place, self.location)

    async def _trained(
        self, edge: Asked, task: Task, payload: Weights | None
    ) -> tuple[Report | Update | None, ...]:
        """What came of a training: a report, and the update if one is to be sent."""
        needed = None
        if payload is not None:
            needed = self.update_schema(payload)
        self._busy.add(task.id)  # its file stays until it is read
        try:
            record = await self._done(task, needed, self._round_s(task.kind))
            return await self._answer_of(task, record, needed)
        finally:
            self._busy.discard(task.id)

    async def _answer_of(
        self, task: Task, record: CommitRecord | None, needed: Schema | None
    ) -> tuple[Report | Update | None, ...]:
        if record is None:
            empty = empty_report(task, self.location)
            report = replace(empty, absent={task.party: ABSENT})
        else:
            report = self._report(task, record)
        if needed is None:
            return (report,)
        if record is None or record.verdict == REFUSED:
            return report, None
        path = self.spool.file(task.id)
        update = await asyncio.to_thread(read_update, path, task, needed)
        return report, update if isinstance(update, Update) else None
