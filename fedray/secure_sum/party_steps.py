"""What a party does in each step: functions of its slot and the server's message.

Each checks the message before it makes anything, and returns the slot after the step
with what leaves. Nothing here touches the disk.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from fedray.errors import SecureSumError
from fedray.privacy.discrete_gaussian import add_noise
from fedray.secure_sum import keys, shamir
from fedray.secure_sum.attempt import N_ZEROS, SIGNED, Attempt
from fedray.secure_sum.codec import KEY, SHARE, Kind, Message
from fedray.secure_sum.masks import BLOCK, Mask, MaskStream
from fedray.secure_sum.party_state import Slot


def refuse(attempt: Attempt, got: str, needed: str) -> SecureSumError:
    """The error of a request that this attempt does not allow."""
    return SecureSumError(str(attempt), got, needed)


def join(attempt: Attempt, place: int, identity: keys.Identity) -> tuple[Slot, bytes]:
    """Step 1: fresh keys of X25519 for boxes and for masks, signed."""
    box_secret, mask_secret = keys.new_secret(), keys.new_secret()
    public = keys.public_key(box_secret) + keys.public_key(mask_secret)
    signature = identity.sign("keys", attempt.context, place, public)
    slot = Slot(attempt, place, box_secret=box_secret, mask_secret=mask_secret)
    answer = Message(Kind.KEYS, attempt.context, public + signature)
    return slot, answer.encode()


def share(slot: Slot, message: Message) -> tuple[Slot, bytes]:
    """Step 2: shares of the own mask's seed and of the mask secret, a box a neighbour.

    message : U1, and keys of the neighbours in it with their signatures.
    """
    attempt, me = slot.attempt, slot.place
    _check_members(slot, message.members, "U1")
    peers = _read_keys(slot, message)
    seed, holders = keys.new_secret(), attempt.holders(me)
    pairs = zip(
        shamir.split(seed, attempt.threshold, len(holders)),
        shamir.split(slot.mask_secret, attempt.threshold, len(holders)),
        strict=True,
    )
    shares = {v: a + b for v, (a, b) in zip(holders, pairs, strict=True)}
    boxes, agree = [], keys.agreement(slot.box_secret)
    for place, public in peers.items():
        key = keys.box_key(agree(public[:KEY]), attempt.context, me, place)
        boxes.append(keys.seal(key, shares[place], me, place))
    slot = replace(slot, seed=seed, peers=peers, shares={me: shares[me]})
    slot = replace(slot, with_keys=message.members)
    return slot, Message(Kind.SHARES, attempt.context, items=tuple(boxes)).encode()


def _read_keys(slot: Slot, message: Message) -> dict[int, bytes]:
    attempt = slot.attempt
    places = [v for v in attempt.neighbours(slot.place) if v in message.members]
    _check_count(slot, message, len(places))
    peers = {}
    for place, item in zip(places, message.items, strict=True):
        public, signature = item[: 2 * KEY], item[2 * KEY :]
        member = attempt.roster[place]
        signs = ("keys", attempt.context, place, public)
        if not keys.is_signed(member.identity, signature, *signs):
            got = f"keys that {member.name} did not sign for this attempt"
            raise refuse(attempt, got, "signed ones: leave the party out")
        peers[place] = public
    return peers


def check_sharers(slot: Slot, message: Message) -> None:
    """Step 3, before training: U2 is within U1, with a box of each neighbour in it."""
    _check_members(slot, message.members, "U2")
    _check_within(slot, message.members, slot.with_keys, "U2 within U1")
    _check_count(slot, message, len(slot.peers.keys() & message.members))


def open_boxes(slot: Slot, message: Message, weights: bytes) -> Slot:
    """Step 3: decrypt the shares of neighbours in U2, note U2 and the weights."""
    attempt, me = slot.attempt, slot.place
    if message.head != weights:
        got = "weights with another hash than the aggregator says it sent"
        raise refuse(attempt, got, "the same weights at all parties")
    shares, agree = dict(slot.shares), keys.agreement(slot.box_secret)
    places = [v for v in slot.peers if v in message.members]
    for place, box in zip(places, message.items, strict=True):
        shared = agree(slot.peers[place][:KEY])
        key = keys.box_key(shared, attempt.context, place, me)
        content = keys.unseal(key, box, place, me)
        if content is None:
            name = attempt.roster[place].name
            got = f"a box that {name} did not make for this party"
            raise refuse(attempt, got, "one that it made: leave the party out")
        shares[place] = content
    return replace(slot, shares=shares, with_shares=message.members, weights=weights)


def mask(
    slot: Slot, coordinates: Iterable[np.ndarray], weight: int
) -> Iterator[np.ndarray]:
    """Step 3: blocks of the masked vector, one after the other, in the same memory.

    Multiplied coordinates with noise, then count, weight and zeros, all with the own
    mask and one for each neighbour in U2.
    """
    attempt, parameters = slot.attempt, slot.attempt.parameters
    if not 1 <= weight <= parameters.max_weight:
        raise refuse(attempt, "another weight", f"1 to {parameters.max_weight}")
    masks = MaskStream(_masks(slot), parameters.dtype)
    signed = SIGNED[parameters.ring_bits]
    memory, n_done = np.empty(BLOCK // signed.itemsize, signed), 0
    for part in _parts(slot, coordinates):
        block = memory[: len(part)]
        np.copyto(block, part, casting="unsafe")  # the bound is within its type
        np.multiply(block, weight, out=block)
        if parameters.noise_variance:
            add_noise(block, parameters.noise_variance)
        masks.add(block.view(parameters.dtype))
        n_done += len(part)
        yield block
    if n_done < parameters.n_coordinates:
        raise refuse(attempt, f"{n_done} coordinates", f"{parameters.n_coordinates}")
    extra = np.array([1, weight, *[0] * N_ZEROS], signed)
    masks.add(extra.view(parameters.dtype))
    yield extra


def _parts(slot: Slot, coordinates: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Checked coordinates, as many at a time as fit a block."""
    attempt, parameters, at = slot.attempt, slot.attempt.parameters, 0
    bound, step = parameters.bound, BLOCK // parameters.dtype.itemsize
    for array in coordinates:
        flat = array.reshape(-1)
        if flat.dtype.kind not in "iu":
            raise refuse(attempt, f"coordinates of dtype {flat.dtype}", "integers")
        at += len(flat)
        if at > parameters.n_coordinates:
            n = parameters.n_coordinates
            raise refuse(attempt, f"more than {n} coordinates", f"{n}")
        for start in range(0, len(flat), step):
            part = flat[start : start + step]
            if part.max() > bound or part.min() < -bound:
                got = "a coordinate beyond the bound of this sum"
                raise refuse(attempt, got, f"{-bound} to {bound}: clip before")
            yield part


