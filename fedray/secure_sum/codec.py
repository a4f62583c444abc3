"""Byte codec of the protocol: bounded reading, sets of parties as bits, messages.

Every message is bytes: kind, context of its attempt, then what the kind's layout says.
There is one encoding of each value, so that digests and signatures mean one thing.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from fedray.errors import SecureSumError

HASH = 32  # bytes of SHA-256
KEY = 32  # bytes of a key of X25519, Ed25519, ChaCha20
SIGNATURE = 64
SHARE = 66  # bytes of a number below 2^521 - 1
BOX = 2 * SHARE + 16  # two shares and the tag of Poly1305
MAX_TEXT = 1000  # bytes of a name or a reason
MAX_PARTIES = 10_000


class Kind(IntEnum):
    """Kinds of messages, in the order of the steps; requests come from the server."""

    KEYS_REQUEST = 1
    KEYS = 2
    SHARES_REQUEST = 3
    SHARES = 4
    MASKED_REQUEST = 5  # the answer is the masked vector, an array
    ALIVE_REQUEST = 6
    ALIVE = 7
    REVEAL_REQUEST = 8
    REVEAL = 9
    REFUSED = 10

    @property
    def title(self) -> str:
        """As errors name it: shares request."""
        return self.name.lower().replace("_", " ")


class Layout(NamedTuple):
    """Sizes in bytes of a kind's parts; head -1: all that is there, nothing else."""

    head: int = 0
    has_members: bool = False
    item: int = 0


LAYOUTS = {
    Kind.KEYS_REQUEST: Layout(head=-1),  # the attempt
    Kind.KEYS: Layout(head=2 * KEY + SIGNATURE),
    Kind.SHARES_REQUEST: Layout(has_members=True, item=2 * KEY + SIGNATURE),
    Kind.SHARES: Layout(item=BOX),
    Kind.MASKED_REQUEST: Layout(head=HASH, has_members=True, item=BOX),
    Kind.ALIVE_REQUEST: Layout(has_members=True),
    Kind.ALIVE: Layout(head=SIGNATURE),
    Kind.REVEAL_REQUEST: Layout(has_members=True, item=SIGNATURE),
    Kind.REVEAL: Layout(item=SHARE),
    Kind.REFUSED: Layout(head=-1),  # the reason
}


class Reader:
    """Takes values off the front of a byte string; what is missing is an error."""

    def __init__(self, data: bytes, what: str):
        self._data, self._at, self._what = data, 0, what

    def take(self, n_bytes: int) -> bytes:
        """The next n bytes."""
        part = self._data[self._at : self._at + n_bytes]
        if len(part) < n_bytes:
            got = f"{len(self._data)} bytes, which end within a value"
            raise SecureSumError(self._what, got, "a whole message")
        self._at += n_bytes
        return part

    def number(self, n_bytes: int) -> int:
        """The next unsigned number, most significant byte first."""
        return int.from_bytes(self.take(n_bytes), "big")

    def text(self) -> str:
        """The next text: two bytes of length, then UTF-8."""
        n_bytes = self.number(2)
        if n_bytes > MAX_TEXT:
            got = f"a text of {n_bytes} bytes"
            raise SecureSumError(self._what, got, f"at most {MAX_TEXT}")
        try:
            return self.take(n_bytes).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise SecureSumError(self._what, "bytes", "a text in UTF-8") from None

    def rest(self) -> bytes:
        """Everything behind what was taken."""
        return self.take(len(self._data) - self._at)

    def end(self) -> None:
        """Require that nothing is left."""
        if self._at < len(self._data):
            got = f"{len(self._data) - self._at} bytes too many"
            raise SecureSumError(self._what, got, "a message of one form")


def text_bytes(text: str) -> bytes:
    """A text with its length, as `Reader.text` reads it."""
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > MAX_TEXT:
        got = f"a text of {len(data)} bytes: {text[:40]!r}..."
        raise SecureSumError("a name", got, f"at most {MAX_TEXT} bytes")
    return len(data).to_bytes(2, "big") + data


def member_bytes(members: Iterable[int]) -> bytes:
    """A set of places in the roster as bits, with its length; the shortest form."""
    bits = 0
    for place in members:
        bits |= 1 << place
    data = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
    return len(data).to_bytes(2, "big") + data


def read_members(reader: Reader, what: str) -> frozenset[int]:
    """A set of places, as `member_bytes` writes it."""
    data = reader.take(reader.number(2))
    if len(data) > MAX_PARTIES // 8 or (data and data[-1] == 0):
        raise SecureSumError(what, "a set of parties in another form", "the shortest")
    bits = int.from_bytes(data, "little")
    return frozenset(i for i in range(bits.bit_length()) if bits >> i & 1)


@dataclass(frozen=True)
class Message:
    """One message, decoded.

    context : of its attempt, 32 bytes.
    members : places in the roster, of kinds that have them.
    items : byte strings of the kind's item size, in the order of places.
    """

    kind: Kind
    context: bytes
    head: bytes = field(default=b"", repr=False)
    members: frozenset[int] = frozenset()
    items: tuple[bytes, ...] = field(default=(), repr=False)

    def encode(self) -> bytes:
        """As it travels."""
        layout = LAYOUTS[self.kind]
        members = member_bytes(self.members) if layout.has_members else b""
        start = bytes([self.kind]) + self.context
        return b"".join([start, self.head, members, *self.items])


def decode(data: bytes) -> Message:
    """Read a message of any kind.

    Raises
    ------
    SecureSumError
        If it is none: an unknown kind, too short, too long, another form.
    """
    data = bytes(data)
    reader = Reader(data, "a message")
    number = reader.number(1)
    if number not in LAYOUTS:
        needed = f"1 to {len(LAYOUTS)}; do both run the same version of fedray?"
        raise SecureSumError("a message", f"kind {number}", needed)
    kind = Kind(number)
    reader = Reader(data[1:], f"a message of kind {kind.title!r}")
    context, layout = reader.take(HASH), LAYOUTS[kind]
    if layout.head < 0:
        return Message(kind, context, reader.rest())
    head = reader.take(layout.head)
    what = f"a message of kind {kind.title!r}"
    members = read_members(reader, what) if layout.has_members else frozenset()
    rest = reader.rest()
    n_items = len(rest) // layout.item if layout.item else 0
    if n_items * layout.item != len(rest):
        got = f"{len(rest)} bytes of items"
        raise SecureSumError(what, got, f"a multiple of {layout.item}")
    size = layout.item
    items = tuple(rest[i * size : (i + 1) * size] for i in range(n_items))
    return Message(kind, context, head, members, items)
