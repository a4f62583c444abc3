"""The sum behind masked vectors: secrets rebuilt from shares, their masks taken off."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedray.errors import SecureSumFailed
from fedray.secure_sum import keys, shamir
from fedray.secure_sum.attempt import SIGNED, Attempt
from fedray.secure_sum.codec import KEY
from fedray.secure_sum.masks import Mask, add_masks


@dataclass(frozen=True)
class SecureSum:
    """The sum of the vectors of the parties that are in it.

    total : signed whole numbers, one for each coordinate: sum of weight times vector.
    weight : sum of the weights.
    names : of the parties, in the roster's order.
    """

    total: np.ndarray
    weight: int
    names: list[str]


@dataclass(frozen=True)
class Unmasking:
    """What the server knows when shares are revealed.

    weights : hash of the weights that it sent.
    public_keys : of parties in U1, 64 bytes each, by place.
    with_shares, in_sum : U2 and U3.
    revealed : shares by the place of who revealed them, in the order of the holders
        that are in U2.
    """

    attempt: Attempt
    weights: bytes
    public_keys: Mapping[int, bytes]
    with_shares: frozenset[int]
    in_sum: frozenset[int]
    revealed: Mapping[int, tuple[bytes, ...]]

    def open(self, total: np.ndarray) -> SecureSum:
        """Take all masks off a sum, in place, and check what the protocol added to it.

        Raises
        ------
        SecureSumFailed
            If shares do not rebuild a secret, or count, weights or zeros are wrong.
        """
        add_masks(total, self._masks())
        attempt, parameters = self.attempt, self.attempt.parameters
        signed, n = total.view(SIGNED[parameters.ring_bits]), parameters.n_coordinates
        count, weight, n_parties = int(signed[n]), int(signed[n + 1]), len(self.in_sum)
        is_right = (
            count == n_parties
            and not signed[n + 2 :].any()
            and n_parties <= weight <= n_parties * parameters.max_weight
        )
        if not is_right:
            got = "a sum whose count, weights or zeros are wrong"
            needed = (
                "the same weights at all parties, and parties that follow the "
                "protocol: nothing of this sum is used"
            )
            raise SecureSumFailed(str(attempt), got, needed)
        return SecureSum(signed[:n], weight, attempt.names(self.in_sum))

    def _masks(self) -> list[Mask]:
        """Masks to take off: of parties in the sum, and of pairs with an absent one."""
        context = self.attempt.context
        masks: list[Mask] = []
        shares = self._shares()
        for place in sorted(self.with_shares):
            secret = self._combine(place, shares[place])
            if place in self.in_sum:
                key = keys.own_mask_key(secret, context, self.weights, place)
                masks.append((key, -1))
            else:
                masks += self._pair_masks(place, secret)
        return masks

    def _pair_masks(self, absent: int, secret: bytes) -> list[Mask]:
        """What neighbours in the sum added for a party that is not in it."""
        attempt, masks = self.attempt, []
        if keys.public_key(secret) != self.public_keys[absent][KEY:]:
            raise self._wrong_shares(absent)
        agree = keys.agreement(secret)
        for place in attempt.neighbours(absent):
            if place in self.in_sum:
                shared = agree(self.public_keys[place][KEY:])
                about = (attempt.context, self.weights, (place, absent))
                key = keys.pair_mask_key(shared, *about)
                masks.append((key, -1 if place < absent else 1))
        return masks

    def _shares(self) -> dict[int, dict[int, bytes]]:
        """Of each party in U2 its revealed shares, by their places from 1."""
        shares: dict[int, dict[int, bytes]] = {v: {} for v in self.with_shares}
        for holder in sorted(self.revealed):
            places = self.attempt.holders(holder)
            owners = [v for v in places if v in self.with_shares]
            for owner, share in zip(owners, self.revealed[holder], strict=True):
                at = self.attempt.holders(owner).index(holder) + 1
                shares[owner][at] = share
        return shares

    def _combine(self, place: int, shares: dict[int, bytes]) -> bytes:
        first = sorted(shares)[: self.attempt.threshold]
        try:
            return shamir.combine({x: shares[x] for x in first})
        except ValueError:
            raise self._wrong_shares(place) from None

    def _wrong_shares(self, place: int) -> SecureSumFailed:
        got = f"shares that do not rebuild a secret of {self.attempt.names([place])[0]}"
        needed = "shares as that party made them: one that holds them sent others"
        return SecureSumFailed(str(self.attempt), got, needed)
