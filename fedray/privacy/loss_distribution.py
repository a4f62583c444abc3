"""Privacy loss distribution (PLD) of Poisson-sampled Gaussian noise, added up by FFT.

Losses are rounded to a grid so that the rounded pair of distributions dominates the
real one in both directions: each cell's mass goes to its two ends, so that it keeps its
mass under both distributions ("connect the dots"). What this adds to epsilon is of
second order in the grid's step, and never below zero.
Source: Doroshenko et al. 2022, arXiv:2207.04380, Section 3; sums by FFT: Koskela et al.
2020, arXiv:1906.03049; their tails relative to delta by tilting: Alghamdi et al. 2023,
arXiv:2208.09595.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Sampled = tuple[float, float]  # (q, z) of Poisson-sampled Gaussian noise

REACH = 9.5  # standard deviations of the noise; what is beyond is below 1e-20
STEP = 0.05  # of the grid, in standard deviations of one release's loss
MAX_POINTS = 1 << 18  # of one release
MAX_WINDOW = 1 << 20  # of the sum
LARGEST_LOSS = 300.0  # of a sum: above it exp() would overflow
NEGLIGIBLE = 1e-6  # share of delta
TILTS = 2.0 ** np.arange(-9, 14)


@dataclass(frozen=True)
class Losses:
    """Privacy losses on a grid: what may happen, and how likely.

    first : place of the first loss: losses are (first + i) * step.
    mass : (n,) probability of each under the distribution of what really happened.
    infinite : probability of what the other distribution excludes.
    """

    step: float
    first: int
    mass: np.ndarray
    infinite: float

    @property
    def losses(self) -> np.ndarray:
        """(n,) the losses."""
        return self.step * (self.first + np.arange(len(self.mass)))

    @functools.cached_property
    def log_moments(self) -> np.ndarray:
        """log E[exp(t * loss)] of the finite losses, for each t of `TILTS`."""
        is_there = self.mass > 0
        losses, logs = self.losses[is_there], np.log(self.mass[is_there])
        return np.array([_log_sum(logs + tilt * losses) for tilt in TILTS])


def epsilon_of_sampled(counts: Mapping[Sampled, int], delta: float) -> float:
    """The least epsilon of all releases together, rounded up; inf if there is none.

    counts : how many releases there are of each q and z.
    """
    if max(_loss_spread(*one)[1] for one in counts) > LARGEST_LOSS:
        return math.inf
    step = _common_step(counts)
    pairs = {one: rounded_losses(*one, step) for one in counts}
    return max(
        _epsilon([(pairs[one][way], n) for one, n in counts.items()], delta)
        for way in (0, 1)
    )


@functools.lru_cache(maxsize=32)
def rounded_losses(q: float, z: float, step: float) -> tuple[Losses, Losses]:
    """Losses of one release, of someone who is in it and of someone who is not."""
    low = _loss(q, z, -REACH * z) if q < 1 else (-REACH * z - 0.5) / z**2
    high = _loss(q, z, 1 + REACH * z)
    first, last = math.floor(low / step), math.ceil(high / step)
    knots: np.ndarray = step * np.arange(first, last + 1)
    point = _point(q, z, knots)
    without = _masses(point / z)  # of N(0, z²)
    with_ = (1 - q) * without + q * _masses((point - 1) / z)
    ratio = np.exp(knots)
    # of a cell: without = lower + upper, with_ = lower ratio[i] + upper ratio[i + 1]
    excess = with_[1:-1] / ratio[:-1] - without[1:-1]
    upper = np.clip(excess / math.expm1(step), 0, without[1:-1])
    mass = np.zeros(len(knots))
    mass[:-1] += without[1:-1] - upper
    mass[1:] += upper
    mass[0] += with_[0] / ratio[0]
    mass[-1] += without[-1]
    beyond = max(0.0, with_[-1] - ratio[-1] * without[-1])
    below = max(0.0, without[0] - with_[0] / ratio[0])
    own = Losses(step, first, mass * ratio, beyond)
    return own, Losses(step, -last, mass[::-1].copy(), below)


def _loss(q: float, z: float, x: float) -> float:
    """log of the two densities' ratio at x."""
    shift = (2 * x - 1) / (2 * z**2)
    return float(np.logaddexp(math.log1p(-q), math.log(q) + shift)) if q < 1 else shift


def _point(q: float, z: float, losses: np.ndarray) -> np.ndarray:
    """Where the log of the ratio is each of these; -inf where it is always more."""
    if q == 1:
        return z**2 * losses + 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        above = np.expm1(losses) + q  # exp(loss) - (1 - q)
        return np.where(above > 0, z**2 * np.log(above / q) + 0.5, -np.inf)


