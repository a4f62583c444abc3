"""Limits on HTTP connections: their number, and how long each may stand still.

uvicorn itself bounds what a connection holds in memory: it reads 64 KiB ahead of the
application and no further, and the application's ``await send`` waits while a client
does not read. `LimitedProtocol` adds, in the terms of `Settings`:

- headers of bounded size, within `header_timeout_s`;
- a client that reads nothing of its answer for `answer_timeout_s` is cut off;
- calls on at most `max_connections` at a time, `max_connections_per_address` from one
  address; beyond that only calls of `EXTRA_PLACES` are answered, others with 429. A
  connection without a call gives way to a new one, the longest idle first;
- a body in tiny chunks is parsed a few at a time, between other connections' calls;
- errors of HTTP itself are JSON, as all others.

The service's own server uses it. So do Serve's proxies on a cluster that was started
with `VARIABLE` in its environment: they call `guard`.
"""

import contextlib
import functools
import ipaddress
import socket
import sys
from asyncio import AbstractEventLoop, TimerHandle, Transport
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import h11
from uvicorn.protocols.http import auto as uvicorn_auto
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedray.errors import CallRefused, LimitReached
from fedray.service.auth import ASGIApp, Message, Receive, Send
from fedray.service.responses import error_response
from fedray.service.settings import Settings

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
EXTRA_PLACES = {"/health": 32, "/stop": 24, "/stop-party": 24}  # beyond a limit
N_EXTRA = max(EXTRA_PLACES.values())
MAX_HEADER_BYTES = 64 << 10  # of request line and headers, at least
MAX_UNSENT = 128 << 10  # bytes in the kernel that the client has no room for yet
MAX_PIECES = 64  # chunks of a body that are parsed at once
IDLE_S = 90  # between two calls on a connection, as Serve's proxies have it
LINGER_S = 30.0  # for the rest of a body that nobody reads, after the answer
MAX_DISCARDED = 1 << 20  # bytes after the answer to what is no HTTP
SILENCE_S = 60  # after which the kernel asks whether the client is still there
NO_CALL = {"method": "a", "path": "connection"}  # as a limit's line in the log has it
CHECK_S = 1.0  # between looks at all connections


class Phase(Enum):
    """What a connection waits for."""

    CALL = auto()  # the application
    ANSWER = auto()  # the client, to read the last of its answer
    HEADERS = auto()  # the client, to begin a call
    REST = auto()  # the client, to end a body that was answered early
    IDLE = auto()  # nothing


IDLE_PHASES = (Phase.HEADERS, Phase.REST, Phase.IDLE)


@dataclass(eq=False)
class Peers:
    """Open connections under one limit: those of one address, or all."""

    limit: int  # with a call under way
    name: str  # of the setting
    open: set["LimitedProtocol"] = field(default_factory=set)
    idle: OrderedDict["LimitedProtocol", None] = field(default_factory=OrderedDict)

    def make_room(self) -> bool:
        """Whether one more may open; the longest idle one gives way to it."""
        if len(self.open) < self.limit + N_EXTRA:
            return True
        if not self.idle:
            return False
        next(iter(self.idle)).give_way()
        return True

    def refusal(self, path: str) -> LimitReached | None:
        """Why a call that has begun gets no place; None if it has one."""
        n_busy = len(self.open) - len(self.idle)
        if n_busy <= self.limit + EXTRA_PLACES.get(path, 0):
            return None
        return _too_many(self)


