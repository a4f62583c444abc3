"""Records limits that were reached: a line in the service's log, a count in Prometheus.

Lines about the same client and limit are at least `PAUSE_S` apart, so that a client
cannot fill the log; each line says how many calls were refused since the one before.
"""

import functools
import logging
import threading
import time
from typing import TYPE_CHECKING

from fedray.untrusted_text import escape_line

if TYPE_CHECKING:
    from ray.util.metrics import Counter

PAUSE_S = 10.0
MAX_CALL = 80  # characters
MAX_PAIRS = 10_000  # of client and limit that are remembered
METRIC = "fedray_limit_reached"  # ray_fedray_limit_reached_total in Prometheus
LOG = logging.getLogger("fedray")


class LimitLog:
    """The lines of one process, and when the last one of each kind was written."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lines: dict[tuple[str | None, str], tuple[float, int]] = {}

    def record(self, client: str | None, call: str, limit: str) -> None:
        """Log and count that a client's call was refused by a limit.

        Parameters
        ----------
        client : its id; None: the client of a service without keys.
        call : method and path, or what was refused.
        limit : name of the setting.
        """
        _counter().inc(1, {"limit": limit})
        n_before = self._take_turn(client, limit)
        if n_before is None:
            return
        who = "" if client is None else f" by {escape_line(client)}"
        text = f"limit {limit} reached{who}: {escape_line(call[:MAX_CALL])}"
        more = f" ({n_before} more since the last such line)" if n_before else ""
        LOG.warning("%s", text + more)

    def _take_turn(self, client: str | None, limit: str) -> int | None:
        """Calls since the last line; None where it is too early for another."""
        now, pair = time.monotonic(), (client, limit)
        with self.lock:
            if len(self.lines) >= MAX_PAIRS:
                self.lines.clear()
            last, n_before = self.lines.get(pair, (-PAUSE_S, 0))
            if now - last < PAUSE_S:
                self.lines[pair] = last, n_before + 1
                return None
            self.lines[pair] = now, 0
            return n_before


@functools.cache
def _counter() -> "Counter":
    """Ray's counter, once in a process: Ray keeps it."""
    from ray.util.metrics import Counter

    return Counter(METRIC, "calls that a limit of the service refused", ("limit",))