def _masses(x: np.ndarray) -> np.ndarray:
    """(n + 1,) of N(0, 1): below the first of the ascending x, between them, above."""
    tails = np.array([math.erfc(abs(u) / math.sqrt(2)) / 2 for u in x.tolist()])
    a, b = tails[:-1], tails[1:]
    inner = np.where(x[:-1] >= 0, a - b, np.where(x[1:] <= 0, b - a, 1 - a - b))
    below = tails[0] if x[0] <= 0 else 1 - tails[0]
    above = tails[-1] if x[-1] >= 0 else 1 - tails[-1]
    return np.concatenate([[below], inner, [above]])


def _common_step(counts: Mapping[Sampled, int]) -> float:
    """A grid's step that adds less than a thousandth to the losses' variance."""
    spreads = {one: _loss_spread(*one) for one in counts}
    variance = sum(n * spreads[one][0] for one, n in counts.items())
    step = STEP * math.sqrt(variance / sum(counts.values()))
    return max(step, *(width / MAX_POINTS for _, width in spreads.values()))


@functools.lru_cache(maxsize=4096)
def _loss_spread(q: float, z: float) -> tuple[float, float]:
    """Variance of one release's loss, and the width of all its losses."""
    x = np.linspace(-REACH * z, 1 + REACH * z, 4001)
    with np.errstate(divide="ignore"):
        loss = np.logaddexp(np.log1p(-q), np.log(q) + (2 * x - 1) / (2 * z**2))
    density = (1 - q) * np.exp(-((x / z) ** 2) / 2)
    density += q * np.exp(-(((x - 1) / z) ** 2) / 2)
    share = density / density.sum()
    mean = float(share @ loss)
    return float(share @ (loss - mean) ** 2), float(loss[-1] - loss[0])


def _epsilon(parts: list[tuple[Losses, int]], delta: float) -> float:
    """The least epsilon of a sum of losses: so many of each."""
    infinite = -math.expm1(sum(n * math.log1p(-one.infinite) for one, n in parts))
    delta -= infinite
    if delta <= 0:
        return math.inf
    spare = math.log(delta * NEGLIGIBLE)
    moments = np.sum([n * one.log_moments for one, n in parts], axis=0)
    which, width = _best_tilt(moments, spare)
    step, tilt = parts[0][0].step, TILTS[which]
    n_points = 1 << max(8, math.ceil(math.log2(width / step)))
    if width > LARGEST_LOSS or n_points > MAX_WINDOW:
        return max(0.0, float(np.min((moments - math.log(delta)) / TILTS)))
    sums = step * np.arange(n_points)
    tilted = _tilted_sum(parts, which, n_points)
    mass = tilted * np.exp(moments[which] - tilt * sums)
    return _epsilon_of_mass(sums, mass, delta * (1 - 2 * NEGLIGIBLE))


def _best_tilt(moments: np.ndarray, spare: float) -> tuple[int, float]:
    """Which tilt needs the smallest window [0, width), and that width.

    What lies outside comes back inside at another place, and must weigh less than
    exp(spare) there: from below exp(-tilt * width), from above, by Chernoff's bound
    with a tilt t above it, exp(moment(t) - (t - tilt) * width).
    """
    beyond = TILTS[None, :] - TILTS[:, None]
    with np.errstate(divide="ignore"):
        above = np.where(beyond > 0, (moments - spare) / beyond, np.inf).min(axis=1)
    widths = np.maximum(above, -spare / TILTS)
    return int(np.argmin(widths)), float(widths.min())


def _tilted_sum(
    parts: list[tuple[Losses, int]], which: int, n_points: int
) -> np.ndarray:
    """(n_points,) masses of the sum, tilted by TILTS[which], by its place modulo n."""
    product = np.ones(n_points // 2 + 1, complex)
    for one, n in parts:
        weight = np.exp(TILTS[which] * one.losses - one.log_moments[which]) * one.mass
        places = (one.first + np.arange(len(weight))) % n_points
        product *= np.fft.rfft(np.bincount(places, weight, n_points)) ** n
    return np.clip(np.fft.irfft(product, n_points), 0, None)


def _epsilon_of_mass(sums: np.ndarray, mass: np.ndarray, delta: float) -> float:
    """The least epsilon >= 0 of a sum that has these losses (ascending) so likely."""
    from_here = np.cumsum(mass[::-1])[::-1]
    under_other = np.cumsum((mass * np.exp(-sums))[::-1])[::-1]
    with np.errstate(over="ignore", invalid="ignore"):  # of losses above 700
        deltas = from_here - np.exp(sums) * under_other  # at epsilon = sums
    i = int(np.flatnonzero(np.r_[True, deltas > delta])[-1])  # the next is below
    if i == len(sums) or from_here[i] <= delta:
        return float(sums[min(i, len(sums) - 1)])
    return max(0.0, math.log((from_here[i] - delta) / under_other[i]))


def _log_sum(logs: np.ndarray) -> float:
    top = float(logs.max())
    return top + math.log(float(np.exp(logs - top).sum()))
