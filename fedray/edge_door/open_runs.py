"""The runs that a door serves: who is enrolled, their groups and open tasks.

The door keeps the list in a file, so that one that was killed goes on with it.
"""

import asyncio
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fedray import durable_files
from fedray.edge_door.board import Board
from fedray.edge_door.presence import Presence
from fedray.edge_door.refusals import come_again, has_ended
from fedray.edge_door.uploads import Uploads
from fedray.edges.protocol import SPOOL, BoardChanges, Enrol, Enrolment, Group
from fedray.edges.registry import Registry
from fedray.edges.roster import read_run_id
from fedray.errors import CallRefused, ConfigError, FedrayError
from fedray.untrusted_text import escape_line

FILE = "runs.json"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0  # until a group that failed is asked again
SCAN_S = 2.0  # between looks for runs that nobody has opened
RETRY_S = 15  # after which an edge asks again for a run that is not there
MAX_QUEUE = 1024  # enrolments that wait to be written
MAX_REASON = 500  # characters of why a run has ended
LOG = logging.getLogger("fedray")


class OpenRun:
    """One run: its registry, contacts, board, uploads and groups.

    Parameters
    ----------
    folder : of the run.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.registry = Registry(folder)
        self.presence = Presence(self.registry)
        self.board = Board()
        self.uploads = Uploads(folder / SPOOL)
        self.groups: dict[str, Group] = {}
        self.unready: set[str] = set()  # groups that have not said what is open
        self.ended: str | None = None
        self._followers: dict[str, asyncio.Task] = {}
        self._queue: list[tuple[Enrol, asyncio.Future[Enrolment]]] = []
        self._writer: asyncio.Task | None = None

    def check_open(self) -> None:
        """Raise CallRefused 410 if the run has ended."""
        if self.ended is not None:
            raise has_ended(self.ended)

    def check_ready(self) -> None:
        """Raise CallRefused 503 until every group has said which tasks are open."""
        if self.unready:
            raise come_again("The run's tasks are not known here yet.", 1)

    def set_groups(self, names: Iterable[str], connect: Callable[[str], Group]) -> None:
        """Follow these groups, and no others."""
        wanted = set(names)
        for name in set(self.groups) - wanted:
            self._followers.pop(name).cancel()
            del self.groups[name]
            self._apply(name, BoardChanges(0, is_whole=True))
        for name in wanted - set(self.groups):
            self.groups[name] = group = connect(name)
            self.unready.add(name)
            self._followers[name] = asyncio.create_task(self._follow(name, group))

    async def _follow(self, name: str, group: Group) -> None:
        """Keep the board as the group says it is, by one long call after another."""
        since, pause_s = 0, FIRST_PAUSE_S
        while True:
            try:
                changes = await group.changes(since)
                self._apply(name, changes)
                since, pause_s = changes.sequence, FIRST_PAUSE_S
            except Exception as error:  # it was killed: Ray starts it again
                if pause_s < LONGEST_PAUSE_S <= 2 * pause_s:
                    LOG.warning("edges' group %s does not answer: %s", name, error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _apply(self, name: str, changes: BoardChanges) -> None:
        self.unready.discard(name)
        for id in self.board.apply(name, changes):
            self.uploads.delete(id)
        if changes.ended is not None:
            self.end(changes.ended)

    def end(self, reason: str) -> None:
        """Answer 410 from now on."""
        self.ended = reason[:MAX_REASON]
        self.board.wake_all()

    def close(self) -> None:
        """Follow no group any more."""
        for task in self._followers.values():
            task.cancel()
        self._followers.clear()

    async def enrol(self, request: Enrol) -> Enrolment:
        """Enrol an edge; many at once share one write and one flush.

        Raises
        ------
        CallRefused
            403 or 409, without a write; 429 if too many wait.
        RunFolderError
            If the disk refuses.
        """
        self.registry.refresh()
        answer = self.registry.check(request)
        if answer is None:
            if len(self._queue) >= MAX_QUEUE:
                raise come_again("Too many edges enrol at this moment.", 2, 429)
            future = asyncio.get_running_loop().create_future()
            self._queue.append((request, future))
            if self._writer is None or self._writer.done():
                self._writer = asyncio.create_task(self._write_enrolments())
            answer = await future
        self.presence.note_enrolment(answer.party)
        return answer

    async def _write_enrolments(self) -> None:
        while self._queue:
            batch, self._queue = self._queue, []
            requests = [request for request, _ in batch]
            try:
                answers: list[Any] = await asyncio.to_thread(
                    self.registry.enrol_all, requests
                )
            except Exception as error:
                answers = [error] * len(batch)
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():  # its client has hung up
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)


class OpenRuns:
    """All runs of a door, by the id that invitations and tokens have.

    Parameters
    ----------
    file : where the list is kept.
    connect : makes a group that can be called, from its name.
    places : folders in which runs lie that edges may enrol in before they begin.
    """

    def __init__(
        self,
        file: Path,
        connect: Callable[[str], Group],
        places: Callable[[], Iterable[Path]] = lambda: (),
    ):
        self.file, self.connect, self.places = file, connect, places
        self._runs: dict[str, OpenRun] = {}
        self._names: dict[str, list[str]] = {}  # groups, of runs that were opened
        self._next_scan = 0.0

    def load(self) -> None:
        """Go on with the runs that were open."""
        try:
            listed = dict(json.loads(self.file.read_text("utf-8")))
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError) as error:
            LOG.error("the edges' door cannot read %s: %s", self.file, error)
            return
        for run_id, entry in listed.items():
            try:
                self._go_on(run_id, Path(entry["folder"]), entry)
            except (FedrayError, KeyError, TypeError) as error:
                LOG.error("the edges' door cannot go on with a run: %s", error)

    def _go_on(self, run_id: str, folder: Path, entry: dict[str, Any]) -> None:
        """Go on with one run, unless its folder is that of another by now."""
        if read_run_id(folder) == run_id:
            run = self._add(run_id, folder)
            run.ended = entry["ended"]
            self._names[run_id] = entry["groups"]
            if run.ended is None:
                run.set_groups(entry["groups"], self.connect)

    def _add(self, run_id: str, folder: Path) -> OpenRun:
        run = self._runs.get(run_id)
        if run is None or run.folder != folder:
            if run is not None:
                run.close()
            run = self._runs[run_id] = OpenRun(folder)
        return run

    def open(self, run_id: str, folder: Path, groups: list[str]) -> None:
        """Serve a run, or go on with it; known after a kill when this returns.

        Raises
        ------
        ConfigError
            If the folder is that of another run.
        OSError
            If the disk refuses.
        """
        if read_run_id(folder) != run_id:
            problem = f"the folder {folder} is not that of the run {run_id}"
            raise ConfigError([f"{problem}, or lies on another machine than the door"])
        run = self._add(run_id, folder)
        run.ended = None
        run.set_groups(groups, self.connect)
        self._names[run_id] = list(groups)
        self._save()

    def close(self, run_id: str, reason: str) -> None:
        """A run is done: its edges are answered 410, what they have sent is deleted."""
        if run := self._runs.get(run_id):
            run.end(reason)
            run.set_groups((), self.connect)  # its tasks and uploads with them
            self._save()
            shutil.rmtree(run.folder / SPOOL, ignore_errors=True)

    def _save(self) -> None:
        listed = {
            id: {
                "folder": str(self._runs[id].folder),
                "groups": groups,
                "ended": self._runs[id].ended,
            }
            for id, groups in self._names.items()
        }
        durable_files.make_folder(self.file.parent, 0o700)
        durable_files.write_text(self.file, json.dumps(listed, indent=1), 0o600)

    def find(self, run_id: str) -> OpenRun:
        """The run of an invitation or token.

        Raises
        ------
        CallRefused
            503 if the door does not have it, or not yet.
        """
        run = self._runs.get(run_id)
        if run is None and time.monotonic() >= self._next_scan:
            self._next_scan = time.monotonic() + SCAN_S
            self._scan(run_id)
            run = self._runs.get(run_id)
        if run is None:
            raise come_again("No such run is open at this service yet.", RETRY_S)
        return run

    def _scan(self, run_id: str) -> None:
        """Look for a run that has invited edges and has not begun."""
        try:
            for folder in self.places():
                if read_run_id(folder) == run_id:
                    self._add(run_id, folder)
                    return
        except OSError as error:
            LOG.warning("cannot look for runs: %s", escape_line(str(error)))

    def __iter__(self) -> Iterator[OpenRun]:
        return iter(self._runs.values())


def refuse_unanswered(error: Exception) -> CallRefused:
    """503: the group of a task does not answer; it is started again."""
    LOG.warning("an edges' group does not answer: %s", escape_line(str(error)[:200]))
    return come_again("The run does not answer at this moment.", 2)
