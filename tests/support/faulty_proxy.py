"""A TCP proxy on loopback that does to connections what bad networks do to them.

    with FaultyProxy(target_port, seeded(7, share=0.3)) as proxy:
        ...  # calls to 127.0.0.1:proxy.port

What happens to a connection depends on its number alone (and on the seed), so that a
test that fails can be played again. `cut` and `mend` are for a network that is away for
a while. `proxy.lines` says what has passed, and which faults have struck.
"""

import asyncio
import contextlib
import random
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

UP, DOWN = "up", "down"  # from the client; to it
KINDS = ("drop", "delay", "duplicate", "reset", "trickle", "half_open")
PIECE = 1 << 16
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Fault:
    """What happens to one connection.

    kind : ``drop`` loses what follows and ends the connection, as if it had been closed
        politely; ``reset`` ends it by RST; ``half_open`` lets nothing pass in either
        direction, and tells nobody, also not the server when the client goes;
        ``delay`` holds back each piece, ``trickle`` each byte; ``duplicate`` sends all
        that the client sends a second time, on a connection of its own whose answers
        nobody reads (with TLS this takes `Tls`).
    way : the direction whose bytes count.
    after : bytes that pass before it.
    seconds : of a delay.
    lasts : bytes that are held back; None for all.
    """

    kind: str
    way: str = UP
    after: int = 0
    seconds: float = 1.0
    lasts: int | None = None


@dataclass
class Line:
    """One connection: what was to happen to it, and what did."""

    number: int
    fault: Fault | None
    has_struck: bool = False
    n_bytes: dict[str, int] = field(default_factory=lambda: {UP: 0, DOWN: 0})
    is_open: bool = True


@dataclass(frozen=True)
class Tls:
    """Contexts of a proxy that ends TLS itself, to see calls as a server does."""

    server: ssl.SSLContext  # towards clients
    client: ssl.SSLContext  # towards the server


class Hold:
    """One call, or its answer, that waits on its way until it is let go."""

    def __init__(self, pattern: re.Pattern[bytes], way: str, skip: int, loop):
        self.pattern, self.way, self.skip, self._loop = pattern, way, skip, loop
        self._line: int | None = None  # the connection of the call
        self._is_here, self._is_free = threading.Event(), asyncio.Event()
        self._is_lost = False

    async def look(self, line: Line, way: str, piece: bytes) -> None:
        """Hold this piece, if it is the one."""
        if self._line is None and way == UP and self.pattern.match(piece):
            self.skip -= 1
            if self.skip < 0:
                self._line = line.number
        if self._line == line.number and way == self.way and not self._is_here.is_set():
            self._is_here.set()
            await self._is_free.wait()
            if self._is_lost:
                raise ConnectionResetError

    def wait(self, timeout_s: float = 600.0) -> None:
        """Wait until the call, or its answer, is here."""
        if not self._is_here.wait(timeout_s):
            raise TimeoutError(f"no {self.pattern.pattern!r} within {timeout_s:g} s")

    def let_go(self, is_lost: bool = False) -> None:
        """Let it pass, or be lost; nothing is held any more if nothing is here."""
        self._is_lost = is_lost
        self._is_here.set()
        self._loop.call_soon_threadsafe(self._is_free.set)


FaultOf = Callable[[int], Fault | None]


def no_fault(number: int) -> None:
    """Nothing happens to any connection."""


def seeded(seed: int, share: float = 0.3, kinds: tuple[str, ...] = KINDS) -> FaultOf:
    """Faults for a share of all connections, the same for the same seed.

    They strike after 10 to 100,000 bytes; what is held back is held back shortly.
    """

    def fault_of(number: int) -> Fault | None:
        rng = random.Random(f"{seed}/{number}")
        if rng.random() >= share:
            return None
        kind, way = rng.choice(kinds), rng.choice((UP, DOWN))
        after = int(10 ** rng.uniform(1, 5))
        lasts = 20 if kind == "trickle" else None
        return Fault(kind, way, after, seconds=rng.uniform(0.001, 0.05), lasts=lasts)

    return fault_of


def each(*faults: Fault | None) -> FaultOf:
    """One fault for each connection in turn; none for those that follow."""
    return lambda number: faults[number] if number < len(faults) else None


