"""What cyclic rounds with banded noise cost the party that they cost most."""

import math
from collections.abc import Iterable

from fedray.privacy.banded import UNIT, coefficients


def banded_cost(releases: Iterable[tuple[int, float]], cycle: int, band: int) -> float:
    """The mu² of the party that has the largest.

    A party's update of round t is in the releases of rounds t to t + band - 1, each
    time with one coefficient. A round that is released twice counts twice, and what is
    to come after the last release not yet.

    Parameters
    ----------
    releases : the round, from 1, and standard deviation of the fresh noise, in units of
        what one party may contribute to a round.
    cycle : rounds after which a party's turn comes again, at least `band`.

    Source: Choquette-Choo et al. 2023, arXiv:2306.08153, Theorems 2 and 4.
    """
    squares = [(c / UNIT) ** 2 for c in coefficients(band)]
    costs = [0.0] * cycle  # of the parties whose turn is at these rounds
    for number, deviation in releases:
        for age, square in enumerate(squares[:number]):
            costs[(number - age) % cycle] += square / deviation**2
    return max(costs)


def cost_of_rounds(rounds: int, cycle: int, band: int) -> float:
    """`banded_cost` of the rounds from 1 on, each once, with fresh noise 1.

    The party whose turn comes first costs most: no other has more turns, or more
    rounds after the last one.
    """
    if not rounds:
        return 0.0
    squares = [(c / UNIT) ** 2 for c in coefficients(band)]
    n_before, n_since = divmod(rounds - 1, cycle)
    return n_before * math.fsum(squares) + math.fsum(squares[: n_since + 1])
