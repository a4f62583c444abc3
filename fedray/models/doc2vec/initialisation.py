"""Initial vectors of words and documents, determined by seed and name alone."""

import hashlib
from collections.abc import Sequence

import numpy as np

BLOCK = 1 << 20  # numbers at a time
# constants of splitmix64
STEP, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def stable_hash(*parts: object) -> int:
    """A 64-bit hash of the parts' texts, the same in every process."""
    text = "/".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def initial_vectors(seed: int, names: Sequence[str], size: int) -> np.ndarray:
    """One vector for each of N names, float32 (N, size), within ±1/size as in gensim.

    A name has the same vector at every position and party: its numbers are drawn by
    splitmix64 from a hash of (seed, name).

    Source: Steele et al. 2014, doi:10.1145/2660193.2660195.
    """
    rows = np.empty((len(names), size), np.float32)
    steps = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(STEP)
    n_rows = max(1, BLOCK // size)
    for start in range(0, len(names), n_rows):
        block = names[start : start + n_rows]
        seeds = np.array([stable_hash(seed, name) for name in block], np.uint64)
        x = seeds[:, None] + steps  # wraps around
        x = (x ^ (x >> np.uint64(30))) * np.uint64(MIX_1)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(MIX_2)
        x ^= x >> np.uint64(31)
        share = (x >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)  # [0, 1)
        rows[start : start + len(block)] = (share * 2 - 1) / np.float32(size)
    return rows
