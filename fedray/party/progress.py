"""How far a training is, told now and then while it lasts."""

import time
from collections.abc import Callable

EVERY_S = 1.0
MAX_TOLD = 100  # parties that speak in a second


class Pace:
    """Tells the share of a call's training that is done; of a short one nothing.

    Parameters
    ----------
    tell : callable
        Takes the share, 0 to 1; returns at once.
    n_parties : int
        Of the federation. Where they are very many each speaks more rarely.
    """

    def __init__(self, tell: Callable[[float], None], n_parties: int):
        self.tell, self.every_s = tell, max(EVERY_S, n_parties / MAX_TOLD)
        self.begin(1)

    def begin(self, n_parts: int) -> None:
        """Training of so many parties starts."""
        self.n_parts, self.n_done, self.told = n_parts, 0, time.monotonic()

    def finished(self, n_parts: int) -> None:
        """So many more are done."""
        self.n_done += n_parts
        self.within(0.0)

    def within(self, share: float) -> None:
        """Of the one that trains now so much is done."""
        now = time.monotonic()
        if now - self.told >= self.every_s:
            self.told = now
            self.tell((self.n_done + share) / self.n_parts)
