"""Banded matrix factorisation: noise of a round that later rounds take back in part.

Where a party takes part every b rounds, its b-round-wide columns of the banded matrix C
have no row in common, so that what it can move C X by grows with √(rounds / b) only.
The parties' sums X are released as X + C⁻¹ ζ: each round's noise is new noise less a
part of that of the rounds before, and the errors of their running sum cancel.
"""

import math
from collections.abc import Sequence

import numpy as np

from fedray.privacy.noise import NoiseScale, each_block
from fedray.weights import blocks

UNIT = 1 << 16  # of which coefficients are whole multiples


def band_size(n_turns: int, band: int) -> int:
    """p = min(b, band): no wider than the rounds between a party's turns."""
    return min(n_turns, band)


def coefficients(size: int) -> list[int]:
    """c_0 … c_{p−1} of the square root of the matrix of running sums, in 1/`UNIT`.

    c_0 = 1, c_j = c_{j−1} (2j − 1) / 2j; rounded, so that sums of them with whole
    numbers are exact.

    Source: Kalinin and Lampert 2024, arXiv:2405.13763; banded: Choquette-Choo et al.
    2023, arXiv:2306.08153.
    """
    c = [1.0]
    for j in range(1, size):
        c.append(c[-1] * (2 * j - 1) / (2 * j))
    return [round(value * UNIT) for value in c]


def column_norm(size: int) -> float:
    """|c|: the length of one column of C, of the coefficients as they are rounded."""
    return math.sqrt(sum(c * c for c in coefficients(size))) / UNIT


def n_participations(rounds: int, n_turns: int) -> int:
    """k = ceil(T / b): how often a party's turn comes in T rounds."""
    return -(-rounds // n_turns)


class BandedNoise:
    """The noise of rounds one after another, n_t = ζ_t − Σ_{j=1}^{p−1} c_j n_{t−j}.

    ζ_t is Gaussian with the deviations `scale` · √k |c|. What is added to a sum of
    integers is rint(n_t), and later rounds go on from that: y_t = rint((C X + ζ)_t −
    Σ c_j y_{t−j}) is made of the ideal mechanism's (C X + ζ)_t and of what is out
    already, whatever is rounded.

    past : the rounded noise of the last rounds, newest first, as `past` had it; secret,
        as long as the sums that it was added to are. Fewer than p − 1 at the start.
    """

    def __init__(self, size: int, participations: int, past: Sequence[np.ndarray] = ()):
        self.coefficients = coefficients(size)
        self.factor = math.sqrt(participations) * column_norm(size)
        self.past = list(past)[: size - 1]

    def __repr__(self) -> str:
        return f"BandedNoise({len(self.coefficients)})"

    def next(self, size: int, key: bytes, scale: NoiseScale) -> np.ndarray:
        """Rounded noise (size,) int64 of the next round; it is the newest of `past`.

        scale : per coordinate, as without correlation: z times what a party moves.

        Raises
        ------
        ValueError
            If the past has another size.
        """
        if any(old.shape != (size,) for old in self.past):
            raise ValueError(f"the noise of the rounds before has not {size} numbers")
        noise = np.empty(size, np.int64)

        def offset(where: slice) -> tuple[np.ndarray, np.ndarray]:
            """−Σ c_j n_{t−j}: the whole part, and the rest, both exact."""
            n = where.stop - where.start
            total = blocks.scratch(n, np.int64, 1)
            total[:] = 0
            for c, old in zip(self.coefficients[1:], self.past, strict=False):
                total -= np.multiply(old[where], c, dtype=np.int64)
            whole = np.floor_divide(total, UNIT)
            total -= whole * UNIT
            rest = blocks.scratch(n, np.float64, 4)
            np.multiply(total, 1.0 / UNIT, out=rest)
            return whole, rest

        def take(where: slice, values: np.ndarray) -> None:
            np.copyto(noise[where], values, casting="unsafe")

        count = None if scale.count is None else scale.count * self.factor
        own = NoiseScale(scale.vector * self.factor, count)
        each_block(key, size, own, take, offset)
        self.past = [noise, *self.past][: len(self.coefficients) - 1]
        return noise
