"""Rényi differential privacy: of Poisson-sampled Gaussian noise, and its epsilon.

Source: Mironov 2017, arXiv:1702.07476; Mironov et al. 2019, arXiv:1908.10530,
Theorem 5 (the direction that decides) and Section 3.3; to epsilon: Canonne et al.
2020, arXiv:2004.00010, Proposition 12.
"""

import functools
import math

import numpy as np

ORDERS = tuple(
    float(order)
    for order in (
        *(1 + 0.05 * i for i in range(1, 20)),
        *(2 + 0.1 * i for i in range(80)),
        *range(10, 64),
        *(64 * 1.25**i for i in range(10)),
    )
)
MANY_ORDERS = tuple((1 + np.geomspace(1e-3, 1e7, 4000)).tolist())  # of closed forms
REACH = 14.0  # standard deviations: what lies beyond is below 1e-40
LEAST_NOISE = 0.1  # below it sampling saves nothing that matters
BLOCK = 1 << 16  # points of the integral at a time


def renyi_of_mu(mu: float, order: float) -> float:
    """Rényi divergence of N(mu, 1) from N(0, 1), and the other way round."""
    return order * mu**2 / 2


def renyi_of_poisson(q: float, z: float, order: float) -> float:
    """Rényi divergence of one Poisson-sampled Gaussian release, by quadrature.

    q : chance that the one whose privacy is meant is in it.
    z : standard deviation of the noise, in units of what one may contribute.
    order : above 1.

    The trapezoid rule on a smooth function: its error falls exponentially with the
    step, which is a part of the noise's width and of the distance π z² between the real
    line and the logarithm's singularity.
    """
    if q == 0:
        return 0.0
    if q == 1 or z < LEAST_NOISE:  # never more than without sampling
        return renyi_of_mu(1 / z, order)
    step = min(z / 6, z**2 / 2)
    n_points = math.ceil((order + 2 * REACH * z) / step)
    total = -math.inf  # log of the sum
    for start in range(0, n_points, BLOCK):
        x = -REACH * z + step * np.arange(start, min(start + BLOCK, n_points))
        ratio = np.logaddexp(math.log1p(-q), math.log(q) + (2 * x - 1) / (2 * z**2))
        terms = order * ratio - x**2 / (2 * z**2)
        top = float(terms.max())
        block = top + math.log(float(np.exp(terms - top).sum()))
        total = float(np.logaddexp(total, block))
    log_moment = total + math.log(step / (z * math.sqrt(2 * math.pi)))
    return max(0.0, log_moment) / (order - 1)


@functools.lru_cache(maxsize=4096)
def poisson_curve(q: float, z: float) -> np.ndarray:
    """Rényi divergences of one release at all `ORDERS`; read-only."""
    curve = np.array([renyi_of_poisson(q, z, order) for order in ORDERS])
    curve.setflags(write=False)
    return curve


def epsilon_of_curve(curve: np.ndarray, orders: np.ndarray, delta: float) -> float:
    """The least epsilon >= 0 that follows from these divergences at these orders."""
    tail = (math.log(delta) + np.log(orders)) / (orders - 1)
    return max(0.0, float(np.min(curve + np.log1p(-1 / orders) - tail)))
