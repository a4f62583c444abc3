"""The board of a group of edges: tasks that are open, and what changed among them.

The door asks for changes with one long call and keeps a copy, from which it answers
check-ins without asking here.
"""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from fedray.edges.protocol import BoardChanges, Task
from fedray.edges.spool import CommitRecord
from fedray.errors import PartyError
from fedray.weights import Schema

POLL_S = 20.0  # of the door's question
N_CHANGES = 10_000  # that are remembered; a door that missed more gets the whole board


@dataclass(eq=False)
class OpenTask:
    """A task that is not done: its edge gets it at its next check-in.

    needed : tensors of the file that is to be sent; None: a report alone.
    base : file of the weights that it trains from.
    max_samples : that its party has declared.
    ended : what came of it: the commit, an error, or None if it was given up.
    """

    task: Task
    needed: Schema | None
    base: Path
    max_samples: int
    ended: "asyncio.Future[CommitRecord | None]"
    guard: asyncio.Lock = field(default_factory=asyncio.Lock)  # one commit at a time


class Board:
    """Open tasks by id; one event loop alone works with it."""

    def __init__(self) -> None:
        self.tasks: dict[str, OpenTask] = {}
        self._sequence = self._first = time.time_ns()
        self._log: deque[tuple[int, Task | str]] = deque()
        self._changed = asyncio.Condition()

    async def open(self, new: OpenTask) -> OpenTask:
        """Hand out a task; the one that is open, if a call is repeated."""
        task_id = new.task.id
        if task_id in self.tasks:
            return self.tasks[task_id]
        self.tasks[task_id] = new
        await self._announce(new.task)
        return new

    async def close(self, task_id: str) -> OpenTask | None:
        """Take a task back, or end it; None if it is not open."""
        closed = self.tasks.pop(task_id, None)
        if closed is not None:
            await self._announce(task_id)
        return closed

    async def finish(
        self, task_id: str, answer: CommitRecord | PartyError | None
    ) -> None:
        """End a task with what came of it, and wake who waits for it."""
        done = await self.close(task_id)
        if done is None or done.ended.done():
            return
        if isinstance(answer, PartyError):
            done.ended.set_exception(answer)
        else:
            done.ended.set_result(answer)

    async def changes(self, since: int) -> BoardChanges:
        """Wait until something changes after `since`; see `BoardChanges`."""
        if not self._first <= since <= self._sequence:
            opened = tuple(one.task for one in self.tasks.values())
            return BoardChanges(self._sequence, True, opened)
        async with self._changed:
            if since == self._sequence:
                try:
                    await asyncio.wait_for(self._changed.wait(), POLL_S)
                except TimeoutError:
                    return BoardChanges(self._sequence)
        if since < self._first:  # many changed at once
            return await self.changes(since)
        new = [change for number, change in self._log if number > since]
        closed = tuple(one for one in new if isinstance(one, str))
        tasks = [one for one in new if isinstance(one, Task) and one.id in self.tasks]
        by_id = {task.id: task for task in tasks}  # one may be opened twice
        return BoardChanges(self._sequence, False, tuple(by_id.values()), closed)

    async def _announce(self, change: Task | str) -> None:
        self._sequence += 1
        self._log.append((self._sequence, change))
        if len(self._log) > N_CHANGES:
            self._first = self._log.popleft()[0]
        async with self._changed:
            self._changed.notify_all()
