"""Exact samples of the discrete Gaussian, N_Z(0, variance), from secret randomness.

P(x) is proportional to exp(-x^2 / (2 variance)) over the whole numbers: the noise that
each party adds to its own vector before the vectors are summed.

Source: Canonne, Kamath, Steinke 2020, arXiv:2004.00010, Algorithm 3: propose from the
discrete Laplace distribution, accept with probability exp(-(|y| - variance / t)^2 / (2
variance)), t = floor(sqrt(variance)) + 1. Their integer loops are replaced by
comparisons of uniform real numbers, of which as many bits are drawn as a comparison
needs: nearly always 53, in float64; where these lie within the rounding error of the
bound that they are compared with, further bits decide, in decimal arithmetic. So the
distribution is the exact one, not one rounded to float64.
"""

import math
import os
from collections.abc import Callable
from decimal import Context, Decimal

import numpy as np

from fedray.privacy.keys import keystream

BLOCK = 2**12  # samples at a time
ERROR = 2.0**-46  # relative; that of numpy's log and exp is below 2^-50
N_BITS = 53  # of a uniform number, at first
HALF = 2.0**-54  # half a step of it
RARE = 2.0**-16  # uniform numbers below are always compared by further bits
MORE_BITS = 256  # drawn at once where 53 do not decide
Words = Callable[[int], np.ndarray]


def add_noise(vector: np.ndarray, variance: int, key: bytes | None = None) -> None:
    """Add independent samples to whole numbers, in place.

    vector : signed integers, of one dimension; sums that do not fit wrap around.
    variance : 1 to 2^54.
    key : 32 bytes; None: fresh ones from the operating system, as it has to be outside
        of tests.
    """
    words = _words(os.urandom(32) if key is None else key)
    for start in range(0, len(vector), BLOCK):
        block = vector[start : start + BLOCK]
        noise = _samples(len(block), variance, words)
        np.add(block, noise.astype(vector.dtype), out=block)


def _words(key: bytes) -> Words:
    """Random 64-bit words: the ChaCha20 stream of a key, used once."""
    stream = keystream(key)
    return lambda n: np.frombuffer(stream.update(bytes(8 * n)), "<u8")


def _samples(n: int, variance: int, words: Words) -> np.ndarray:
    out, at = np.empty(n, np.int64), 0
    while at < n:
        batch = _accepted(int(1.4 * (n - at)) + 16, variance, words)[: n - at]
        out[at : at + len(batch)] = batch
        at += len(batch)
    return out


def _accepted(n: int, variance: int, words: Words) -> np.ndarray:
    """Those of n proposals that are accepted, in their order: three quarters."""
    scale = math.isqrt(variance) + 1
    drawn = words(n)
    size = _geometric(drawn, scale, words)
    is_negative = (drawn & np.uint64(1)).view(np.int64)
    is_fine = _accepts(size, variance, scale, words)
    is_fine &= (size != 0) | (is_negative == 0)  # zero once, not as minus zero too
    sign = 1 - 2 * is_negative[is_fine]
    return size[is_fine] * sign


def _uniform(drawn: np.ndarray) -> np.ndarray:
    """The middles of the intervals that the upper 53 bits of words stand for."""
    uniform = (drawn >> np.uint64(11)).view(np.int64) * 2.0**-N_BITS
    return np.add(uniform, HALF, out=uniform)


def _geometric(drawn: np.ndarray, scale: int, words: Words) -> np.ndarray:
    """floor(-scale * log(U)): x has a probability proportional to exp(-x / scale).

    The uniform number U has the upper 53 bits of each word, and more where needed.
    """
    uniform = _uniform(drawn)
    rare = np.flatnonzero(uniform < RARE)
    value = np.log(uniform, out=uniform)
    value *= -float(scale)
    size = np.floor(value)
    value -= size + 0.5  # how far from the middle between two whole numbers
    # above RARE, -log U is below 12, and twice half a step is at most that share of U
    error = scale * (12 * ERROR + ERROR + 2 * HALF / RARE)
    is_open = np.abs(value, out=value) > 0.5 - error
    for i in {*np.flatnonzero(is_open).tolist(), *rare.tolist()}:
        size[i] = _exact_floor(int(drawn[i] >> np.uint64(11)), scale, words)
    return size.astype(np.int64)


def _accepts(size: np.ndarray, variance: int, scale: int, words: Words) -> np.ndarray:
    """Whether further uniform numbers are below the odds of acceptance of each size."""
    drawn, denominator = words(len(size)), 2 * variance * scale**2
    uniform = _uniform(drawn)
    exponent = (size * scale - variance).astype(np.float64)
    exponent *= exponent
    exponent /= -float(denominator)
    bound = np.exp(exponent, out=exponent)
    bound -= uniform
    accepts = bound > 0
    # errors of exp and of its exponent e are below exp(-e) (1 + e) ERROR <= ERROR
    is_open = np.abs(bound, out=bound) <= ERROR + 2 * HALF
    for i in np.flatnonzero(is_open).tolist():
        squared = (int(size[i]) * scale - variance) ** 2
        number = int(drawn[i] >> np.uint64(11))
        accepts[i] = _exact_below(number, squared, denominator, words)
    return accepts


def _exact_floor(bits: int, scale: int, words: Words) -> int:
    """floor(-scale * log(U)) of the real number U that begins with these 53 bits."""
    n_bits = N_BITS
    while True:
        low, high, context, margin = _interval(bits, n_bits)
        if bits:
            factor = Decimal(-scale)
            least = context.multiply(high.ln(context), factor)
            most = context.multiply(low.ln(context), factor)
            whole = math.floor(context.add(most, margin))
            if whole == math.floor(context.subtract(least, margin)):
                return whole
        bits, n_bits = _with_more(bits, n_bits, words)


def _exact_below(bits: int, numerator: int, denominator: int, words: Words) -> bool:
    """Whether U, that begins with these bits, is below exp(-numerator/denominator)."""
    n_bits = N_BITS
    while True:
        low, high, context, margin = _interval(bits, n_bits)
        exponent = context.divide(Decimal(-numerator), Decimal(denominator))
        bound = exponent.exp(context)
        if high < context.subtract(bound, margin):
            return True
        if low > context.add(bound, margin):
            return False
        bits, n_bits = _with_more(bits, n_bits, words)


def _with_more(bits: int, n_bits: int, words: Words) -> tuple[int, int]:
    further = int.from_bytes(words(MORE_BITS // 64).tobytes(), "little")
    return bits << MORE_BITS | further, n_bits + MORE_BITS


def _interval(bits: int, n_bits: int) -> tuple[Decimal, Decimal, Context, Decimal]:
    """Ends of the numbers that begin with these bits; how to compute, and how well."""
    digits = n_bits // 2 + 60  # more than the bits tell
    context = Context(prec=digits)
    whole = Decimal(2**n_bits)
    low = context.divide(Decimal(bits), whole)
    high = context.divide(Decimal(bits + 1), whole)
    return low, high, context, Decimal((0, (1,), 40 - digits))
