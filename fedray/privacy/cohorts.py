"""Who takes part in a round of noised sums: groups in turn, or independent draws."""

import hashlib
from collections.abc import Sequence

import numpy as np

from fedray.privacy.keys import encode_context, make_tag


def n_turns(fraction: float) -> int:
    """b: the groups of which one trains in a round; a party's turn comes every b."""
    return max(1, round(1 / fraction))


def cyclic_cohort(names: Sequence[str], cycle: int, round: int) -> np.ndarray:
    """Which of some parties a round asks: those of group round mod b, (K,) bool.

    A party's group is SHA-256 of its name mod b: whoever else there is, it stays.
    """
    turn = round % cycle
    return np.array([_hash(name) % cycle == turn for name in names], bool)


def poisson_cohort(names: Sequence[str], rate: float, key: bytes) -> np.ndarray:
    """Draw each of some parties with the same chance, independently, (K,) bool.

    key : of this round alone; secret, as who was drawn is. The same key draws alike.
    """
    most = int(rate * 2**64)
    draws = (int.from_bytes(make_tag(key, "party", name)[:8], "big") for name in names)
    return np.array([draw < most for draw in draws], bool)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(encode_context(name)).digest(), "big")
