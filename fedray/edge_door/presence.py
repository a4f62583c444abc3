"""Who is there: last contacts, one process for each identity, and when to come back."""

import logging
import random
import time
from collections import Counter

import numpy as np

from fedray.edge_door.refusals import EdgeRefused
from fedray.edges.contacts import STATES, Contacts
from fedray.edges.protocol import CheckIn, Task
from fedray.edges.registry import Registry
from fedray.edges.roster import Edge

IDLE_HOLD_S = 10.0  # that a process is taken to live after its last contact
BUSY_HOLD_S = 75.0  # while it trains or sends: two heartbeats
SILENT_S = 3600.0  # between two lines about the same edge
DAY_S = 86400.0  # an edge that was not heard of for a day is not counted
COUNT_S = 5.0  # between counts of the edges that are about
LOG = logging.getLogger("fedray")


class Presence:
    """Contacts of one run's edges.

    Parameters
    ----------
    registry : of the run.
    """

    def __init__(self, registry: Registry):
        self.contacts = Contacts(registry.folder)
        self._n_open: Counter[int] = Counter()  # check-ins under way, by edge
        self._lines: dict[int, float] = {}  # when a line was written about an edge
        self._n_active, self._next_count = 0, 0.0

    def note_enrolment(self, number: int) -> None:
        """Count an edge from its enrolment on."""
        row = self.contacts.row(number)
        if row["last_seen"] == 0:
            row["last_seen"] = time.time()

    def begin(self, edge: Edge, check_in: CheckIn) -> np.void:
        """Note a check-in that begins; `end` has to follow.

        Raises
        ------
        CallRefused
            409 if another process has this identity.
        """
        row, now = self.contacts.row(edge.number), time.time()
        instance = int(check_in.instance[:16], 16)
        if row["instance"] not in (0, instance):
            is_held = self._n_open[edge.number] > 0 or (
                now < row["hold_until"] < now + 2 * BUSY_HOLD_S
            )
            if is_held or row["previous"] == instance:
                self._tell_conflict(edge, now)
                raise _two_processes(edge)
            row["previous"] = row["instance"]
        row["instance"], row["last_seen"] = instance, now
        row["state"] = STATES.index(check_in.state)
        row["share"], row["version"] = check_in.share, check_in.version.encode()
        self._n_open[edge.number] += 1
        return row

    def end(self, edge: Edge, check_in: CheckIn, is_gone: bool) -> None:
        """Note that a check-in was answered, or that its client hung up."""
        self._n_open[edge.number] -= 1
        if self._n_open[edge.number] <= 0:
            del self._n_open[edge.number]
        row, now = self.contacts.row(edge.number), time.time()
        hold_s = IDLE_HOLD_S if check_in.state == "idle" else BUSY_HOLD_S
        row["last_seen"], row["hold_until"] = now, now if is_gone else now + hold_s

    def n_open(self, edge: Edge) -> int:
        """Check-ins of an edge that are under way."""
        return self._n_open[edge.number]

    def note_task(self, edge: Edge, task: Task) -> None:
        """Note which round an edge was asked for."""
        self.contacts.row(edge.number)["round"] = task.round

    def note_upload(self, edge: Edge, n_bytes: int, rate: float) -> None:
        """Note bytes of an update that have arrived; bytes a second."""
        row = self.contacts.row(edge.number)
        row["bytes_up"] += np.uint64(n_bytes)
        row["rate"], row["last_seen"] = rate, time.time()

    def note_download(self, edge: Edge, n_bytes: int) -> None:
        """Note bytes of weights that were handed over."""
        row = self.contacts.row(edge.number)
        row["bytes_down"] += np.uint64(n_bytes)
        row["last_seen"] = time.time()

    def n_active(self) -> int:
        """Edges that were heard of within a day."""
        now = time.time()
        if now > self._next_count:
            self._n_active = self.contacts.count_seen(now - DAY_S)
            self._next_count = now + COUNT_S
        return self._n_active

    def _tell_conflict(self, edge: Edge, now: float) -> None:
        if now - self._lines.get(edge.number, 0.0) > SILENT_S:
            self._lines[edge.number] = now
            text = "edge %s: two processes have its identity; the second is refused. %s"
            what = "Is it a copy of its folder? `fedray edges rotate` shuts out both"
            LOG.warning(text, edge.name, what)


def _two_processes(edge: Edge) -> EdgeRefused:
    detail = f"Another process calls with the identity of {edge.name}."
    hint = "Let one run; a copy needs an invitation and a state folder of its own."
    headers = {"retry-after": str(round(random.uniform(5, 15)))}
    return EdgeRefused(409, detail, hint, headers)
