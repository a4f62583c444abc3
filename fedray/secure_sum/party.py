"""A party's side of secure aggregation: it answers the server's requests, step by step.

Each answer is on disk before it leaves, and the same request gets the same answer, so
that a party may be killed and started again between any two steps.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from fedray.errors import SecureSumError
from fedray.secure_sum import keys, party_steps
from fedray.secure_sum.attempt import Attempt, default_min_sum
from fedray.secure_sum.codec import HASH, MAX_TEXT, Kind, Message, decode
from fedray.secure_sum.party_state import N_SLOTS, PartyState, Slot
from fedray.secure_sum.party_steps import refuse
from fedray.secure_sum.storage import Storage

STATE = "state.json"
MASKED = "masked.vector"  # the context of its attempt, then the vector
BEFORE = {  # a step's request -> the request that was answered before it
    Kind.SHARES_REQUEST: Kind.KEYS_REQUEST,
    Kind.MASKED_REQUEST: Kind.SHARES_REQUEST,
    Kind.ALIVE_REQUEST: Kind.MASKED_REQUEST,
    Kind.REVEAL_REQUEST: Kind.ALIVE_REQUEST,
}


class PartySide:
    """One party in one run and group.

    What it promises, whatever the server asks: no two vectors are ever masked by the
    same keys; for a round it reveals shares for one attempt at most, and for one set of
    parties, which it is in itself and which has at least `min_sum` members; of one
    party it reveals the share of one of its two secrets only.

    Parameters
    ----------
    name : as the roster has it.
    storage : of this party in this run and group alone. Without it (a lost disk) the
        party has another identity, which the others refuse.
    identity : None: the one in `storage`, made where there is none.
    min_sum : least number of parties in a sum; None: max(3, ceil(2 N / 3)) of a roster
        of N, and 2 of 2.
    check : called with each attempt before the party joins it; raises to refuse.

    Raises
    ------
    SecureSumError
        If what is in `storage` is damaged.
    """

    def __init__(
        self,
        name: str,
        storage: Storage,
        identity: keys.Identity | None = None,
        min_sum: int | None = None,
        check: Callable[[Attempt], None] | None = None,
    ):
        self.name, self._storage = name, storage
        self._min_sum, self._check = min_sum, check
        with storage.lock():
            self._identity = identity or self._load_identity()
            self._read()

    @property
    def public_key(self) -> bytes:
        """The identity's public key, for the roster: 32 bytes."""
        return self._identity.public

    @property
    def opened_round(self) -> int:
        """The last round for which shares were revealed; -1: none."""
        return self._read().opened_round

    def attempt_of(self, request: bytes) -> Attempt:
        """The attempt that a request is about, which the party has joined."""
        return self._slot(self._read(), decode(request)).attempt

    def answer(self, request: bytes) -> bytes:
        """Answer one request of any step but the masked vector's.

        Raises
        ------
        SecureSumError
            If the request is malformed, out of order, forged, or against the rules.
        """
        with self._storage.lock():
            before = self._read()
            state, answer = self._handle(before, request)
            self._write(before, state)
        return answer

    def answer_all(self, requests: Sequence[bytes]) -> list[bytes]:
        """Answers to requests that came together; a refusal is an answer too.

        The disk is written once for all of them.
        """
        answers = []
        with self._storage.lock():
            before = state = self._read()
            for request in requests:
                try:
                    state, answer = self._handle(state, request)
                except SecureSumError as error:
                    answer = refusal(request, error)
                answers.append(answer)
            self._write(before, state)
        return answers

    def masked(self, request: bytes) -> np.ndarray | None:
        """Check a request for a masked vector; the vector if it was made before.

        To be called before training, which it may spare: after a restart of either
        side the same bytes are sent again.

        Raises
        ------
        SecureSumError
            As `answer`; also if the vector was made and is lost.
        """
        return self._masked(self._read(), request)

    def _masked(self, state: PartyState, request: bytes) -> np.ndarray | None:
        message = decode(request)
        slot = self._slot(state, message)
        if self._earlier_answer(slot, message, request) is None:
            party_steps.check_sharers(slot, message)
            return None
        return self._vector(slot.attempt)

    def _vector(self, attempt: Attempt) -> np.ndarray:
        """The masked vector on disk, not in memory."""
        data, parameters = self._storage.view(MASKED), attempt.parameters
        n_bytes = HASH + parameters.n_bytes
        if data is None or len(data) != n_bytes or data[:HASH] != attempt.context:
            got = "a request for a masked vector whose file is lost"
            needed = "another attempt: no second vector may get the same masks"
            raise refuse(attempt, got, needed)
        return np.frombuffer(data, parameters.dtype, offset=HASH)

    def mask(
        self,
        request: bytes,
        weights: bytes,
        coordinates: Iterable[np.ndarray],
        weight: int = 1,
    ) -> np.ndarray:
        """Mask this party's vector; on disk when this returns, ready to be sent.

        It goes there block by block; what is returned is the file, mapped into memory.

        Parameters
        ----------
        request : of kind MASKED_REQUEST.
        weights : `fedray.weights.digest` of the weights as they were received.
        coordinates : the vector's whole numbers, in one or more arrays.
        weight : by which the vector is multiplied, 1 to `max_weight`.

        Raises
        ------
        SecureSumError
            As `masked`; if a coordinate is beyond the bound, or their number is wrong;
            if the server says that it sent other weights.
        """
        with self._storage.lock():
            state = self._read()
            earlier = self._masked(state, request)
            if earlier is not None:
                return earlier
            message = decode(request)
            slot = self._slot(state, message)
            slot = party_steps.open_boxes(slot, message, weights)
            blocks = party_steps.mask(slot, coordinates, weight)
            self._storage.write(MASKED, _file_of(message.context, blocks))
            slot = _noted(slot, message, request, b"")
            self._write(state, _after_masking(state, slot))
            return self._vector(slot.attempt)

    def _handle(self, state: PartyState, request: bytes) -> tuple[PartyState, bytes]:
        """The state after a request, and its answer; nothing is on disk yet."""
        message = decode(request)
        if message.kind == Kind.KEYS_REQUEST:
            return self._join(state, message, request)
        slot = self._slot(state, message)
        if message.kind == Kind.MASKED_REQUEST:
            got, needed = "a request for a masked vector", "`mask` to answer it"
            raise refuse(slot.attempt, got, needed)
        earlier = self._earlier_answer(slot, message, request)
        if earlier is not None:
            return state, earlier
        match message.kind:
            case Kind.SHARES_REQUEST:
                slot, answer = party_steps.share(slot, message)
            case Kind.ALIVE_REQUEST:
                slot, answer = party_steps.sign(slot, message, self._identity)
            case Kind.REVEAL_REQUEST:
                slot, answer = party_steps.reveal(slot, message)
                state = replace(state, opened_round=slot.attempt.round)
            case _:
                got = f"a {message.kind.title}"
                raise refuse(slot.attempt, got, "a request that `answer` answers")
        return state.with_slot(_noted(slot, message, request, answer)), answer

    def _slot(self, state: PartyState, message: Message) -> Slot:
        slot = state.slot_of(message.context)
        if slot is None:
            got = f"a {message.kind.title} of an attempt that it has not joined"
            needed = "one of an open attempt: begin another, with a higher number"
            raise SecureSumError(f"party {self.name}", got, needed)
        return slot

    def _earlier_answer(
        self, slot: Slot, message: Message, request: bytes
    ) -> bytes | None:
        """What the same request was answered before; None: it is the first."""
        title = message.kind.title
        if message.kind.name in slot.answers:
            question, answer = slot.answers[message.kind.name]
            if question != hashlib.sha256(request).digest():
                got = f"a second {title}, unlike the first"
                needed = "the same one: another attempt, if this cannot go on"
                raise refuse(slot.attempt, got, needed)
            return answer
        before = BEFORE.get(message.kind)
        if before is None or before.name not in slot.answers:
            needed = f"a {before.title if before else 'request'} before"
            raise refuse(slot.attempt, f"a {title} out of order", needed)
        return None

    def _join(
        self, state: PartyState, message: Message, request: bytes
    ) -> tuple[PartyState, bytes]:
        attempt = Attempt.decode(message.head)
        if attempt.context != message.context:
            raise refuse(attempt, "another context", "the hash of the attempt")
        slot = state.slot_of(attempt.context)
        if slot is not None:
            return state, slot.answers[Kind.KEYS_REQUEST.name][1]
        self._check_run(state, attempt)
        self._check_roster(state, attempt)
        self._check_size(state, attempt)
        _check_round(state, attempt)
        if self._check is not None:
            self._check(attempt)
        place = attempt.places()[self.name]
        slot, answer = party_steps.join(attempt, place, self._identity)
        pins = {**state.pins, **{m.name: m.identity.hex() for m in attempt.roster}}
        state = replace(state, run=attempt.run, group=attempt.group, pins=pins)
        return state.with_slot(_noted(slot, message, request, answer)), answer

    def _check_run(self, state: PartyState, attempt: Attempt) -> None:
        of_state = (state.run, state.group)
        if state.pins and of_state != (attempt.run, attempt.group):
            got = f"an attempt of run {attempt.run!r}, group {attempt.group!r}"
            needed = f"run {state.run!r}, group {state.group!r}, as before"
            raise SecureSumError(f"party {self.name}", got, needed)

    def _check_roster(self, state: PartyState, attempt: Attempt) -> None:
        for member in attempt.roster:
            if (
                state.pins.get(member.name, member.identity.hex())
                != member.identity.hex()
            ):
                got = f"a roster with another identity of {member.name} than before"
                needed = "the one that was first seen: has that party lost its storage?"
                raise refuse(attempt, got, needed)
        place = attempt.places().get(self.name)
        if place is None or attempt.roster[place].identity != self.public_key:
            got = f"a roster without {self.name} under its own identity"
            raise refuse(attempt, got, self.public_key.hex())

    def _check_size(self, state: PartyState, attempt: Attempt) -> None:
        """The sum has enough parties; 2 only where there never were more."""
        n = len(attempt.roster)
        wanted = default_min_sum(n) if self._min_sum is None else self._min_sum
        if max(n, len(state.pins)) > 2:
            wanted = max(3, wanted)
        if attempt.parameters.min_sum < wanted:
            got = f"sums of {attempt.parameters.min_sum} of {n} parties"
            raise refuse(attempt, got, f"{wanted} or more (min_sum)")

    def _load_identity(self) -> keys.Identity:
        """The identity in storage; a lost state loses it, since others pinned it."""
        is_new = self._storage.read(keys.IDENTITY) is None
        if is_new:
            self._write(None, PartyState())
        elif self._storage.read(STATE) is None:
            got = f"{keys.IDENTITY} without {STATE}, which says what it has opened"
            needed = f"both: restore it, or delete {keys.IDENTITY} to join as another"
            raise SecureSumError(f"party {self.name}", got, needed)
        return keys.load_identity(self._storage)

    def _read(self) -> PartyState:
        return PartyState.decode(self._storage.read(STATE))

    def _write(self, before: PartyState | None, state: PartyState) -> None:
        """Put a state on disk, if it is another one, before anything leaves."""
        if state is not before:
            self._storage.write(STATE, [state.encode()])


