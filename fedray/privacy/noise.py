"""Secret Gaussian noise: ChaCha20's keystream, Box-Muller, rounded without an error.

A key determines every number, by its place in the vector. Noise for integers is the
rounding of a real Gaussian: where float64 cannot tell to which integer a number rounds
(about one in 10⁸), more digits of it are computed. So it is the same on every CPU, and
a sum of integers with it is the rounded sum with *continuous* noise: nothing that the
theory of the Gaussian mechanism would not cover.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext

import numpy as np

from fedray.privacy.keys import keystream, require_cryptography
from fedray.weights import blocks

CHUNK = 1 << 16  # numbers of one block of the stream; always even
WORD = 8  # bytes of keystream for each number
MAX_SCALE = 2.0**40  # above, float64 would leave too many roundings open

# Of the first word of a pair, A/2⁶⁴ being u₁: below LOW float64 would lack digits of
# u₁, above HIGH of 1 − u₁. Both are computed with more digits.
LOW, HIGH = 1 << 46, (1 << 64) - (1 << 47)
# The radius r = √(−2 ln u₁) is then known to 2⁻⁴⁶ + r 2⁻⁴⁹, sine and cosine to 2⁻⁴⁹,
# if a library's functions are within 8 units in the last place.
ERROR = 2.0**-48  # times 6 + r: the greatest error of a number

PI = Decimal(
    "3.1415926535897932384626433832795028841971693993751058209749445923078164062862"
)
DIGITS = Context(prec=70, rounding=ROUND_HALF_EVEN, Emin=-999999, Emax=999999)
EXTRA_BITS = 256  # of each word that more digits are computed of


@dataclass(frozen=True)
class NoiseScale:
    """Standard deviations of the noise on a vector of integers.

    vector : of each coordinate.
    count : of the last one, where that is a count of parties; None: there is none.
    """

    vector: float
    count: float | None = None


class GaussianStream:
    """Independent N(0, 1) numbers in blocks of `CHUNK`, determined by a key.

    key : 32 bytes; whoever has it can take the noise off.

    Raises
    ------
    MissingExtra
        If the package cryptography is not installed.
    """

    def __init__(self, key: bytes):
        if len(key) != 32:
            raise ValueError("a noise key has 32 bytes")
        require_cryptography()
        # a partial would show the key in its repr
        self._keystream = lambda nonce: keystream(key, nonce)

    def __repr__(self) -> str:
        return "GaussianStream()"

    def numbers(self, block: int, size: int) -> np.ndarray:
        """The first numbers of a block, in float64; in scratch memory.

        In float64 their last digits may differ between CPUs.
        """
        words = self._words(block, size)
        return self._polar(words)[0][:size]

    def rounded(
        self, block: int, size: int, scale: float, offset: np.ndarray | None = None
    ) -> np.ndarray:
        """rint(scale · g + offset) for the first numbers of a block; exact.

        Parameters
        ----------
        offset : (size,) float64 from -1 to 1, exact; None: zeros

        Returns
        -------
        (size,) float64 of whole numbers, in scratch memory.
        """
        _require_scale(scale)
        words = self._words(block, size)
        g, most = self._polar(words)
        half, value = len(words) // 2, g[:size]
        np.multiply(value, scale, out=value)
        if offset is not None:
            np.add(value, offset, out=value)
        whole = np.rint(value, out=blocks.scratch(CHUNK, np.float64, 3)[:size])
        np.subtract(value, whole, out=value)
        np.abs(value, out=value)
        clear = 0.5 - (scale * (6 + most) * ERROR + 2.0**-50)
        unclear: list[int] = []
        if value.max() > clear:
            unclear = np.flatnonzero(value > clear).tolist()
        pairs = _extreme_pairs(words[:half])
        for i in {*unclear, *pairs, *(half + pair for pair in pairs)}:
            if i < size:
                own = 0.0 if offset is None else float(offset[i])
                whole[i] = self._round_exactly(block, words, i, (scale, own))
        return whole

    def _words(self, block: int, size: int) -> np.ndarray:
        """Two words of 64 bits for each pair of numbers; in scratch memory."""
        if not 0 < size <= CHUNK:
            raise ValueError(f"a block has from 1 to {CHUNK} numbers, got {size}")
        n_words = size + size % 2
        words = blocks.scratch(CHUNK, np.uint64)[:n_words]
        nonce = struct.pack("<IIQ", 0, 0, block)
        self._keystream(nonce).update_into(
            ZEROS[: n_words * WORD], words.view(np.uint8)
        )
        return words

    def _polar(self, words: np.ndarray) -> tuple[np.ndarray, float]:
        """Box-Muller: the numbers, cosines first; and the greatest radius.

        Source: Box and Muller 1958, Annals of Mathematical Statistics 29(2).
        """
        half = len(words) // 2
        out = blocks.scratch(CHUNK, np.float64, 1)[: len(words)]
        radius = blocks.scratch(CHUNK, np.float64, 2)[:half]
        np.copyto(radius, words[:half] | np.uint64(1), casting="unsafe")
        np.multiply(radius, 2.0**-64, out=radius)
        np.log(radius, out=radius)
        np.multiply(radius, -2.0, out=radius)
        most = math.sqrt(radius.max())
        np.sqrt(radius, out=radius)
        angle = blocks.scratch(CHUNK, np.float64, 3)[:half]
        np.copyto(angle, words[half:].view(np.int64), casting="unsafe")
        np.multiply(angle, math.pi * 2.0**-63, out=angle)
        np.cos(angle, out=out[:half])
        np.sin(angle, out=out[half:])
        np.multiply(out[:half], radius, out=out[:half])
        np.multiply(out[half:], radius, out=out[half:])
        return out, most

    def _round_exactly(
        self, block: int, words: np.ndarray, i: int, by: tuple[float, float]
    ) -> int:
        """One number with 70 digits, from 256 more bits of each of its two words."""
        half = len(words) // 2
        pair, is_sine = i % half, i >= half
        more = EXTRA_BITS // 8
        nonce = struct.pack("<IIQ", 0, 1 + pair, block)
        extra = self._keystream(nonce).update(bytes(2 * more))
        low = [int.from_bytes(extra[:more]), int.from_bytes(extra[more:])]
        high = [int(words[pair]), int(words[half + pair].view(np.int64))]
        a, b = (h << EXTRA_BITS | m for h, m in zip(high, low, strict=True))
        with localcontext(DIGITS):
            unit = Decimal(2) ** (64 + EXTRA_BITS)
            radius = (-2 * ((Decimal(a) + Decimal("0.5")) / unit).ln()).sqrt()
            turns = 2 * Decimal(b) / unit  # of half a circle, from -1 to 1
            if is_sine:  # sin πt = cos π(t − 1/2)
                turns -= Decimal("0.5")
            value = radius * _cos_pi(turns) * Decimal(by[0]) + Decimal(by[1])
            return int(value.to_integral_value())


ZEROS = memoryview(bytes(CHUNK * WORD))


def _extreme_pairs(first: np.ndarray) -> list[int]:
    """Pairs whose radius float64 would know too little of, by their first words."""
    if first.min() >= LOW and first.max() < HIGH:
        return []
    is_extreme = (first < np.uint64(LOW)) | (first >= np.uint64(HIGH))
    return [int(pair) for pair in np.flatnonzero(is_extreme)]


def _cos_pi(t: Decimal) -> Decimal:
    """cos πt of |t| < 2, by its series, in the digits of the context."""
    t = abs(t)
    if t > 1:
        t = 2 - t
    sign = 1
    if 2 * t > 1:
        t, sign = 1 - t, -1
    square, term, total, n = -((PI * t) ** 2), Decimal(1), Decimal(1), 0
    while abs(term) > Decimal("1e-72"):
        n += 2
        term = term * square / (n * (n - 1))
        total += term
    return sign * total


def _require_scale(scale: float) -> None:
    if not 0 < scale <= MAX_SCALE:
        raise ValueError(
            f"noise needs a deviation above 0 and up to {MAX_SCALE:.3g}, "
            f"got {scale!r}: lower noise_multiplier"
        )


def add_noise(total: np.ndarray, key: bytes, scale: NoiseScale) -> None:
    """Add the rounded Gaussian noise of a key to a vector of integers, in place.

    total : (d,) int64; the last one is a count where `scale.count` says so.
    """

    def add(where: slice, noise: np.ndarray) -> None:
        np.add(total[where], noise, out=total[where], casting="unsafe")

    each_block(key, len(total), scale, add)


Offset = Callable[[slice], tuple[np.ndarray, np.ndarray]]  # whole numbers, and the rest


def each_block(
    key: bytes,
    size: int,
    scale: NoiseScale,
    work: Callable[[slice, np.ndarray], None],
    offset: Offset | None = None,
) -> None:
    """Call `work` with each block's place and its noise, in whole numbers.

    offset : what is added before rounding: a whole part, and a rest in [0, 1).
    """
    stream = GaussianStream(key)
    n_vector = size - (scale.count is not None)
    parts = [
        (block, slice(start, min(start + CHUNK, n_vector)), scale.vector)
        for block, start in enumerate(range(0, n_vector, CHUNK))
    ]
    if scale.count is not None:
        parts.append((len(parts), slice(n_vector, size), scale.count))

    def do(part: tuple[int, slice, float]) -> None:
        block, where, deviation = part
        n = where.stop - where.start
        if offset is None:
            work(where, stream.rounded(block, n, deviation))
            return
        whole, rest = offset(where)
        noise = stream.rounded(block, n, deviation, rest)
        work(where, np.add(noise, whole, out=noise))

    blocks.each(parts, do)
