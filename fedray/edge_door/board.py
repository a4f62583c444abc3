"""The open tasks of one run, as its groups said last: check-ins are answered by it."""

import asyncio

from fedray.edges.protocol import BoardChanges, Task


class Board:
    """Tasks by edge, and the check-ins that wait for one."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task] = {}  # by id
        self._ids_of: dict[str, dict[str, None]] = {}  # by name of the edge, in order
        self._group_of: dict[str, str] = {}  # task id: group
        self._waiting: dict[str, set[asyncio.Event]] = {}  # by name of the edge

    def apply(self, group: str, changes: BoardChanges) -> list[str]:
        """Take in what has changed in a group; ids of tasks that are closed now."""
        closed = [id for id in changes.closed if id in self._tasks]
        if changes.is_whole:
            open_ids = {task.id for task in changes.opened}
            own = [id for id, one in self._group_of.items() if one == group]
            closed = [id for id in own if id not in open_ids]
        for id in closed:
            self._close(id)
        for task in changes.opened:
            self._open(group, task)
        return closed

    def _open(self, group: str, task: Task) -> None:
        self._tasks[task.id] = task
        self._group_of[task.id] = group
        self._ids_of.setdefault(task.name, {})[task.id] = None
        self._wake(task.name)

    def finish(self, id: str) -> None:
        """Hand a task out no more: it has its commit, as its group is about to say."""
        if id in self._tasks:
            self._close(id)

    def _close(self, id: str) -> None:
        task = self._tasks.pop(id)
        del self._group_of[id]
        ids = self._ids_of[task.name]
        del ids[id]
        if not ids:
            del self._ids_of[task.name]
        self._wake(task.name)

    def task_of(self, name: str, id: str) -> Task | None:
        """The open task of this id, if it is this edge's."""
        task = self._tasks.get(id)
        return task if task is not None and task.name == name else None

    def next_task(self, name: str) -> Task | None:
        """The task that an edge was asked for first and has not done."""
        ids = self._ids_of.get(name)
        return self._tasks[next(iter(ids))] if ids else None

    def group_of(self, id: str) -> str | None:
        """The group that has opened a task."""
        return self._group_of.get(id)

    def tasks_of(self, name: str) -> list[Task]:
        """All open tasks of an edge."""
        return [self._tasks[id] for id in self._ids_of.get(name, ())]

    def watch(self, name: str) -> asyncio.Event:
        """An event that is set when the edge's tasks change; see `unwatch`."""
        event = asyncio.Event()
        self._waiting.setdefault(name, set()).add(event)
        return event

    def unwatch(self, name: str, event: asyncio.Event) -> None:
        """Forget an event."""
        events = self._waiting.get(name, set())
        events.discard(event)
        if not events:
            self._waiting.pop(name, None)

    def wake_all(self) -> None:
        """Answer every check-in that waits."""
        for name in list(self._waiting):
            self._wake(name)

    def _wake(self, name: str) -> None:
        for event in self._waiting.get(name, ()):
            event.set()