def _file_of(
    context: bytes, blocks: Iterable[np.ndarray]
) -> Iterator[bytes | memoryview]:
    yield context
    for block in blocks:
        yield block.data


def _check_round(state: PartyState, attempt: Attempt) -> None:
    """The round was not opened or passed, nor a later attempt of it joined."""
    if attempt.round <= state.opened_round:
        got = f"another attempt, though round {state.opened_round} was opened"
        raise refuse(attempt, got, "a later round: skip one that was lost")
    oldest = state.slots[0].attempt.round if len(state.slots) == N_SLOTS else -1
    if attempt.round < max(state.masked_round, oldest):
        got = f"an attempt after one of round {max(state.masked_round, oldest)}"
        raise refuse(attempt, got, "that round or a later one")
    for slot in state.slots:
        of_round = slot.attempt
        if of_round.round == attempt.round and of_round.number >= attempt.number:
            got = f"this attempt after attempt {of_round.number}, which differs"
            raise refuse(attempt, got, "a higher number")


def _noted(slot: Slot, message: Message, request: bytes, answer: bytes) -> Slot:
    """The slot with an answer, and the hash of what was asked."""
    entry = (hashlib.sha256(request).digest(), answer)
    return replace(slot, answers={**slot.answers, message.kind.name: entry})


def _after_masking(state: PartyState, slot: Slot) -> PartyState:
    """The state when a round's vector is masked: keys of rounds before it are gone."""
    round = slot.attempt.round
    state = replace(state.with_slot(slot), masked_round=round)
    return replace(
        state, slots=tuple(s for s in state.slots if s.attempt.round >= round)
    )


def refusal(request: bytes, error: SecureSumError) -> bytes:
    """The answer of a party that refuses: why, for the server's record."""
    reason = str(error).encode("utf-8", "replace")[:MAX_TEXT]
    context = bytes(request[1 : 1 + HASH]).ljust(HASH, b"\0")
    return Message(Kind.REFUSED, context, reason).encode()
