"""The server's side of secure aggregation: requests out, answers in, step by step.

It sees masked vectors, boxes that it cannot open, and of each party shares of one
secret: enough for the sum of all vectors, and for nothing else.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np

from fedray.errors import SecureSumError, SecureSumFailed
from fedray.secure_sum import keys
from fedray.secure_sum.attempt import Attempt
from fedray.secure_sum.codec import (
    KEY,
    Kind,
    Message,
    Reader,
    decode,
    member_bytes,
    read_members,
)
from fedray.secure_sum.journal import Journal
from fedray.secure_sum.storage import Storage
from fedray.secure_sum.unmasking import SecureSum, Unmasking


class Step(IntEnum):
    """Steps of an attempt, each of them a question to the parties."""

    KEYS = 1
    SHARES = 2
    MASKED = 3
    ALIVE = 4
    REVEAL = 5
    DONE = 6


ANSWERS = {
    Step.KEYS: Kind.KEYS,
    Step.SHARES: Kind.SHARES,
    Step.ALIVE: Kind.ALIVE,
    Step.REVEAL: Kind.REVEAL,
}
Members = frozenset[int]
ATTEMPT, WEIGHTS, ANSWER, CLOSED, FAILED = b"A", b"W", b"M", b"C", b"F"


class ServerSide:
    """One attempt to sum the vectors of a round.

    A step: send what `requests` returns, pass what comes back to `accept` (masked
    vectors to `add`), then `close` it with those who have answered. What `close` has
    decided, and each revealed share that `accept` took, is on disk when they return;
    `restore` goes on from there. Once the step ALIVE is closed the attempt is opened:
    it has to be finished, and no other one of its round will be answered.

    Steps of the next round's attempt may ride on this one's, its KEYS on ALIVE and its
    SHARES on REVEAL (`bundle`, `route`): then a round is three trips.

    Made by `begin` and `restore`.

    Attributes
    ----------
    attempt : what is summed.
    step : the open one.
    failure : why the attempt cannot end; "" while it can.
    """

    def __init__(self, attempt: Attempt, storage: Storage):
        self.attempt, self._storage = attempt, storage
        self.step, self.failure = Step.KEYS, ""
        self._journal = Journal(storage, journal_name(attempt.round))
        self._places = attempt.places()
        everybody = frozenset(self._places.values())
        self._members: dict[Step, Members] = {Step.KEYS: everybody}
        self._answers: dict[Step, dict[int, Message]] = {s: {} for s in Step}
        self._weights = b""
        self._total: np.ndarray | None = None
        self._added: set[int] = set()

    @classmethod
    def begin(cls, attempt: Attempt, storage: Storage) -> "ServerSide":
        """Begin an attempt; it is on disk when this returns.

        storage : of the server in this run and group alone.

        Raises
        ------
        SecureSumError
            If the attempt's values do not fit together, or an earlier attempt of its
            round was opened or has no lower number.
        """
        attempt.check()
        earlier = cls.restore(storage, attempt.round)
        if earlier is not None and earlier.is_opened:
            got = f"another attempt, though {earlier.attempt} was opened"
            raise SecureSumError(
                str(attempt), got, "finish that one, or skip the round"
            )
        if earlier is not None and earlier.attempt.number >= attempt.number:
            got = f"this attempt after attempt {earlier.attempt.number}"
            raise SecureSumError(str(attempt), got, "a higher number, or `restore`")
        side = cls(attempt, storage)
        side._journal.start(ATTEMPT + attempt.encode())
        return side

    @classmethod
    def restore(cls, storage: Storage, round: int) -> "ServerSide | None":
        """The attempt of a round as it was left; None if none was begun.

        The same requests lead to the same answers, so what was lost is asked again.
        """
        records = Journal(storage, journal_name(round)).read()
        if not records:
            return None
        side = cls(Attempt.decode(records[0][1:]), storage)
        for record in records[1:]:
            side._replay(record[:1], record[1:])
        return side

    @property
    def is_opened(self) -> bool:
        """Whether parties may have revealed shares: no other attempt may follow."""
        return Step.REVEAL in self._members

    @property
    def weights(self) -> bytes:
        """Hash of the weights that the attempt is about; empty before `use_weights`."""
        return self._weights

    def use_weights(self, weights: bytes) -> None:
        """Say which weights the parties train from; before requests for vectors.

        weights : `fedray.weights.digest` of them, as they are sent.

        Raises
        ------
        SecureSumError
            If others were named before.
        """
        if self._weights == weights:
            return
        if self._weights:
            got = "other weights than this attempt began with"
            raise SecureSumError(str(self.attempt), got, "another attempt for these")
        self._journal.append(WEIGHTS + weights)
        self._weights = weights

    @property
    def waits_for(self) -> list[str]:
        """Names of those who have not answered in this step."""
        if self.failure or self.step == Step.DONE:
            return []
        return self.attempt.names(self._members[self.step] - self._answered())

    def requests(self) -> dict[str, bytes]:
        """What to send now, by name: to all who have not answered in this step.

        Raises
        ------
        SecureSumError
            In the step MASKED, before `use_weights`.
        """
        if self.step == Step.MASKED and not self._weights:
            got = "no hash of the weights"
            raise SecureSumError(str(self.attempt), got, "`use_weights` before")
        return {n: self._request(self._places[n]).encode() for n in self.waits_for}

    def accept(self, name: str, answer: bytes) -> None:
        """Take a party's answer to this step's request.

        Raises
        ------
        SecureSumError
            If it is a refusal, or not an answer that this party can give. It counts as
            absent then, unless it answers again.
        """
        message = decode(answer)
        place = self._place(name)
        if message.kind == Kind.REFUSED:
            reason = message.head.decode("utf-8", "replace")
            raise SecureSumError(f"party {name}", f"a refusal ({reason})", "an answer")
        wanted = ANSWERS.get(self.step)
        if message.kind != wanted or message.context != self.attempt.context:
            got = f"a message of kind {message.kind.title!r} or of another attempt"
            needed = f"an answer in the step {self.step.name.lower()} of {self.attempt}"
            raise SecureSumError(f"party {name}", got, needed)
        if place in self._answers[self.step]:
            return
        self._check_answer(name, place, message)
        if self.step == Step.REVEAL:
            self._journal.append(_answer_record(place, message))
        self._answers[self.step][place] = message

    def add(self, names: Sequence[str], vector: np.ndarray) -> None:
        """Add a masked vector, or the sum modulo the ring of several parties'.

        Raises
        ------
        SecureSumError
            If its type or length is wrong, or one of them has answered or is unknown.
        """
        places = [self._place(name) for name in names]
        parameters = self.attempt.parameters
        if self.step != Step.MASKED or self._added & {*places}:
            got = "a masked vector twice, or after the step was closed"
            raise SecureSumError(f"party {', '.join(names)}", got, "one in its step")
        form = (vector.dtype, vector.shape)
        needed = (parameters.dtype, (parameters.n_masked,))
        if form != needed:
            got, wanted = (
                f"a masked vector of {d}, shape {s}" for d, s in (form, needed)
            )
            raise SecureSumError(f"party {', '.join(names)}", got, wanted)
        if self._total is None:
            self._total = vector.copy()
        else:
            np.add(self._total, vector, out=self._total)
        self._added |= {*places}

    @property
    def has_enough(self) -> bool:
        """Whether `close` would succeed with those who have answered."""
        return not self.shortage

    def close(self) -> None:
        """End the step with those who have answered, and go on to the next.

        Raises
        ------
        SecureSumFailed
            If they are too few; the attempt is over then. Where `is_opened` is true
            the round is lost; else another attempt may begin.
        """
        shortage = self.shortage
        if shortage:
            self.fail(shortage)
            raise SecureSumFailed(str(self.attempt), shortage, "see min_sum")
        members = self._answered()
        if self.step == Step.MASKED and self._total is not None:
            self._storage.write(sum_name(self.attempt.round), [self._total.data])
        answers = self._answers[self.step] if self.step != Step.REVEAL else {}
        records = [_answer_record(place, m) for place, m in answers.items()]
        closed = CLOSED + member_bytes(members)
        self._journal.append(*records, closed)
        self._enter_next(members)

    def fail(self, reason: str) -> None:
        """Give the attempt up; on disk when this returns."""
        self._journal.append(FAILED + reason.encode("utf-8", "replace"))
        self.failure = reason

    def result(self) -> SecureSum:
        """The sum, after the last step.

        Raises
        ------
        SecureSumFailed
            If shares do not rebuild a secret, or the sum is wrong: the round is lost.
        SecureSumError
            Before the last step is closed.
        """
        if self.step != Step.DONE:
            got = f"no sum yet, in the step {self.step.name.lower()}"
            raise SecureSumError(str(self.attempt), got, "all steps closed")
        data = self._storage.view(sum_name(self.attempt.round))
        if data is None or len(data) != self.attempt.parameters.n_bytes:
            got = "no file of the masked sum"
            raise SecureSumFailed(str(self.attempt), got, "the file that was written")
        total = np.frombuffer(data, self.attempt.parameters.dtype).copy()
        try:
            return self._unmasking().open(total)
        except SecureSumFailed as error:
            self.fail(str(error))
            raise

    def forget(self) -> None:
        """Delete what is on disk of this round, once its sum is kept elsewhere."""
        self._storage.remove(
            journal_name(self.attempt.round), sum_name(self.attempt.round)
        )

    def _unmasking(self) -> Unmasking:
        keys_of = self._answers[Step.KEYS]
        return Unmasking(
            self.attempt,
            self._weights,
            {place: m.head[: 2 * KEY] for place, m in keys_of.items()},
            self._members[Step.MASKED],
            self._members[Step.ALIVE],
            {place: m.items for place, m in self._answers[Step.REVEAL].items()},
        )

    def _replay(self, kind: bytes, record: bytes) -> None:
        """Do what a record of the journal says was done."""
        reader = Reader(record, "a server's journal")
        if kind == WEIGHTS:
            self._weights = record
        elif kind == ANSWER:
            place = reader.number(4)
            self._answers[self.step][place] = decode(reader.rest())
        elif kind == CLOSED:
            self._enter_next(read_members(reader, "a server's journal"))
        else:
            self.failure = record.decode("utf-8", "replace")

    def _enter_next(self, members: Members) -> None:
        self.step = Step(self.step + 1)
        self._total = None
        if self.step != Step.DONE:
            self._members[self.step] = members

    def _answered(self) -> Members:
        answers = self._answers[self.step]
        return frozenset(self._added if self.step == Step.MASKED else answers)

    @property
    def shortage(self) -> str:
        """Why the step cannot be closed; "" if it can."""
        if self.failure:
            return self.failure
        members, attempt = self._answered(), self.attempt
        least, step = attempt.parameters.min_sum, self.step.name.lower()
        if self.step <= Step.MASKED and len(members) < least:
            return f"{len(members)} of {least} needed parties in the step {step}"
        to_rebuild = members if self.step <= Step.SHARES else self._members[Step.MASKED]
        for place in to_rebuild:
            n_holders = len(members.intersection(attempt.holders(place)))
            if n_holders < attempt.threshold:
                name = attempt.names([place])[0]
                return (
                    f"{n_holders} of {attempt.threshold} needed parties that can "
                    f"rebuild the secrets of {name} in the step {step}"
                )
        return ""

    def _place(self, name: str) -> int:
        place = self._places.get(name)
        members = self._members.get(self.step, frozenset())
        if place not in members or self.failure:
            got = f"an answer in the step {self.step.name.lower()} of {self.attempt}"
            needed = "one of a party that was asked in an open step"
            raise SecureSumError(f"party {name}", got, needed)
        return place

    def _request(self, place: int) -> Message:
        context, members = self.attempt.context, self._members[self.step]
        match self.step:
            case Step.KEYS:
                return Message(Kind.KEYS_REQUEST, context, self.attempt.encode())
            case Step.SHARES:
                items = [
                    self._answers[Step.KEYS][v].head for v in self._near(place, members)
                ]
                return Message(Kind.SHARES_REQUEST, context, b"", members, tuple(items))
            case Step.MASKED:
                boxes = [self._box(v, place) for v in self._near(place, members)]
                start = (Kind.MASKED_REQUEST, context, self._weights)
                return Message(*start, members, tuple(boxes))
            case Step.ALIVE:
                return Message(Kind.ALIVE_REQUEST, context, b"", members)
        signers = members.intersection(self.attempt.holders(place))
        items = [self._answers[Step.ALIVE][v].head for v in sorted(signers)]
        return Message(Kind.REVEAL_REQUEST, context, b"", signers, tuple(items))

    def _near(self, place: int, members: Members) -> list[int]:
        return [v for v in self.attempt.neighbours(place) if v in members]

    def _box(self, sender: int, recipient: int) -> bytes:
        recipients = self._near(sender, self._members[Step.SHARES])
        return self._answers[Step.SHARES][sender].items[recipients.index(recipient)]

    def _check_answer(self, name: str, place: int, message: Message) -> None:
        attempt, identity = self.attempt, self.attempt.roster[place].identity
        if self.step == Step.KEYS:
            public, signature = message.head[: 2 * KEY], message.head[2 * KEY :]
            about = (attempt.context, place, public)
            is_fine = keys.is_signed(identity, signature, "keys", *about)
            is_fine = is_fine and keys.is_usable(public[:KEY], public[KEY:])
            got, needed = "keys that it did not sign, or unusable", "its own keys"
        elif self.step == Step.ALIVE:
            sets = (self._members[Step.MASKED], self._members[Step.ALIVE])
            signs = attempt.sum_context(self._weights, *sets)
            is_fine = keys.is_signed(identity, message.head, "alive", *signs)
            got, needed = "a signature on another sum", "one on this sum and weights"
        else:
            is_share = self.step == Step.SHARES
            members = self._members[Step.SHARES if is_share else Step.MASKED]
            n_items = len(self._near(place, members)) + (0 if is_share else 1)
            is_fine = len(message.items) == n_items
            got, needed = f"{len(message.items)} shares", f"{n_items}"
        if not is_fine:
            raise SecureSumError(f"party {name}", got, needed)


def journal_name(round: int) -> str:
    """Name in storage of a round's journal."""
    return f"round-{round:05d}.journal"


def sum_name(round: int) -> str:
    """Name in storage of a round's masked sum."""
    return f"round-{round:05d}.sum"


def _answer_record(place: int, message: Message) -> bytes:
    return ANSWER + place.to_bytes(4, "big") + message.encode()


def bundle(*sides: ServerSide) -> dict[str, list[bytes]]:
    """Requests of several attempts that travel together, by party, in this order."""
    requests: dict[str, list[bytes]] = {}
    for side in sides:
        for name, request in side.requests().items():
            requests.setdefault(name, []).append(request)
    return requests


def route(name: str, answers: Sequence[bytes], *sides: ServerSide) -> list[str]:
    """Pass a party's answers each to its attempt; returns why some were not taken."""
    problems = []
    for answer in answers:
        try:
            context = decode(answer).context
            side = next((s for s in sides if s.attempt.context == context), None)
            if side is None:
                got, needed = "an answer of no open attempt", "one that was asked for"
                raise SecureSumError(f"party {name}", got, needed)
            side.accept(name, answer)
        except SecureSumError as error:
            problems.append(str(error))
    return problems