class Connections:
    """All connections of one process: counted, and looked at once a second."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.all = Peers(settings.max_connections, "max_connections")
        self.by_address: dict[str, Peers] = {}
        self.unparsed: deque[LimitedProtocol] = deque()  # bodies wait for their turn
        self.timer: TimerHandle | None = None
        waits = (settings.header_timeout_s, settings.answer_timeout_s)
        self.check_s = min(CHECK_S, min(waits) / 4)
        self.max_header_bytes = max(MAX_HEADER_BYTES, 2 * settings.max_headers)

    def peers_of(self, connection: "LimitedProtocol") -> tuple[Peers, Peers]:
        """Those that count with a connection: of its address, and all."""
        address = _network(connection.client)
        if address not in self.by_address:
            limit = self.settings.max_connections_per_address
            self.by_address[address] = Peers(limit, "max_connections_per_address")
        return self.by_address[address], self.all

    def add(self, connection: "LimitedProtocol") -> None:
        """Count a new connection.

        Raises
        ------
        CallRefused
            If there are too many, and all of them have a call under way.
        """
        connection.peers = self.peers_of(connection)
        for peers in connection.peers:
            if not peers.make_room():
                raise _too_many(peers)
        for peers in connection.peers:
            peers.open.add(connection)
        if self.timer is None:
            self._check_later(connection.loop)

    def remove(self, connection: "LimitedProtocol") -> None:
        """A connection ends."""
        for peers in connection.peers:
            peers.open.discard(connection)
            peers.idle.pop(connection, None)
        address = _network(connection.client)
        own = self.by_address.get(address)
        if own is not None and not own.open:
            del self.by_address[address]

    def parse_later(self, connection: "LimitedProtocol") -> None:
        """Parse more of its body when the others of this kind had their turn."""
        self.unparsed.append(connection)
        if len(self.unparsed) == 1:
            connection.loop.call_soon(self._parse_next, connection.loop)

    def _parse_next(self, loop: AbstractEventLoop) -> None:
        self.unparsed[0].parse_more()
        self.unparsed.popleft()
        if self.unparsed:
            loop.call_soon(self._parse_next, loop)

    def _check_later(self, loop: AbstractEventLoop) -> None:
        self.timer = loop.call_later(self.check_s, self._check, loop)

    def _check(self, loop: AbstractEventLoop) -> None:
        self.timer = None
        for connection in list(self.all.open):
            connection.check_time(loop.time())
        if self.all.open:
            self._check_later(loop)


class LimitedProtocol(H11Protocol):
    """One connection.

    Parameters
    ----------
    table : where it is counted. The others are uvicorn's.
    """

    conn: "PacedParser"
    flow: "HeldFlow"

    def __init__(self, table: Connections, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.conn = PacedParser(h11.SERVER, table.max_header_bytes)
        self.table, self.peers = table, ()
        self.phase, self.since = Phase.IDLE, 0.0
        self.n_unsent, self.has_drained = 0, False
        self.n_discarded, self.has_ended = 0, False
        self.app = functools.partial(_serve, self, self.app)

    peers: tuple[Peers, ...]

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Count the connection, and give it a place if there is one."""
        super().connection_made(transport)
        self.flow = HeldFlow(transport)
        _set_options(transport)
        try:
            self.table.add(self)
        except CallRefused as error:
            self.answer(error)
        self._update(self.loop.time())

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, and see what it makes the connection wait for."""
        if not self.has_ended:
            super().data_received(data)
        else:
            self.n_discarded += len(data)
            if self.n_discarded > MAX_DISCARDED:
                self.transport.abort()
        self._update(self.loop.time())

    def handle_events(self) -> None:
        """Handle what was parsed; of a body no more than a few pieces at once."""
        if self.flow.is_held:
            return
        self.conn.n_pieces = 0
        super().handle_events()
        if self.conn.n_pieces >= MAX_PIECES:
            self.flow.hold()
            self.table.parse_later(self)

    def parse_more(self) -> None:
        """Go on where `handle_events` stopped."""
        self.flow.release()
        if not self.has_ended and not self.transport.is_closing():
            self.handle_events()
            self._update(self.loop.time())

    def on_response_complete(self) -> None:
        """An answer was handed over."""
        super().on_response_complete()
        self._update(self.loop.time())

    def shutdown(self) -> None:
        """The server ends: close unless an answer is under way."""
        if self.has_ended:
            self.transport.close()
        else:
            super().shutdown()

    def resume_writing(self) -> None:
        """The client has read."""
        self.has_drained = True
        super().resume_writing()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection over to another protocol, which is not limited here."""
        self.table.remove(self)
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.table.remove(self)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what h11 does not understand, in the service's format."""
        error = sys.exception()
        status = getattr(error, "error_status_hint", 400)
        detail = f"This is not HTTP as it is understood here: {error or msg}."
        hint = "Send requests as HTTP clients and browsers do."
        if status == 431:
            detail = "The headers are too large."
            hint = f"At most {self.table.settings.max_headers} bytes are read."
        self.answer(CallRefused(status, detail, hint))

    def answer(self, error: CallRefused) -> None:
        """Answer for the application, which hears that the client is gone; then end.

        What the client still sends is thrown away for a while: closed at once, the
        connection would be reset, and the answer lost.
        """
        if self._is_serving:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = error_response(error, NO_CALL)
            headers = [*response.raw_headers, (b"connection", b"close")]
            head = h11.Response(status_code=response.status_code, headers=headers)
            for event in (
                head,
                h11.Data(data=bytes(response.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.has_ended = True
        if self in self.table.all.open and self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def give_way(self) -> None:
        """Close a connection that has no call under way."""
        self.table.remove(self)
        if self.transport.get_extra_info("ssl_object") is None:
            self.transport.close()
        else:  # nobody counts it while it would wait for the client's end of TLS
            self.transport.abort()

    def check_time(self, now: float) -> None:
        """Close the connection if it has waited for its client too long."""
        self._update(now)
        settings = self.table.settings
        if self.phase in IDLE_PHASES:
            waits = {Phase.HEADERS: settings.header_timeout_s, Phase.REST: LINGER_S}
            if now - self.since > waits.get(self.phase, self.timeout_keep_alive):
                self._end_waiting()
            return
        n_unsent = self._count_unsent()
        if n_unsent == 0 or n_unsent != self.n_unsent or self.has_drained:
            self.since = now
        self.n_unsent, self.has_drained = n_unsent, False
        if now - self.since > settings.answer_timeout_s:
            self.transport.abort()

    def _end_waiting(self) -> None:
        if self.phase is Phase.HEADERS and self.conn.trailing_data[0]:
            wait_s = f"{self.table.settings.header_timeout_s:g} s"
            detail = f"The headers were not complete within {wait_s}."
            self.answer(CallRefused(408, detail, "Send them again, at once."))
        else:
            self.transport.close()

    def _count_unsent(self) -> int:
        """Bytes of answers that the kernel has not taken."""
        try:
            return self.transport.get_write_buffer_size()
        except AttributeError:  # asyncio's TLS, closed by both of us and the client
            return 0

    @property
    def _is_serving(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _update(self, now: float) -> None:
        """Note what the connection waits for, and since when."""
        phase = self._current_phase()
        if phase is self.phase:
            return
        self.phase, self.since = phase, now
        for peers in self.peers:
            if phase in IDLE_PHASES and self in peers.open:
                peers.idle.setdefault(self)
            else:
                peers.idle.pop(self, None)

    def _current_phase(self) -> Phase:
        if self._is_serving:
            return Phase.CALL
        is_answered = self.cycle is not None or self.has_ended
        if is_answered and self._count_unsent():  # else it is TLS's own
            return Phase.ANSWER
        if self.has_ended or self.conn.their_state is h11.SEND_BODY:
            return Phase.REST
        has_begun = self.cycle is None or self.phase is Phase.HEADERS
        if has_begun or self.conn.trailing_data[0]:
            return Phase.HEADERS
        return Phase.IDLE


class PacedParser(h11.Connection):
    """Stops after `MAX_PIECES` of a body, until `n_pieces` is set back.

    A byte a chunk, a megabyte would else hold up all other connections for seconds.
    """

    n_pieces = 0

    def next_event(self) -> Any:
        """The next event; NEED_DATA also where it stops."""
        if self.n_pieces >= MAX_PIECES:
            return h11.NEED_DATA
        event = super().next_event()
        self.n_pieces += isinstance(event, h11.Data)
        return event


class HeldFlow(FlowControl):
    """Reads nothing while it is held, whatever uvicorn asks for meanwhile."""

    is_held = False

    def hold(self) -> None:
        """Stop reading until `release`."""
        self.is_held = True
        self._transport.pause_reading()

    def release(self) -> None:
        """Go on as uvicorn wants it."""
        self.is_held = False
        if not self.read_paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def pause_reading(self) -> None:
        """Read nothing until the application takes what was read."""
        if self.is_held:
            self.read_paused = True
        else:
            super().pause_reading()

    def resume_reading(self) -> None:
        """Read more."""
        if self.is_held:
            self.read_paused = False
        else:
            super().resume_reading()


async def _serve(
    connection: LimitedProtocol,
    app: ASGIApp,
    scope: Message,
    receive: Receive,
    send: Send,
) -> None:
    """Let the application answer if there is a place for the call."""
    if scope["type"] == "http":
        for peers in connection.peers:
            if error := peers.refusal(scope["path"]):
                await error_response(error, scope)(scope, receive, send)
                return
    await app(scope, receive, send)


def _too_many(peers: Peers) -> LimitReached:
    whose = "" if peers.name == "max_connections" else "from your address "
    detail = f"{peers.limit} connections {whose}have calls under way, as many as may."
    return LimitReached(peers.name, detail, "Try again when some are answered.")


def _network(client: tuple[str, int] | None) -> str:
    """The address that a connection counts for; of IPv6 the network of one site."""
    try:
        address = ipaddress.ip_address((client or ("",))[0].partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


def _set_options(transport: Transport) -> None:
    """Let the kernel buffer little for who does not read, and notice who is gone."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    # else an answer's body waits 40 ms for its head to be acknowledged
    options.append((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1))
    for name, value in (("TCP_KEEPIDLE", SILENCE_S), ("TCP_NOTSENT_LOWAT", MAX_UNSENT)):
        if hasattr(socket, name):  # not on every system
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    for option in options:
        with contextlib.suppress(OSError):  # it has hung up, or is no TCP
            transport.get_extra_info("socket").setsockopt(*option)


def guard() -> list:
    """Make uvicorn in this process use `LimitedProtocol`; adds no middleware."""
    table = Connections(Settings.from_environment())
    uvicorn_auto.AutoHTTPProtocol = functools.partial(  # type: ignore[assignment]
        LimitedProtocol, table
    )
    return []


IMPORT_PATH = f"{__name__}:{guard.__name__}"
