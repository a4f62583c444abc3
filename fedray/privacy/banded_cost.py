"""What releases with banded noise cost the party that they cost most.

Round t of cyclic rounds releases its sum with noise of which later rounds take back a
part: with independent ``fresh`` noise and coefficients c, ``noise[t] = fresh[t] -
sum(c[j] * noise[t - j] for j in 1..band - 1)``. Only parties whose turn it is are in
round t, and their next turn is `cycle` >= `band` rounds later.
Source: Choquette-Choo et al. 2023, arXiv:2306.08153 (banded factorisations, Theorems 2
and 4); Kalinin and Lampert 2024, arXiv:2405.13763 (the square root's coefficients).
"""

import math
from collections.abc import Iterable

import numpy as np


def banded_coefficients(band: int) -> np.ndarray:
    """(band,) c: 1, 1/2, 3/8, ...: of 1 / sqrt(1 - x), as far as the band reaches."""
    factors = [(2 * j - 1) / (2 * j) for j in range(1, band)]
    return np.cumprod([1.0, *factors])


def fresh_deviation(participations: int, band: int) -> float:
    """Standard deviation of the fresh noise of a run with noise multiplier 1."""
    norm = float(np.linalg.norm(banded_coefficients(band)))
    return math.sqrt(participations) * norm


def banded_cost(releases: Iterable[tuple[int, float]], cycle: int, band: int) -> float:
    """What releases cost the party that they cost most: mu².

    A party's update of round t is in the releases of rounds t to t + band - 1, each
    time with one coefficient. A round that is released twice counts twice.

    Parameters
    ----------
    releases : the round, from 1, and standard deviation of the fresh noise, in units of
        what one party may contribute to a round.
    """
    squares = (banded_coefficients(band) ** 2).tolist()
    costs = [0.0] * cycle  # of the parties whose turn is at these rounds
    for number, deviation in releases:
        for age, square in enumerate(squares[:number]):
            costs[(number - age) % cycle] += square / deviation**2
    return max(costs)
