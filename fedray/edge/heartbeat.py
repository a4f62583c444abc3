"""Check-ins while an edge works, so that the service keeps its task and knows of it."""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Literal

from fedray.edge.backoff import Backoff
from fedray.edge.errors import CallFailed, EdgeEnded, Unreachable
from fedray.edge.service import Service
from fedray.edges.protocol import CheckIn
from fedray.errors import FedrayError

LOG = logging.getLogger("fedray")
CONFLICT = 409  # another process has this identity: the idle check-in waits for it
EVERY_S, SPREAD = 30.0, 0.2  # seconds between two, and the share they differ by
WAIT_S = 20.0  # that the service may keep one open

MakeCheckIn = Callable[[Literal["training", "sending"], str, float, float], CheckIn]


class Heartbeat:
    """Checks in every 30 s, give or take a fifth, from a thread of its own.

    Parameters
    ----------
    make_service : makes the calls of the thread.
    make_check_in : from state, task, share of it that is done, and how long to wait.

    Attributes
    ----------
    void : why the task need not be finished; empty while it does.
    ended : what ends the edge itself, as the service said it.
    """

    def __init__(
        self,
        make_service: Callable[[], Service],
        make_check_in: MakeCheckIn,
        task_id: str,
        every_s: float = EVERY_S,
    ):
        self.make_service, self.make_check_in = make_service, make_check_in
        self.task_id, self.every_s = task_id, every_s
        self.state: Literal["training", "sending"] = "training"
        self.share, self.void = 0.0, ""
        self.ended: FedrayError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End the check-ins; one that is open ends by itself."""
        self._stop.set()

    def _run(self) -> None:
        service, backoff = self.make_service(), Backoff()
        try:
            while not self._stop.is_set():
                started = time.monotonic()
                try:
                    self._check_in(service)
                    backoff.reset()
                    wait_s = interval_s(self.every_s) - (time.monotonic() - started)
                except Unreachable as error:
                    wait_s = backoff.delay_s(error.retry_after_s)
                except (EdgeEnded, CallFailed) as error:
                    if getattr(error, "status", None) != CONFLICT:
                        self.ended, self.void = error, str(error)
                        return
                    wait_s = backoff.delay_s()  # a killed process is not forgotten yet
                self._stop.wait(max(wait_s, 0.1))
        finally:
            service.http.close()

    def _check_in(self, service: Service) -> None:
        wait_s = min(WAIT_S, self.every_s / 2)
        check_in = self.make_check_in(self.state, self.task_id, self.share, wait_s)
        answer = service.check_in(check_in)
        if answer.is_void:
            self.void = "its round was closed"
        elif answer.task is not None and answer.task.id != self.task_id:
            self.void = f"the service goes on with round {answer.task.round}"


def interval_s(
    every_s: float, uniform: Callable[[float, float], float] = random.uniform
) -> float:
    """Seconds from one check-in to the next: never in step with other edges."""
    return every_s * uniform(1 - SPREAD, 1 + SPREAD)
