"""Batches and noise of DP-SGD: who is in a batch by chance, and a sum with noise.

Both are determined by a secret key, through ChaCha20's keystream.
"""

import math

import numpy as np

from fedray.privacy.keys import keystream
from fedray.privacy.noise import CHUNK, GaussianStream
from fedray.weights import blocks

GRID_BITS = 20  # a deviation of the noise has 2^20 to 2^21 steps of the grid
WORD_BYTES = 8


def draw_batch(key: bytes, n_samples: int, rate: float) -> np.ndarray:
    """Places of a batch's samples: each is in it with probability `rate`, by itself.

    key : 32 bytes, of this draw alone.

    Returns
    -------
    (B,) int64, ascending; B is random, and may be 0.
    """
    if rate >= 1.0:
        return np.arange(n_samples)
    stream = keystream(key).update(bytes(n_samples * WORD_BYTES))
    words = np.frombuffer(stream, "<u8")
    return np.flatnonzero(words < np.uint64(math.floor(math.ldexp(rate, 64))))


def add_noise(total: np.ndarray, key: bytes, deviation: float) -> np.ndarray:
    """A vector plus Gaussian noise, rounded to a grid of powers of two.

    It is the exact rounding of the sum of `total` and real-valued Gaussian noise: the
    rounding is arithmetic on what the Gaussian mechanism releases, and the digits of
    floating-point noise, which could tell what it was added to, never come out.

    Parameters
    ----------
    total : (d,) of floats, finite.
    key : 32 bytes, of this noise alone.
    deviation : of each number's noise.

    Returns
    -------
    (d,) float64: multiples of a power of two that is about 2⁻²⁰ deviations.

    Source of the attack: Mironov 2012, CCS, On significance of the least significant
    bits for differential privacy.
    """
    grid = math.ldexp(1.0, math.frexp(deviation)[1] - 1 - GRID_BITS)
    stream, out = GaussianStream(key), np.empty(len(total))

    def work(block: int) -> None:
        where = slice(block * CHUNK, (block + 1) * CHUNK)
        own = out[where]
        np.divide(total[where], grid, out=own, dtype=np.float64)  # exact, as it is 2^k
        whole = np.rint(own)
        np.subtract(own, whole, out=own)  # exact, up to 1/2
        noise = stream.rounded(block, len(own), deviation / grid, own)
        np.add(noise, whole, out=own)
        np.multiply(own, grid, out=own)

    blocks.each(range(-(-len(total) // CHUNK)), work)
    return out
