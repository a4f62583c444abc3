"""Many simulated edges in one process: real HTTPS, no training.

`Fleet` sends the calls of any number of edges over a fixed number of connections that
stay open, as a load balancer would, and keeps how long each kind of call took.
"""

import asyncio
import contextlib
import heapq
import random
import ssl
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESTS = str(Path(__file__).parent.parent / "tests")
sys.path[:0] = [TESTS] * (TESTS not in sys.path)

from support.simulated_edge import PREFIX, Answer, Call, SimulatedEdge  # noqa: E402

MOST_TRIES = 5


class Wire:
    """One connection, on which calls follow each other."""

    def __init__(self, port: int, context: ssl.SSLContext | None):
        self.port, self.context = port, context
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, call: Call) -> Answer:
        """The answer; the connection is opened anew where it has been closed."""
        for _ in range(MOST_TRIES):
            try:
                return await self._send(call)
            except (OSError, asyncio.IncompleteReadError):
                self.close()
                await asyncio.sleep(0.05)
        return await self._send(call)

    async def _send(self, call: Call) -> Answer:
        if self._streams is None:
            self._streams = await asyncio.open_connection(
                "127.0.0.1", self.port, ssl=self.context, limit=1 << 20
            )
        reader, writer = self._streams
        writer.write(head_of(call))
        if call.body:
            writer.write(call.body)
        await writer.drain()
        status, headers = read_head(await reader.readuntil(b"\r\n\r\n"))
        n_bytes = int(headers.get("content-length", 0))
        if call.method == "HEAD" or status in (204, 304):
            n_bytes = 0
        body = await reader.readexactly(n_bytes) if n_bytes else b""
        if headers.get("connection") == "close":
            self.close()
        return Answer(status, headers, body)

    def close(self) -> None:
        """Close it."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def head_of(call: Call) -> bytes:
    """Request line and headers."""
    lines = [f"{call.method} {PREFIX}{call.path} HTTP/1.1", "Host: 127.0.0.1"]
    lines += [f"{name}: {value}" for name, value in call.headers.items()]
    if call.method not in ("GET", "HEAD"):
        lines.append(f"Content-Length: {len(call.body)}")
    return "\r\n".join([*lines, "", ""]).encode()


def read_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer."""
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return int(first.split()[1]), {n.strip().lower(): v.strip() for n, _, v in pairs}


@dataclass
class Fleet:
    """Edges and the connections over which they call."""

    port: int
    ca: str | None
    n_connections: int = 64
    edges: list[SimulatedEdge] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    statuses: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        context = ssl.create_default_context(cafile=self.ca) if self.ca else None
        self.wires = [Wire(self.port, context) for _ in range(self.n_connections)]

    async def call(self, wire: Wire, kind: str, call: Call) -> Answer:
        """Send one, and keep how long it took and what was answered."""
        started = time.perf_counter()
        answer = await wire.send(call)
        self.seconds[kind].append(time.perf_counter() - started)
        self.statuses[f"{kind} {answer.status}"] += 1
        return answer

    async def in_parallel(
        self, items: Iterator[Any], act: Callable[[Wire, Any], Awaitable[None]]
    ) -> float:
        """Act on all items, each connection on one at a time; the seconds it took."""

        async def work(wire: Wire) -> None:
            for item in items:
                await act(wire, item)

        started = time.perf_counter()
        await asyncio.gather(*(work(wire) for wire in self.wires))
        return time.perf_counter() - started

    async def enrol(self, invitations: list[str]) -> float:
        """Enrol an edge with each invitation; the seconds that it took."""

        async def act(wire: Wire, invitation: str) -> None:
            edge = SimulatedEdge()
            self.edges.append(edge)
            answer = await self.call(wire, "enrol", edge.enrol(invitation))
            edge.enrolled(answer)

        return await self.in_parallel(iter(invitations), act)

    async def flood(self, n_calls: int) -> float:
        """Check in as fast as can be, edges at random; the seconds that it took."""
        rng = random.Random(1)

        async def act(wire: Wire, edge: SimulatedEdge) -> None:
            await self.call(wire, "flood", edge.checkin())

        edges = (rng.choice(self.edges) for _ in range(n_calls))
        return await self.in_parallel(edges, act)

    async def live(
        self,
        is_over: Callable[[], bool],
        do: Callable[[Wire, SimulatedEdge, dict], Awaitable[None]],
        most_wait_s: float = 1e9,
    ) -> None:
        """Let all check in when they are to, and do tasks, until it is over."""
        now = time.monotonic()
        due = [(now + random.random(), place) for place in range(len(self.edges))]
        heapq.heapify(due)

        async def work(wire: Wire) -> None:
            while not is_over():
                if not due or due[0][0] > time.monotonic():
                    await asyncio.sleep(0.01)
                    continue
                _, place = heapq.heappop(due)
                edge = self.edges[place]
                answer = await self.call(wire, "checkin", edge.checkin())
                wait_s = 0.0
                if answer.status == 200:
                    await do(wire, edge, answer.json())
                elif answer.status == 410:
                    continue
                else:
                    wait_s = float(answer.headers.get("retry-after", 1))
                when = time.monotonic() + min(wait_s, most_wait_s)
                heapq.heappush(due, (when, place))

        await asyncio.gather(*(work(wire) for wire in self.wires))

    @contextlib.asynccontextmanager
    async def connected(self):
        """Connections as long as a block lasts."""
        try:
            yield self
        finally:
            for wire in self.wires:
                wire.close()

    def percentile(self, kind: str, share: float) -> float:
        """Milliseconds that so large a share of the calls of a kind did not exceed."""
        ranked = sorted(self.seconds[kind])
        return 1000 * ranked[min(len(ranked) - 1, int(share * len(ranked)))]
