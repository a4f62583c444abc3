"""Adaptive clipping: the clip norm follows the median length of the parties' steps.

Each party tells whether its step was within the clip norm: +½ if it was, −½ if not; who
is absent adds 0. The noised sum of these says which share was within, and the next
round's clip norm grows or falls until that is half of them.

Source: Andrew et al. 2021, arXiv:1905.03871, Algorithm 1.
"""

import math

from fedray.config.privacy import MAX_CLIP, MIN_CLIP
from fedray.privacy.grid import GRID
from fedray.privacy.noise import NoiseScale

RATE = 0.2  # η_C: of the geometric steps of the clip norm
TARGET = 0.5  # γ: the share of the parties that is to be within
COUNT_SHARE = 20  # the count's deviation is 1/20 of the parties expected

# Counts travel as whole numbers, ±1: twice the formulas' terms, as is their noise.


def count_deviation(n_expected: float) -> float:
    """σ_b: the deviation of the noise on the sum of the ±½."""
    return n_expected / COUNT_SHARE


def max_multiplier(n_expected: float) -> float:
    """Noise multipliers must be below 2 σ_b: the count alone has as little noise."""
    return 2 * count_deviation(n_expected)


def vector_multiplier(noise_multiplier: float, n_expected: float) -> float:
    """z_Δ = (z⁻² − (2 σ_b)⁻²)^(−½): of the sum, so that with the count all costs z.

    Raises
    ------
    ValueError
        If the count alone costs more than that.
    """
    most = max_multiplier(n_expected)
    if not 0 < noise_multiplier < most:
        raise ValueError(
            f"clip_norm: adaptive with noise_multiplier {noise_multiplier:g} needs "
            f"above {noise_multiplier * COUNT_SHARE / 2:g} parties a round, "
            f"{n_expected:g} are expected: lower the noise, or give clip_norm a number"
        )
    return (noise_multiplier**-2 - most**-2) ** -0.5


def noise_scale(
    noise_multiplier: float, n_expected: float, is_adaptive: bool
) -> NoiseScale:
    """Deviations of the noise on a round's sum: z · GRID; with a count, as split."""
    if not is_adaptive:
        return NoiseScale(noise_multiplier * GRID)
    z = vector_multiplier(noise_multiplier, n_expected)
    return NoiseScale(z * GRID, 2 * count_deviation(n_expected))


def next_clip_norm(clip_norm: float, count: float, n_expected: float) -> float:
    """S ← S exp(−η_C (b − γ)), b = ½ + Σ(±½) / m with noise.

    count : the noised sum of the ±1.
    """
    share = 0.5 + count / 2 / n_expected
    least, most = (math.log(limit / clip_norm) for limit in (MIN_CLIP, MAX_CLIP))
    step = min(max(-RATE * (share - TARGET), least), most)
    return min(max(clip_norm * math.exp(step), MIN_CLIP), MAX_CLIP)
