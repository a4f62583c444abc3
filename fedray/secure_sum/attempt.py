"""What all sides of one attempt agree on: run, round, roster, ring, limits.

Its hash, the context, stands in every key and signature of the attempt, so nothing of
one attempt means anything in another.
"""

import contextlib
import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from fedray.errors import SecureSumError
from fedray.secure_sum.codec import KEY, MAX_PARTIES, Reader, member_bytes, text_bytes
from fedray.secure_sum.graph import circle_order, degree_and_threshold, neighbours_on

LABEL = b"fedray/secagg/1"
RINGS: dict[int, np.dtype[Any]] = {
    32: np.dtype("<u4"),
    64: np.dtype("<u8"),
}  # bits -> type of a coordinate
SIGNED: dict[int, np.dtype[Any]] = {32: np.dtype("<i4"), 64: np.dtype("<i8")}
N_ZEROS = 64  # coordinates that are zero at every party: wrong masks show there
N_EXTRA = 2 + N_ZEROS  # count of parties, sum of weights, zeros
MIN_BITS = 16  # of a coordinate without its sign; fewer: the larger ring
MAX_BOUND = 2**52  # below it rounding to whole numbers is exact in float64
NOISE_SIGMAS = 8  # of the noise's sum, which have to fit into the ring too
MAX_VARIANCE = 2**54


