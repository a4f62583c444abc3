"""Simulated edges in threads: honest ones, and ones that do as they please."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from support.simulated_edge import (
    INFO,
    Answer,
    Connection,
    Refused,
    SimulatedEdge,
    fetch,
    send_update,
)

Make = Callable[[bytes, dict[str, Any]], tuple[bytes, dict[str, Any]]]


@dataclass
class Player:
    """One edge in a thread of its own, until `stop` or the run's end.

    make : file and report of a training, from the base and the task.
    answers : to the commits of trainings, in their order.
    """

    edge: SimulatedEdge
    connect: Callable[[], Connection]
    make: Make
    answers: list[Answer] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def start(self) -> "Player":
        """Begin; itself."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()
        return self

    def stop(self, patience_s: float = 600.0) -> None:
        """End it; raises what has gone wrong in it."""
        self._stop.set()
        self._thread.join(patience_s)
        for error in self.errors:
            raise error

    def _live(self) -> None:
        try:
            with self.connect() as connection:
                while not self._stop.is_set():
                    answer = connection.send(self.edge.checkin(wait_s=2))
                    if answer.status == 410:
                        return
                    if answer.status == 200:
                        self._do(connection, answer.json())
                    elif answer.status in (409, 429, 503):
                        self._stop.wait(0.2)
                    else:
                        assert answer.status == 204, answer
        except BaseException as error:
            self.errors.append(error)

    def _do(self, connection: Connection, task: dict[str, Any]) -> None:
        if task["kind"] == "join":
            answer = connection.send(self.edge.commit(task["id"], b"", INFO))
            assert answer.json()["verdict"] == "taken", answer
            return
        try:
            base = fetch(self.edge, connection, task["base"])
            content, report = self.make(base, task)
            send_update(self.edge, connection, task["id"], content)
            call = self.edge.commit(task["id"], content, report)
            answer = connection.send(call)
        except Refused as refusal:
            answer = refusal.answer
        self.answers.append(answer)
        if answer.status != 200:
            connection.send(self.edge.fail(task["id"]))
