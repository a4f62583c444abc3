"""Shamir's secret sharing over the prime 2^521 - 1.

Any t shares of a secret rebuild it; fewer tell nothing about it.

Source: Shamir 1979, "How to share a secret".
"""

import secrets
from collections.abc import Sequence
from functools import lru_cache

from fedray.secure_sum.codec import KEY, SHARE

PRIME = 2**521 - 1


def split(secret: bytes, threshold: int, n_shares: int) -> list[bytes]:
    """Values at 1, ..., n of a random polynomial of degree t - 1, the secret at 0.

    secret : 32 bytes. A share has 66.
    """
    higher = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    polynomial = [int.from_bytes(secret, "big"), *higher]
    return [
        _value(polynomial, x).to_bytes(SHARE, "big") for x in range(1, n_shares + 1)
    ]


def _value(polynomial: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * x + coefficient) % PRIME
    return value


def combine(shares: dict[int, bytes]) -> bytes:
    """The secret behind exactly t shares, by their places from 1.

    Raises
    ------
    ValueError
        If they are not shares of one secret of 32 bytes, as far as that shows.
    """
    total = 0
    for share, factor in zip(
        shares.values(), lagrange_at_zero(tuple(shares)), strict=True
    ):
        total += int.from_bytes(share, "big") * factor
    secret = total % PRIME
    if secret >> 8 * KEY:
        raise ValueError("shares that belong to no secret")
    return secret.to_bytes(KEY, "big")


@lru_cache(maxsize=4096)
def lagrange_at_zero(places: tuple[int, ...]) -> tuple[int, ...]:
    """Factors by which the values at these places add up to the value at 0."""
    factors = []
    for here in places:
        above = below = 1
        for other in places:
            if other != here:
                above = above * other % PRIME
                below = below * (other - here) % PRIME
        factors.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(factors)