def _masks(slot: Slot) -> list[Mask]:
    attempt, me = slot.attempt, slot.place
    context, weights = attempt.context, slot.weights
    masks: list[Mask] = [(keys.own_mask_key(slot.seed, context, weights, me), 1)]
    agree = keys.agreement(slot.mask_secret)
    for place in slot.peers.keys() & slot.with_shares:
        shared = agree(slot.peers[place][KEY:])
        key = keys.pair_mask_key(shared, context, weights, (me, place))
        masks.append((key, 1 if me < place else -1))
    return masks


def sign(slot: Slot, message: Message, identity: keys.Identity) -> tuple[Slot, bytes]:
    """Step 4: sign U3, the parties whose vectors are in the sum, once checked."""
    _check_members(slot, message.members, "U3")
    _check_within(slot, message.members, slot.with_shares, "U3 within U2")
    slot = replace(slot, in_sum=message.members)
    signature = identity.sign("alive", *_signed_sum(slot))
    return slot, Message(Kind.ALIVE, slot.attempt.context, signature).encode()


def _signed_sum(slot: Slot) -> tuple[bytes, ...]:
    return slot.attempt.sum_context(slot.weights, slot.with_shares, slot.in_sum)


def reveal(slot: Slot, message: Message) -> tuple[Slot, bytes]:
    """Step 5: of each holder in U2 one share: the seed's within U3, else the secret's.

    message : signatures of neighbours, and of this party, on the U3 that it signed.
    """
    attempt, signed = slot.attempt, _signed_sum(slot)
    signers, holders = sorted(message.members), attempt.holders(slot.place)
    _check_within(slot, message.members, slot.in_sum & {*holders}, "neighbours in U3")
    _check_count(slot, message, len(signers))
    if len(signers) < attempt.threshold:
        got = f"{len(signers)} signatures on U3"
        raise refuse(attempt, got, f"{attempt.threshold} before shares are revealed")
    for place, signature in zip(signers, message.items, strict=True):
        member = attempt.roster[place]
        if not keys.is_signed(member.identity, signature, "alive", *signed):
            got = f"a signature of {member.name} on another sum than this party signed"
            raise refuse(attempt, got, "one U3 and the same weights at all parties")
    items = []
    for place in holders:
        if place in slot.with_shares:
            of_seed, of_secret = slot.shares[place][:SHARE], slot.shares[place][SHARE:]
            items.append(of_seed if place in slot.in_sum else of_secret)
    answer = Message(Kind.REVEAL, attempt.context, items=tuple(items))
    return slot.without_secrets(), answer.encode()


def _check_members(slot: Slot, members: frozenset[int], title: str) -> None:
    """This party is among them, they are of the roster, and there are enough."""
    attempt = slot.attempt
    least = attempt.parameters.min_sum
    if slot.place not in members:
        raise refuse(attempt, f"{title} without this party", f"{title} with it")
    if max(members) >= len(attempt.roster):
        raise refuse(attempt, f"{title} with strangers", "parties of the roster")
    if len(members) < least:
        got = f"{title} of {len(members)} parties"
        raise refuse(attempt, got, f"{least} (min_sum)")
    n_holders = len(members.intersection(attempt.holders(slot.place)))
    if n_holders < attempt.threshold:
        got = f"{title} with {n_holders} of this party's neighbourhood"
        raise refuse(attempt, got, f"{attempt.threshold} that can rebuild its secrets")


def _check_within(
    slot: Slot, members: frozenset[int], outer: frozenset[int], title: str
) -> None:
    if not members <= outer:
        names = ", ".join(slot.attempt.names(members - outer)[:3])
        raise refuse(slot.attempt, f"{names} beyond that", title)


def _check_count(slot: Slot, message: Message, n_needed: int) -> None:
    if len(message.items) != n_needed:
        got = f"{len(message.items)} items in a {message.kind.title}"
        raise refuse(slot.attempt, got, f"{n_needed}")
