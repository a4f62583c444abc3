"""What a party must not forget: keys and shares of open attempts, what it opened.

A value, never changed in place, that is written to disk as JSON. Secrets are left out
of every repr.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedray.errors import SecureSumError
from fedray.secure_sum.attempt import Attempt

N_SLOTS = 2  # a round, and the next one's keys and shares, which ride on its steps


@dataclass(frozen=True)
class Slot:
    """One attempt at a party.

    place : this party's, in the roster.
    answers : what was answered in each step, and the hash of what was asked: by the
        name of the answer's kind. The same question gets the same answer, another
        question of the same step none.
    box_secret, mask_secret, seed : private keys of X25519 and the own mask's seed;
        empty once the attempt is opened.
    peers : public keys of neighbours, 64 bytes each, by place.
    shares : of the own secrets and of neighbours', by place: a seed's and a mask
        secret's, 66 bytes each, one behind the other.
    with_keys, with_shares, in_sum : places in U1, U2, U3.
    weights : hash of the weights that were trained from.
    """

    attempt: Attempt
    place: int
    answers: Mapping[str, tuple[bytes, bytes]] = field(default_factory=dict, repr=False)
    box_secret: bytes = field(default=b"", repr=False)
    mask_secret: bytes = field(default=b"", repr=False)
    seed: bytes = field(default=b"", repr=False)
    peers: Mapping[int, bytes] = field(default_factory=dict, repr=False)
    shares: Mapping[int, bytes] = field(default_factory=dict, repr=False)
    with_keys: frozenset[int] = frozenset()
    with_shares: frozenset[int] = frozenset()
    in_sum: frozenset[int] = frozenset()
    weights: bytes = b""

    def without_secrets(self) -> "Slot":
        """The slot of an opened attempt: what it answered last stays, no key does."""
        bare = replace(self, box_secret=b"", mask_secret=b"", seed=b"")
        return replace(bare, peers={}, shares={})


@dataclass(frozen=True)
class PartyState:
    """Everything that a party keeps of secure aggregation in one run and group.

    pins : identities of parties by name, as they were first seen.
    opened_round : the last round for which this party revealed shares; -1: none.
    masked_round : the last round for which it masked a vector: rounds only go forward.
    slots : open attempts, at most one a round, in the order of rounds.
    """

    run: str = ""
    group: str = ""
    pins: Mapping[str, str] = field(default_factory=dict)
    opened_round: int = -1
    masked_round: int = -1
    slots: tuple[Slot, ...] = ()

    def slot_of(self, context: bytes) -> Slot | None:
        """The attempt of this context; None if it is not open here."""
        return next((s for s in self.slots if s.attempt.context == context), None)

    def with_slot(self, slot: Slot) -> "PartyState":
        """The state with this attempt in place of another one of its round.

        What that one's keys and shares were is gone once the state is on disk.
        """
        others = [s for s in self.slots if s.attempt.round != slot.attempt.round]
        slots = sorted([*others, slot], key=lambda s: s.attempt.round)
        return replace(self, slots=tuple(slots[-N_SLOTS:]))

    def encode(self) -> bytes:
        """As it lies on disk."""
        slots = [_plain(slot) for slot in self.slots]
        return json.dumps({**vars(self), "slots": slots}).encode()

    @classmethod
    def decode(cls, data: bytes | None) -> "PartyState":
        """What `encode` wrote; the first state where there is none.

        Raises
        ------
        SecureSumError
            If the file is damaged. What it holds is not shown.
        """
        if data is None:
            return cls()
        try:
            plain = json.loads(data)
            plain["slots"] = tuple(_slot(slot) for slot in plain["slots"])
            return cls(**plain)
        except (ValueError, TypeError, KeyError, AttributeError):
            needed = "what this party wrote: restore it, or join as a new identity"
            got = "a damaged state file"
            raise SecureSumError("a party's storage", got, needed) from None


BYTES = ("box_secret", "mask_secret", "seed", "weights")
SETS = ("with_keys", "with_shares", "in_sum")
BY_PLACE = ("peers", "shares")


def _plain(slot: Slot) -> dict[str, Any]:
    plain: dict[str, Any] = {"attempt": slot.attempt.encode().hex()}
    plain["place"] = slot.place
    plain["answers"] = {k: [p.hex() for p in v] for k, v in slot.answers.items()}
    for name in BYTES:
        plain[name] = getattr(slot, name).hex()
    for name in SETS:
        plain[name] = sorted(getattr(slot, name))
    for name in BY_PLACE:
        plain[name] = {str(k): v.hex() for k, v in getattr(slot, name).items()}
    return plain


def _slot(plain: dict[str, Any]) -> Slot:
    values: dict[str, Any] = {name: bytes.fromhex(plain[name]) for name in BYTES}
    values |= {name: frozenset(plain[name]) for name in SETS}
    for name in BY_PLACE:
        values[name] = {int(k): bytes.fromhex(v) for k, v in plain[name].items()}
    answers = {
        kind: (bytes.fromhex(question), bytes.fromhex(answer))
        for kind, (question, answer) in plain["answers"].items()
    }
    attempt = Attempt.decode(bytes.fromhex(plain["attempt"]))
    return Slot(attempt, int(plain["place"]), answers, **values)