class FaultyProxy:
    """The proxy, in a thread of its own; a context manager.

    target : port of the server; may be changed, for connections to come.
    """

    def __init__(
        self, target: int, fault_of: FaultOf = no_fault, tls: Tls | None = None
    ):
        self.target, self.fault_of, self.tls = target, fault_of, tls
        self.lines: list[Line] = []
        self.holds: list[Hold] = []
        self.port = 0
        self._is_cut = False
        self._open: dict[int, list[asyncio.StreamWriter]] = {}
        self._tasks: set[asyncio.Task] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "FaultyProxy":
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *_) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """End all connections by RST, and all that begin until `mend`."""
        self._call(self._cut())

    def mend(self) -> None:
        """Let connections pass again."""
        self._is_cut = False

    def hold(self, pattern: bytes, way: str = UP, skip: int = 0) -> "Hold":
        """Let the next call wait that begins as the pattern says, or its answer (DOWN).

        A call is told by how a piece begins: where its connection has TLS this takes
        `Tls`. `skip` such calls pass before it.
        """
        hold = Hold(re.compile(pattern), way, skip, self._loop)
        self.holds.append(hold)
        return hold

    def struck(self) -> set[str]:
        """Kinds of faults that have struck."""
        return {
            line.fault.kind for line in self.lines if line.fault and line.has_struck
        }

    def n_open(self) -> int:
        """Connections that are open."""
        return sum(line.is_open for line in self.lines)

    def _call(self, work: Coroutine) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _listen(self) -> None:
        context = self.tls.server if self.tls else None
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", 0, ssl=context, limit=PIECE, backlog=1000
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _cut(self) -> None:
        self._is_cut = True
        for writers in self._open.values():
            for writer in writers:
                reset(writer)

    async def _close(self) -> None:
        self._server.close()
        await self._cut()
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader, writer) -> None:
        line = Line(len(self.lines), self.fault_of(len(self.lines)))
        self.lines.append(line)
        writers = self._open[line.number] = [writer]
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            if not self._is_cut:
                await self._carry(line, reader, writers)
        except asyncio.CancelledError:
            pass
        except OSError:  # one end is gone: so is the other
            for one in writers:
                reset(one)
        finally:
            for one in writers:
                if self._is_cut:
                    reset(one)
                one.close()
            del self._open[line.number]
            line.is_open = False
            self._tasks.discard(task)

    async def _carry(self, line: Line, reader, writers) -> None:
        """Pass bytes in both directions until both have ended, or a fault ends it."""
        answers, calls = await self._connect(writers)
        copies = [calls]
        if line.fault and line.fault.kind == "duplicate":
            unread, twin = await self._connect(writers)
            copies.append(twin)
            line.has_struck = True
        pumps = [
            asyncio.ensure_future(self._pump(line, UP, reader, copies)),
            asyncio.ensure_future(self._pump(line, DOWN, answers, writers[:1])),
        ]
        if len(copies) > 1:
            pumps.append(asyncio.ensure_future(discard(unread)))
        try:
            await self._watch(line, reader, pumps)
        except Ended:
            if line.fault.kind == "reset":
                for one in writers:
                    reset(one)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _watch(self, line: Line, reader, pumps: list[asyncio.Future]) -> None:
        try:
            await asyncio.gather(*pumps)
        except Silence:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            await discard(reader)
            line.is_open = False  # the client has gone, and the server does not know it
            await asyncio.Event().wait()

    async def _connect(self, writers):
        """Another connection to the server; it ends with the client's."""
        context = self.tls.client if self.tls else None
        name = "localhost" if self.tls else None
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.target, ssl=context, server_hostname=name, limit=PIECE
        )
        writers.append(writer)
        return reader, writer

    async def _pump(self, line: Line, way: str, reader, writers) -> None:
        fault = line.fault if line.fault and line.fault.way == way else None
        while piece := await reader.read(PIECE):
            for hold in [*self.holds]:
                await hold.look(line, way, piece)
            if fault and fault.kind != "duplicate":
                await disturb(line, fault, piece, writers)
            else:
                await send(line, way, piece, writers)
        for writer in writers:
            if writer.can_write_eof():  # not with TLS
                writer.write_eof()
            else:
                writer.close()


class Ended(Exception):
    """A fault has ended the connection."""


class Silence(Exception):
    """A fault has made the connection half open."""


async def disturb(line: Line, fault: Fault, piece: bytes, writers) -> None:
    """Pass a piece as far as the fault lets it."""
    passing = piece[: max(0, fault.after - line.n_bytes[fault.way])]
    await send(line, fault.way, passing, writers)
    rest = piece[len(passing) :]
    if not rest:
        return
    line.has_struck = True
    if fault.kind in ("drop", "reset"):
        raise Ended
    if fault.kind == "half_open":
        raise Silence
    step = 1 if fault.kind == "trickle" else len(rest)
    while rest:
        over = line.n_bytes[fault.way] - fault.after
        if fault.lasts is not None and over >= fault.lasts:
            step = len(rest)
        else:
            await asyncio.sleep(fault.seconds)
        await send(line, fault.way, rest[:step], writers)
        rest = rest[step:]


async def send(line: Line, way: str, piece: bytes, writers) -> None:
    """Send a piece to all of them; a copy's connection may be gone."""
    line.n_bytes[way] += len(piece)
    for place, writer in enumerate(writers):
        with contextlib.suppress(OSError if place else ()):
            writer.write(piece)
            await writer.drain()


async def discard(reader) -> None:
    """Read until the other end has closed."""
    with contextlib.suppress(OSError):
        while await reader.read(PIECE):
            pass


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by RST."""
    with contextlib.suppress(OSError, AttributeError):  # it has ended by itself
        line = writer.get_extra_info("socket")
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    writer.transport.abort()
