"""Exact differential privacy of Gaussian noise, in both directions: mu and epsilon.

`mu` is the largest shift of what is released, in standard deviations of its noise.
Releases add up exactly: mu² of several is the sum of theirs.
Source: Balle and Wang 2018, arXiv:1805.06530, Theorem 8; Dong et al. 2019,
arXiv:1905.02383, Corollaries 1 and 2.
"""

import math
from collections.abc import Callable

LARGE_MU = 1e3  # above it the tail's bound is within 0.1 %, and floats lack digits
N_HALVINGS = 200  # until neighbouring floats; it stops there
FAR_TAIL = -35.0  # below it erfc leaves the range of normal floats


def log_normal_cdf(x: float) -> float:
    """log of P(N(0, 1) <= x), as exact for x = -1000 as for x = 1."""
    if x > 0:
        return math.log1p(-math.erfc(x / math.sqrt(2)) / 2)
    if x > FAR_TAIL:
        return math.log(math.erfc(-x / math.sqrt(2)) / 2)
    series = 1 - 1 / x**2 + 3 / x**4 - 15 / x**6  # the next term is below 1e-10
    return -(x**2) / 2 - math.log(-x * math.sqrt(2 * math.pi)) + math.log(series)


def delta_of_mu(mu: float, epsilon: float) -> float:
    """The least delta at this epsilon >= 0."""
    if mu == 0:
        return 0.0
    if math.isinf(mu):
        return 1.0
    upper = log_normal_cdf(-epsilon / mu + mu / 2)
    lower = epsilon + log_normal_cdf(-epsilon / mu - mu / 2)
    return math.exp(upper) * max(0.0, -math.expm1(lower - upper))


def epsilon_of_mu(mu: float, delta: float) -> float:
    """The least epsilon >= 0 at this delta > 0, rounded up."""
    if math.isinf(mu):
        return math.inf
    most = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))  # of the tail's bound
    if mu > LARGE_MU:
        return most
    if delta_of_mu(mu, 0.0) <= delta:
        return 0.0
    return bisect(lambda epsilon: delta_of_mu(mu, epsilon) <= delta, 0.0, most)[1]


def mu_for(epsilon: float, delta: float) -> float:
    """The largest mu that keeps to this epsilon and delta, rounded down."""
    width = math.sqrt(2 * math.log(1 / delta))
    by_bound = 2 * epsilon / (math.sqrt(width**2 + 2 * epsilon) + width)
    if by_bound > LARGE_MU:
        return by_bound
    most = 1.0
    while delta_of_mu(most, epsilon) <= delta:
        most *= 2
    return bisect(lambda mu: delta_of_mu(mu, epsilon) > delta, 0.0, most)[0]


def bisect(
    is_above: Callable[[float], bool], low: float, high: float
) -> tuple[float, float]:
    """Neighbouring floats of [low, high] between which `is_above` turns true."""
    for _ in range(N_HALVINGS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (low, middle) if is_above(middle) else (middle, high)
    return low, high
