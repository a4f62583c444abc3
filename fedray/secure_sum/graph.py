"""Who shares secrets and masks with whom, and how many shares rebuild a secret.

Up to 64 parties everybody is everybody's neighbour (Bonawitz et al. 2017, eprint
2017/281). Above, each has k neighbours on a circle in random order (Bell et al. 2020,
eprint 2020/704, "SecAgg+"), so that costs grow with k, not with the number of parties.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache

MAX_COMPLETE = 64  # parties, above which neighbours are drawn
CORRUPT, DROPPED = 0.20, 0.05  # shares of the parties that k and t are made for
SAFE_BITS, LIVE_BITS = 40, 30  # odds of 2^-40 against privacy, 2^-30 against the sum


@lru_cache
def degree_and_threshold(n_parties: int) -> tuple[int, int]:
    """Number k of neighbours and number t of shares that rebuild a party's secret.

    A secret of a party is shared among its k neighbours and itself. Above 64 parties k
    is the least even number, and t the least for it, with which, of n parties in random
    order, 20 % colluding and 5 % absent at the end, the odds are

    - at most 2^-40 that some party has t colluding neighbours, which would rebuild both
      its secrets, and
    - at most 2^-30 that of some party fewer than t shares are there: of one that is
      absent (of k, its own is gone), or of one that is there (of k + 1).

    Both are union bounds over exact hypergeometric tails.
    """
    n = n_parties
    if n <= MAX_COMPLETE:
        return n - 1, 2 * n // 3 + 1
    for degree in range(2, n, 2):
        for threshold in range(degree // 2 + 1, degree + 1):
            if _is_live(n, degree, threshold) and _is_safe(n, degree, threshold):
                return degree, threshold
    return n - 1, 2 * n // 3 + 1


def _is_safe(n: int, degree: int, threshold: int) -> bool:
    n_corrupt = math.ceil(CORRUPT * n)
    bad = _tail(n - 1, n_corrupt, degree, threshold)
    return n * bad * 2**SAFE_BITS <= math.comb(n - 1, degree)


def _is_live(n: int, degree: int, threshold: int) -> bool:
    n_absent = math.ceil(DROPPED * n)
    spare = degree - threshold  # neighbours of an absent party that may be absent too
    absent = n_absent * _tail(n - 1, n_absent - 1, degree, spare + 1)
    present = (n - n_absent) * _tail(n - 1, n_absent, degree, spare + 2)
    return (absent + present) * 2**LIVE_BITS <= math.comb(n - 1, degree)


def _tail(n_all: int, n_marked: int, n_drawn: int, least: int) -> int:
    """Number of draws with at least so many marked ones; of C(n_all, n_drawn)."""
    most = min(n_marked, n_drawn)
    return sum(
        math.comb(n_marked, x) * math.comb(n_all - n_marked, n_drawn - x)
        for x in range(least, most + 1)
    )


def circle_order(context: bytes, n_parties: int) -> list[int]:
    """Places in a random order that the attempt's context decides, on a circle.

    The server proposes the attempt and so can shape the order: what neighbours promise
    above 64 parties, they promise against a server that follows the protocol.
    """
    label = b"fedray/secagg/1 graph" + context
    return sorted(
        range(n_parties),
        key=lambda v: hashlib.sha256(label + v.to_bytes(4, "big")).digest(),
    )


def neighbours_on(circle: Sequence[int], at: int) -> list[int]:
    """The k places nearest to the one that stands at this point of the circle."""
    n = len(circle)
    degree, _ = degree_and_threshold(n)
    if degree == n - 1:
        return sorted({*circle} - {circle[at]})
    steps = [step for step in range(-degree // 2, degree // 2 + 1) if step]
    return sorted(circle[(at + step) % n] for step in steps)
