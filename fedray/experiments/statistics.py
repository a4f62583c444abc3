"""Means, deviations and intervals of few values, as runs with several seeds have.

Student's t distribution by the incomplete beta function (Abramowitz and Stegun 1964,
equations 26.5.8 and 26.7.1).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

TINY = 1e-300  # a denominator that would be 0
N_TERMS = 500  # of the continued fraction; it ends long before
CONFIDENCE = 0.95


class Summary(NamedTuple):
    """Some values: their number, mean, and deviation (None of a single one)."""

    n: int
    mean: float
    deviation: float | None


class Difference(NamedTuple):
    """Mean difference of pairs, and its interval; None of a single pair."""

    n: int
    mean: float
    low: float | None
    high: float | None

    @property
    def is_clear(self) -> bool | None:
        """Whether the interval leaves out 0; None where there is none."""
        if self.low is None or self.high is None:
            return None
        return self.low > 0 or self.high < 0


def summarize(values: Sequence[float]) -> Summary | None:
    """Mean and sample deviation; None without values."""
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Summary(1, mean, None)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Summary(len(values), mean, math.sqrt(squares / (len(values) - 1)))


def compare_pairs(pairs: Sequence[tuple[float, float]]) -> Difference | None:
    """Mean of first − second with its 95 % t interval; None without pairs."""
    summary = summarize([first - second for first, second in pairs])
    if summary is None:
        return None
    n, mean, deviation = summary
    if deviation is None:
        return Difference(n, mean, None, None)
    half = t_quantile((1 + CONFIDENCE) / 2, n - 1) * deviation / math.sqrt(n)
    return Difference(n, mean, mean - half, mean + half)


def t_quantile(p: float, degrees: int) -> float:
    """The t below which a share p >= 0.5 of Student's distribution lies."""
    low, high = 0.0, 1.0
    while t_distribution(high, degrees) < p:
        high *= 2
    while (middle := (low + high) / 2) not in (low, high):
        if t_distribution(middle, degrees) < p:
            low = middle
        else:
            high = middle
    return high


def t_distribution(t: float, degrees: int) -> float:
    """The share of Student's distribution below t >= 0."""
    outside = _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t))
    return 1 - outside / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised I_x(a, b)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    logs = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(logs + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, 1 - x) / b


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of I_x(a, b), by Lentz's method."""
    value = d = 1 / _not_zero(1 - (a + b) * x / (a + 1))
    c = 1.0
    for m in range(1, N_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _not_zero(1 + term * d)
            c = _not_zero(1 + term / c)
            value *= d * c
        if abs(d * c - 1) < 1e-16:
            break
    return value


def _not_zero(number: float) -> float:
    return number if abs(number) > TINY else TINY
