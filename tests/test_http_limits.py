"""Connections of the HTTP server: bounded in number, time and memory. No Ray."""

import asyncio
import contextlib
import functools
import json
import socket
import threading
import time
from collections.abc import Iterator

import h11
import pytest
import uvicorn
from support.waiting import wait_for

from fedray.service.http_limits import (
    MAX_HEADER_BYTES,
    MAX_PIECES,
    N_EXTRA,
    Connections,
    LimitedProtocol,
    PacedParser,
)
from fedray.service.settings import Settings

BIG = 32 << 20  # bytes of an answer
CHUNK = 64 << 10
FEW = 4  # connections of one address in these tests
QUICK = {"header_timeout_s": 0.5, "answer_timeout_s": 0.5}


class Application:
    """Answers /big with many bytes, /body with how many it was sent; counts both."""

    def __init__(self) -> None:
        self.n_taken, self.n_hung_up, self.n_under_way = 0, 0, 0
        self.gate = asyncio.Event()

    async def __call__(self, scope, receive, send) -> None:
        self.n_under_way += 1
        try:
            await getattr(self, "_" + scope["path"].strip("/"), self._small)(
                receive, send
            )
        finally:
            self.n_under_way -= 1

    async def _small(self, receive, send, body: bytes = b"{}") -> None:
        length = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": body})

    async def _big(self, receive, send) -> None:
        length = [(b"content-length", b"%d" % BIG)]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        for start in range(0, BIG, CHUNK):
            more = start + CHUNK < BIG
            body = {"type": "http.response.body", "body": bytes(CHUNK)}
            await send(body | {"more_body": more})
            self.n_taken += CHUNK

    async def _body(self, receive, send) -> None:
        n, message = 0, {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            n += len(message.get("body", b""))
        await self._small(receive, send, b"%d" % n)

    async def _wait(self, receive, send) -> None:
        """Until the gate opens, or the client hangs up."""
        opened = asyncio.ensure_future(self.gate.wait())
        gone = asyncio.ensure_future(self._hang_up(receive))
        await asyncio.wait({opened, gone}, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            self.n_hung_up += 1
        gone.cancel()
        await self._small(receive, send)

    _stop = _wait

    async def _hang_up(self, receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass


class Serving:
    """The application behind uvicorn with `LimitedProtocol`, in a thread."""

    def __init__(self, settings: Settings, host: str):
        self.app, self.table = Application(), Connections(settings)
        protocol = functools.partial(LimitedProtocol, self.table)
        config = uvicorn.Config(
            self.app, http=protocol, ws="none", lifespan="off", log_config=None,
            access_log=False, timeout_graceful_shutdown=1,
        )  # fmt: skip
        self.server = uvicorn.Server(config)
        self.sock = socket.create_server((host, 0), backlog=1000)
        self.address = self.sock.getsockname()[:2]
        self.lines: list[socket.socket] = []

    def run(self) -> None:
        asyncio.run(self.server.serve([self.sock]))

    def open_gate(self) -> None:
        self.table.timer._loop.call_soon_threadsafe(self.app.gate.set)

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        line = socket.create_connection(self.address, 60, (source, 0))
        self.lines.append(line)
        return line

    def send(self, path: str, head: str = "", *, source: str = "127.0.0.1"):
        """A connection on which a call is made."""
        line = self.connect(source)
        line.sendall(f"GET /{path} HTTP/1.1\r\nHost: a\r\n{head}\r\n".encode())
        return line

    def ask(self, path: str, source: str = "127.0.0.1") -> tuple[int, bytes]:
        return answer_on(self.send(path, "Connection: close\r\n", source=source))

    @property
    def n_open(self) -> int:
        return len(self.table.all.open)


def read_all(line: socket.socket) -> bytes:
    """What is answered until the end of the connection."""
    answered = b""
    with contextlib.suppress(ConnectionError):
        while part := line.recv(1 << 20):
            answered += part
    return answered


def answer_on(line: socket.socket) -> tuple[int, bytes]:
    answered = read_all(line)
    head, _, body = answered.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else 0), body


def is_closed(line: socket.socket) -> bool:
    """Whether the server has closed it; sends one byte more."""
    try:
        line.sendall(b"x")
    except ConnectionError:
        return True
    return False


@contextlib.contextmanager
def serving(host: str = "127.0.0.1", **settings) -> Iterator[Serving]:
    one = Serving(Settings(**QUICK | settings), host)
    thread = threading.Thread(target=one.run)
    thread.start()
    wait_for(lambda: one.server.started, "the server")
    try:
        yield one
    finally:
        for line in one.lines:
            line.close()
        one.server.should_exit = True
        thread.join(60)


@pytest.fixture
def server():
    with serving() as one:
        yield one


@pytest.fixture
def small():
    """A server with few places for calls."""
    with serving(max_connections_per_address=FEW, max_connections=2 * FEW) as one:
        yield one


def test_an_answer_that_nobody_reads_is_not_made(server):
    lines = [server.send("big") for _ in range(8)]
    wait_for(lambda: server.app.n_under_way == 8, "calls under way")
    time.sleep(0.2)
    assert server.app.n_taken < 8 * (BIG // 4)  # what kernel and transport hold
    assert server.ask("health")[0] == 200
    assert len(lines) == 8


def test_a_client_that_reads_nothing_of_its_answer_is_cut_off(server):
    line = server.send("big")
    wait_for(lambda: server.app.n_under_way == 1, "the call")
    wait_for(lambda: server.app.n_under_way == 0, "its end")
    assert 0 < len(read_all(line)) < BIG


def test_a_client_that_reads_slowly_gets_all_of_its_answer(server):
    line = server.send("big", "Connection: close\r\n")
    n, until = 0, time.monotonic() + 3 * QUICK["answer_timeout_s"]
    while time.monotonic() < until:  # a little now and then, longer than the timeout
        n += len(line.recv(256 << 10))
        time.sleep(0.1)
    while part := line.recv(1 << 20):
        n += len(part)
    assert n > BIG


def test_an_answer_whose_end_is_not_read_does_not_hold_the_connection(server):
    line = server.connect()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(2):  # pipelined: the second is not begun, or not read
        line.sendall(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_for(lambda: server.n_open == 1, "the connection")
    wait_for(lambda: server.n_open == 0, "its end")
    assert server.app.n_under_way == 0


def test_headers_that_are_not_complete_in_time_are_408_in_json(server):
    line = server.connect()
    line.sendall(b"GET /health HTTP/1.1\r\nHo")
    status, body = answer_on(line)
    assert status == 408
    assert "not complete within 0.5 s" in json.loads(body)["detail"]


def test_a_connection_on_which_nothing_is_sent_is_closed(server):
    assert read_all(server.connect()) == b""


def test_a_connection_is_used_for_several_calls_and_may_rest_between_them(server):
    line = server.send("health")
    for _ in range(2):
        time.sleep(2 * QUICK["header_timeout_s"])
        assert line.recv(1000).startswith(b"HTTP/1.1 200")
        line.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
    line.recv(1000)
    line.sendall(b"GET /hea")  # but a second call's headers have to be in time as well
    assert answer_on(line)[0] == 408


def test_large_headers_are_431_in_json(server):
    line = server.connect()
    with contextlib.suppress(ConnectionError):
        line.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 4 * MAX_HEADER_BYTES)
    status, body = answer_on(line)
    assert status == 431
    assert json.loads(body)["hint"] == "At most 32768 bytes are read."


NOT_HTTP = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01",  # TLS
    b"GET /\x1b[31m HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /health HTTP/1.1\r\n\r\n",  # no Host
    b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost : a\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\n",
    b"GET /body HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"\x00" * 100,
    b"hello\r\n\r\n",
]


def test_what_is_not_http_is_4xx_in_json_and_closed(server):
    for text in NOT_HTTP:
        line = server.connect()
        line.sendall(text)
        status, body = answer_on(line)
        assert status in (400, 501), text
        assert set(json.loads(body)) == {"error", "detail", "hint"}
    wait_for(lambda: server.app.n_under_way == 0, "the calls' end")


def test_a_body_that_turns_out_to_be_no_http_ends_its_answer_and_no_other(server):
    line, other = server.connect(), server.send("wait")
    head = b"POST /big HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    line.sendall(head)
    wait_for(lambda: server.app.n_under_way == 2, "the calls")
    assert line.recv(12) == b"HTTP/1.1 200"
    line.sendall(b"no chunk\r\n")
    wait_for(lambda: server.app.n_under_way == 1, "its end")
    server.server.should_exit = True  # with a connection that waits to be closed
    wait_for(lambda: server.n_open <= 1, "the end of the connection")
    server.open_gate()
    assert other.recv(1000).startswith(b"HTTP/1.1 200")


def test_beyond_the_limit_of_an_address_calls_are_429_but_health_and_stop_are_served(
    small,
):
    waiting = [small.send("wait") for _ in range(FEW)]
    wait_for(lambda: small.app.n_under_way == FEW, "calls")
    status, body = small.ask("train")
    assert (status, json.loads(body)["limit"]) == (429, "max_connections_per_address")
    assert small.ask("health")[0] == 200
    stopping = small.send("stop", "Connection: close\r\n")
    wait_for(lambda: small.app.n_under_way == FEW + 1, "a stop")
    assert small.ask("train", source="127.0.0.2")[0] == 200  # another address
    small.open_gate()
    assert answer_on(stopping)[0] == 200
    assert all(line.recv(1000).startswith(b"HTTP/1.1 200") for line in waiting)
    assert small.ask("train")[0] == 200


def test_beyond_the_limit_in_total_calls_of_all_are_429(small):
    for i in range(2 * FEW):
        small.send("wait", source=f"127.0.0.{2 + i % 2}")
    wait_for(lambda: small.app.n_under_way == 2 * FEW, "calls")
    status, body = small.ask("train")
    assert (status, json.loads(body)["limit"]) == (429, "max_connections")
    assert small.ask("health")[0] == 200


def test_where_not_even_health_has_a_place_the_connection_is_429_at_once(small):
    for _ in range(FEW + 24):
        small.send("stop")
    wait_for(lambda: small.app.n_under_way == FEW + 24, "calls")
    assert small.ask("stop")[0] == 429
    assert small.ask("health")[0] == 200
    for _ in range(N_EXTRA - 24):
        small.send("health/wait")
    assert small.ask("health")[0] in (200, 429)
    assert small.ask("health", source="127.0.0.2")[0] == 200


def test_idle_connections_give_way_to_calls(small):
    lines = [small.connect() for _ in range(10 * (FEW + N_EXTRA))]
    assert small.ask("health")[0] == 200
    assert small.ask("train")[0] == 200
    assert small.n_open <= FEW + N_EXTRA
    assert read_all(lines[0]) == b""  # the first had to go


def test_of_connections_the_longest_idle_gives_way_and_none_with_a_call(small):
    waiting = small.send("wait")
    first, *_ = [small.connect() for _ in range(FEW + N_EXTRA - 1)]
    wait_for(lambda: small.n_open == FEW + N_EXTRA, "connections")
    newest = small.connect()
    assert read_all(first) == b""
    newest.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert answer_on(newest)[0] == 200
    small.open_gate()
    assert waiting.recv(1000).startswith(b"HTTP/1.1 200")


def test_addresses_of_one_ipv6_network_are_one_and_ipv4_is_ipv4():
    from fedray.service.http_limits import _network

    assert _network(("2001:db8::1", 1)) == _network(("2001:db8::ffff", 2))
    assert _network(("2001:db8:0:1::1", 1)) != _network(("2001:db8::1", 2))
    assert _network(("::ffff:10.0.0.1", 1)) == _network(("10.0.0.1", 1)) == "10.0.0.1"
    assert _network(("fe80::1%eth0", 1)) == "fe80::/64"
    assert _network(None) == ""


def test_what_is_not_open_is_not_counted(small):
    for source in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
        assert small.ask("health", source=source)[0] == 200
    wait_for(lambda: small.n_open == 0, "connections end")
    assert small.table.by_address == {}
    assert len(small.table.all.idle) == 0


def test_a_body_in_tiny_chunks_arrives_whole_from_several_at_once(server):
    n = 10_000
    head = b"POST /body HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    lines = [server.connect() for _ in range(4)]
    body = b"1\r\nx\r\n" * n + b"0\r\n\r\n"
    for line in lines:  # more than is read before the application takes it
        threading.Thread(target=line.sendall, args=(head + body,)).start()
    assert server.ask("health")[0] == 200
    assert [answer_on(line) for line in lines] == [(200, b"%d" % n)] * 4


def test_chunks_of_a_body_are_parsed_a_few_at_a_time():
    parser = PacedParser(h11.SERVER)
    parser.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n")
    parser.receive_data(b"\r\n" + b"1\r\nx\r\n" * 100 + b"0\r\n\r\n")
    assert isinstance(parser.next_event(), h11.Request)
    counts = []
    while parser.their_state is h11.SEND_BODY:
        parser.n_pieces = n = 0
        while parser.next_event() is not h11.NEED_DATA and n < 1000:
            n += 1
        counts.append(n)
    assert counts == [MAX_PIECES, 100 - MAX_PIECES + 1]  # and the body's end


def test_a_body_that_was_answered_early_is_read_to_its_end_for_the_next_call(server):
    line = server.connect()
    line.sendall(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n")
    assert line.recv(1000).startswith(b"HTTP/1.1 200")
    line.sendall(bytes(2_000_000))
    line.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert answer_on(line)[0] == 200


def test_a_body_that_was_answered_early_and_does_not_end_is_cut(server, monkeypatch):
    monkeypatch.setattr("fedray.service.http_limits.LINGER_S", 0.5)
    line = server.connect()
    line.sendall(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n")
    assert line.recv(1000).startswith(b"HTTP/1.1 200")
    wait_for(lambda: is_closed(line), "the end of the connection")


def test_pipelined_calls_are_answered_in_turn_and_a_few_at_a_time(server):
    n = 500
    line = server.connect()
    call = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
    last = call.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    sender = threading.Thread(target=line.sendall, args=(call * (n - 1) + last,))
    sender.start()
    assert read_all(line).count(b"HTTP/1.1 200 OK") == n
    sender.join()
    assert server.ask("health")[0] == 200


def test_a_client_that_is_gone_is_noticed_while_its_call_waits(server):
    line = server.send("wait")
    wait_for(lambda: server.app.n_under_way == 1, "the call")
    line.close()
    wait_for(lambda: server.app.n_hung_up == 1, "the hang-up")


def test_guard_lets_uvicorn_take_the_limits_of_the_environment(monkeypatch):
    from uvicorn.protocols.http import auto

    from fedray.service import front, http_limits

    monkeypatch.setattr(auto, "AutoHTTPProtocol", auto.AutoHTTPProtocol)
    monkeypatch.setenv("FEDRAY_MAX_CONNECTIONS", "7")
    assert front.guard() == []
    protocol = auto.AutoHTTPProtocol
    assert (protocol.func, protocol.args[0].all.limit) == (LimitedProtocol, 7)
    assert http_limits.IMPORT_PATH == "fedray.service.http_limits:guard"