def default_min_sum(n_parties: int) -> int:
    """Least number of parties in a sum: max(3, ceil(2 N / 3)); 2 of 2."""
    return 2 if n_parties == 2 else max(3, -(-2 * n_parties // 3))


@dataclass(frozen=True)
class SumParameters:
    """What is summed and how: the same at all parties.

    n_coordinates : of a party's vector, without those that the protocol adds.
    min_sum : parties that a sum has at least.
    bound : largest absolute value of a coordinate, before it is multiplied.
    max_weight : parties' vectors are multiplied by whole numbers from 1 to this.
    ring_bits : 32 or 64: sums are taken modulo 2 to this.
    noise_variance : of the discrete Gaussian noise that each party adds; 0: none.
    """

    n_coordinates: int
    min_sum: int
    bound: int
    max_weight: int = 1
    ring_bits: int = 32
    noise_variance: int = 0

    @property
    def dtype(self) -> np.dtype:
        """Type of a masked coordinate: unsigned, little endian."""
        return RINGS[self.ring_bits]

    @property
    def n_masked(self) -> int:
        """Coordinates of a masked vector."""
        return self.n_coordinates + N_EXTRA

    @property
    def n_bytes(self) -> int:
        """Size of a masked vector."""
        return self.n_masked * self.dtype.itemsize

    def encode(self) -> bytes:
        """As it travels, and is hashed."""
        values = (getattr(self, name.name) for name in fields(self))
        return b"".join(value.to_bytes(8, "big") for value in values)

    @classmethod
    def read(cls, reader: Reader) -> "SumParameters":
        """As `encode` wrote it."""
        return cls(*(reader.number(8) for _ in fields(cls)))

    def check(self, n_parties: int) -> None:
        """Require that no sum of so many parties can overflow.

        Raises
        ------
        SecureSumError
            If one can, or a value is out of its range.
        """
        ranges = {
            "n_coordinates": (1, 2**40),
            "min_sum": (2 if n_parties == 2 else 3, n_parties),
            "bound": (1, MAX_BOUND),
            "max_weight": (1, 2**40),
            "noise_variance": (0, MAX_VARIANCE),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not least <= value <= most:
                got = f"{name} {value} for {n_parties} parties"
                raise SecureSumError("secure sum", got, f"{least} to {most}")
        if self.ring_bits not in RINGS:
            got = f"a ring of {self.ring_bits} bits"
            raise SecureSumError("secure sum", got, "32 or 64")
        if self.noise_variance and self.max_weight > 1:
            got = f"noise, and weights up to {self.max_weight}"
            raise SecureSumError("secure sum", got, "max_weight 1 where noise is added")
        self._check_overflow(n_parties)

    def _check_overflow(self, n_parties: int) -> None:
        weighted = n_parties * self.max_weight
        largest = weighted * self.bound + noise_margin(n_parties, self.noise_variance)
        if largest > 2 ** (self.ring_bits - 1) - 1:
            got = (
                f"sums up to {largest} of {n_parties} parties with weights up to "
                f"{self.max_weight} and coordinates up to {self.bound}"
            )
            needed = f"below 2^{self.ring_bits - 1}: fewer parties or smaller weights"
            raise SecureSumError("secure sum", got, needed)


def noise_margin(n_parties: int, variance: int) -> int:
    """Largest absolute value that the sum of all parties' noise is taken to have."""
    return math.isqrt(NOISE_SIGMAS**2 * n_parties * variance) + 1 if variance else 0


def choose_parameters(
    n_coordinates: int, n_parties: int, max_weight: int = 1, min_sum: int | None = None
) -> SumParameters:
    """Ring and bound for vectors that have no grid of their own.

    The bound is the largest with which no sum overflows; a ring of 2^32 where that
    leaves coordinates of 16 bits, else 2^64, which travels twice as wide.

    Raises
    ------
    SecureSumError
        If not even 2^64 leaves 16 bits, or there are fewer than two parties.
    """
    least = default_min_sum(n_parties) if min_sum is None else min_sum
    for ring_bits in RINGS:
        most = (2 ** (ring_bits - 1) - 1) // max(1, n_parties * max_weight)
        bound = min(MAX_BOUND, most)
        if bound.bit_length() >= MIN_BITS:
            limits = (least, bound, max_weight, ring_bits)
            parameters = SumParameters(n_coordinates, *limits)
            parameters.check(n_parties)
            return parameters
    got = f"{n_parties} parties with weights up to {max_weight}"
    raise SecureSumError("secure sum", got, "fewer, or smaller weights: 2^47 together")


def grid_parameters(
    n_coordinates: int, n_parties: int, bound: int, **more: int
) -> SumParameters:
    """Ring for vectors on a grid of their own, such as that of differential privacy.

    more : max_weight, min_sum, noise_variance of `SumParameters`.

    Raises
    ------
    SecureSumError
        If a sum could overflow in both rings.
    """
    more = {"min_sum": default_min_sum(n_parties), **more}
    small = SumParameters(n_coordinates, bound=bound, **more)
    with contextlib.suppress(SecureSumError):
        small.check(n_parties)
        return small
    large = replace(small, ring_bits=64)
    large.check(n_parties)
    return large


def scale_weight(n_samples: int, largest: int, max_weight: int) -> int:
    """A sample count as a weight from 1 to `max_weight`, which stands for the largest.

    Exact where `largest` is at most `max_weight`; else rounded, never to 0.
    """
    if largest <= max_weight:
        return max(1, n_samples)
    return min(max_weight, max(1, round(n_samples * max_weight / largest)))


@dataclass(frozen=True)
class Member:
    """A party in the roster: its name and its Ed25519 public key, 32 bytes."""

    name: str
    identity: bytes


@dataclass(frozen=True)
class Attempt:
    """One try to sum the vectors of a round; a failed one is followed by the next.

    run, group, round : whose vectors; a round is opened at most once.
    number : 1, 2, ... within the round.
    roster : the parties that are asked, in the order of the config.
    """

    run: str
    group: str
    round: int
    number: int
    roster: tuple[Member, ...]
    parameters: SumParameters

    def encode(self) -> bytes:
        """As it travels."""
        members = [text_bytes(m.name) + m.identity for m in self.roster]
        return b"".join(
            [
                text_bytes(self.run) + text_bytes(self.group),
                self.round.to_bytes(8, "big") + self.number.to_bytes(4, "big"),
                self.parameters.encode() + len(self.roster).to_bytes(4, "big"),
                *members,
            ]
        )

    @classmethod
    def decode(cls, data: bytes) -> "Attempt":
        """Read and check what `encode` wrote.

        Raises
        ------
        SecureSumError
            If it is none, or its values do not fit together.
        """
        return _decode(bytes(data))

    def check(self) -> None:
        """Require two or more parties, each once, and sums that fit the ring."""
        for what, values in (
            ("name", [m.name for m in self.roster]),
            ("identity", [m.identity for m in self.roster]),
        ):
            if len({*values}) < len(values):
                got = f"a roster with one {what} twice"
                raise SecureSumError(str(self), got, "each party once")
        if not 2 <= len(self.roster) <= MAX_PARTIES:
            got = f"a roster of {len(self.roster)}"
            needed = f"2 to {MAX_PARTIES} parties: one alone has nobody to hide among"
            raise SecureSumError(str(self), got, needed)
        self.parameters.check(len(self.roster))

    def __str__(self) -> str:
        group = f", group {self.group}" if self.group else ""
        return f"round {self.round}{group}, attempt {self.number}"

    @cached_property
    def context(self) -> bytes:
        """Hash of everything above, 32 bytes."""
        roster = b"".join(text_bytes(m.name) + m.identity for m in self.roster)
        parts = [
            LABEL,
            text_bytes(self.run) + text_bytes(self.group),
            self.round.to_bytes(8, "big") + self.number.to_bytes(4, "big"),
            hashlib.sha256(roster).digest() + self.parameters.encode(),
        ]
        return hashlib.sha256(b"".join(parts)).digest()

    def sum_context(
        self, weights: bytes, with_shares: Iterable[int], in_sum: Iterable[int]
    ) -> tuple[bytes, ...]:
        """What a signature of the step ALIVE is about: weights, U2 and U3."""
        sets = (member_bytes(with_shares), member_bytes(in_sum))
        return (self.context, weights, *sets)

    @cached_property
    def _circle(self) -> list[int]:
        return circle_order(self.context, len(self.roster))

    @cached_property
    def _points(self) -> dict[int, int]:
        return {place: at for at, place in enumerate(self._circle)}

    def neighbours(self, place: int) -> list[int]:
        """Places with which this one shares masks and secrets, in order; symmetric."""
        if place not in self._near:
            self._near[place] = neighbours_on(self._circle, self._points[place])
        return self._near[place]

    @cached_property
    def _near(self) -> dict[int, list[int]]:
        return {}

    @property
    def threshold(self) -> int:
        """Shares that rebuild a secret, and signatures that a party wants to see."""
        return degree_and_threshold(len(self.roster))[1]

    def holders(self, place: int) -> list[int]:
        """Who holds shares of a party's secrets: its neighbours and itself, in order.

        The share of the i-th, from 0, is the polynomial's value at i + 1.
        """
        return sorted([place, *self.neighbours(place)])

    def places(self) -> dict[str, int]:
        """Names of the roster with their places."""
        return {m.name: i for i, m in enumerate(self.roster)}

    def names(self, places: Iterable[int]) -> list[str]:
        """Names at these places, in the roster's order."""
        n = len(self.roster)
        return [self.roster[i].name if i < n else f"#{i}" for i in sorted(places)]


@lru_cache(maxsize=4)
def _decode(data: bytes) -> Attempt:
    """An attempt from its bytes; a party reads the same one in each step."""
    reader = Reader(data, "an attempt")
    run, group = reader.text(), reader.text()
    round, number = reader.number(8), reader.number(4)
    parameters, n_parties = SumParameters.read(reader), reader.number(4)
    if n_parties > MAX_PARTIES:
        got = f"a roster of {n_parties} parties"
        raise SecureSumError("an attempt", got, f"at most {MAX_PARTIES}")
    roster = tuple(Member(reader.text(), reader.take(KEY)) for _ in range(n_parties))
    reader.end()
    attempt = Attempt(run, group, round, number, roster, parameters)
    attempt.check()
    return attempt
