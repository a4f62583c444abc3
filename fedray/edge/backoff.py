"""How long to wait before the same is tried again: longer each time, never in step."""

import random
from collections.abc import Callable

FIRST_S, LONGEST_S = 1.0, 300.0
MAX_RETRY_AFTER_S = 6 * 3600.0


class Backoff:
    """Delays that double to a longest one, each drawn from its upper half.

    What the service asks for (Retry-After) counts instead, up to a fifth more, so that
    edges that it told the same do not come back together.
    """

    def __init__(self, uniform: Callable[[float, float], float] = random.uniform):
        self.uniform, self.n_failures = uniform, 0

    def reset(self) -> None:
        """Begin anew after a success."""
        self.n_failures = 0

    def delay_s(self, retry_after_s: float | None = None) -> float:
        """Seconds until the next attempt; counts one more failure."""
        self.n_failures += 1
        if retry_after_s is not None:
            least = min(max(retry_after_s, 0.0), MAX_RETRY_AFTER_S)
            return least + self.uniform(0.0, 0.2) * max(least, FIRST_S)
        longest = min(LONGEST_S, FIRST_S * 2.0 ** min(self.n_failures - 1, 20))
        return self.uniform(0.5, 1.0) * longest
