"""--when: a command of the owner's that says by its exit code whether to train now."""

import logging
import subprocess
import threading
import time
from collections.abc import Callable

LOG = logging.getLogger("fedray")
TIMEOUT_S = 30.0
CHECK_S = 10.0  # between two runs of it while the edge trains or waits


class Condition:
    """Whether the owner's command exits 0; without a command it always holds.

    It is run again when `CHECK_S` have passed since the last time.
    """

    def __init__(
        self,
        command: str = "",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ):
        self.command, self.clock, self.sleep = command, clock, sleep
        self._lock = threading.Lock()
        self._checked_at: float | None = None
        self._holds = True

    def holds(self) -> bool:
        """Whether the edge may train, fetch and send now."""
        if not self.command:
            return True
        with self._lock:
            now = self.clock()
            if self._checked_at is None or now - self._checked_at >= CHECK_S:
                before, self._holds = self._holds, self._run()
                self._checked_at = self.clock()
                if before != self._holds:
                    word = "exits 0: going on" if self._holds else "does not exit 0"
                    more = "" if self._holds else ": waiting, nothing is asked or sent"
                    LOG.info("--when %s%s", word, more)
            return self._holds

    def _run(self) -> bool:
        try:
            done = subprocess.run(
                self.command, shell=True, timeout=TIMEOUT_S, check=False,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0

    def wait(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Wait until it holds, or `is_over` says that nobody waits for it any more."""
        while not self.holds() and not is_over():
            self.sleep(min(1.0, CHECK_S))
