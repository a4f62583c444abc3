"""Pace steering: when edges are to come back, so that check-ins are level.

Source: Bonawitz et al. 2019, arXiv:1902.01046, section 2.3.
"""

import random

RATE = 200.0  # check-ins a second that all edges together make
MAX_POLLING = 2000  # edges; with more of them none waits for its answer
LEAST_S = 1.0
DAY_S = 86400.0  # an edge that was not heard of for a day does not count


def may_wait(n_edges: int) -> bool:
    """Whether check-ins may wait for a task, each on its open connection."""
    return n_edges <= MAX_POLLING


def return_after_s(n_edges: int, rng: random.Random) -> int:
    """Seconds until an edge is to check in again: N / rate, more or less by up to half.

    However many come at once, they come back spread over one such period.
    """
    mean = max(n_edges / RATE, LEAST_S)
    return max(1, round(rng.uniform(0.5, 1.5) * mean))
