"""Reports of how far a long training is."""

import time
from collections.abc import Callable

PROGRESS_INTERVAL_S = 1.0  # between reports of the share of a training that is done
MAX_REPORTS_PER_S = 100  # of all parties together


class ProgressReporter:
    """Reports the share of a call's training that is done; for a short call nothing.

    Parameters
    ----------
    report : callable
        Takes the share, 0 to 1; returns at once.
    n_parties : int
        Of the federation. The more there are, the less often each reports.
    clock : callable
        Seconds of a monotonic clock.
    """

    def __init__(
        self,
        report: Callable[[float], None],
        n_parties: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.report, self.clock = report, clock
        self.interval_s = max(PROGRESS_INTERVAL_S, n_parties / MAX_REPORTS_PER_S)
        self.begin(1)

    def begin(self, n_parties: int) -> None:
        """Start to train this many parties."""
        self.n_parties, self.n_finished, self.last_s = n_parties, 0, self.clock()

    def finish(self, n_parties: int) -> None:
        """Count this many parties as trained."""
        self.n_finished += n_parties
        self.advance(0.0)

    def advance(self, share: float) -> None:
        """Report that `share` of the party being trained is done, if it is time to."""
        now_s = self.clock()
        if now_s - self.last_s >= self.interval_s:
            self.last_s = now_s
            self.report((self.n_finished + share) / self.n_parties)
