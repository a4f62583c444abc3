"""The proxy that edges are tested with does what its faults say, and nothing else."""

import contextlib
import hashlib
import http.server
import random
import socket
import socketserver
import threading
import time

import pytest
from support.faulty_proxy import (
    DOWN,
    KINDS,
    UP,
    Fault,
    FaultyProxy,
    each,
    no_fault,
    seeded,
)
from support.waiting import PATIENCE_S, wait_for

MEGABYTE = random.Random(1).randbytes(1 << 20)


class Echo(socketserver.BaseRequestHandler):
    """Sends back what it gets, and keeps it."""

    def handle(self) -> None:
        mine = bytearray()
        self.server.received.append(mine)
        with contextlib.suppress(OSError):
            while piece := self.request.recv(1 << 16):
                mine += piece
                self.request.sendall(piece)


@pytest.fixture
def echo():
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads, server.received = True, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def proxy_of(server, fault_of=no_fault) -> FaultyProxy:
    return FaultyProxy(server.server_address[1], fault_of)


def connect(proxy: FaultyProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S)


def exchange(proxy: FaultyProxy, content: bytes) -> bytes:
    """What comes back of it; up to an error."""
    with connect(proxy) as line:
        sender = threading.Thread(target=send, args=(line, content), daemon=True)
        sender.start()
        answer = receive(line)
        sender.join(PATIENCE_S)
    return answer


def send(line: socket.socket, content: bytes) -> None:
    with contextlib.suppress(OSError):
        line.sendall(content)
        line.shutdown(socket.SHUT_WR)


def receive(line: socket.socket) -> bytes:
    answer = bytearray()
    with contextlib.suppress(ConnectionError):
        while piece := line.recv(1 << 16):
            answer += piece
    return bytes(answer)


def test_without_faults_everything_passes_unchanged(echo):
    with proxy_of(echo) as proxy:
        assert exchange(proxy, MEGABYTE) == MEGABYTE
        wait_for(lambda: not proxy.n_open(), "the connection's end")
        assert proxy.lines[0].n_bytes == {UP: 1 << 20, DOWN: 1 << 20}
        assert proxy.struck() == set()


@pytest.mark.parametrize("kind", ["drop", "reset"])
@pytest.mark.parametrize(("way", "after"), [(UP, 0), (UP, 1000), (DOWN, 77_777)])
def test_a_connection_ends_after_exactly_so_many_bytes(echo, kind, way, after):
    with proxy_of(echo, each(Fault(kind, way, after))) as proxy:
        answer = exchange(proxy, MEGABYTE)
        assert proxy.lines[0].n_bytes[way] == after
        assert MEGABYTE.startswith(answer)
        if kind == "drop" and way == DOWN:
            assert len(answer) == after
        assert proxy.struck() == {kind}
        assert exchange(proxy, b"the next one") == b"the next one"


def test_a_reset_is_an_error_of_the_client_and_a_drop_is_an_end(echo):
    with proxy_of(echo, each(Fault("reset"), Fault("drop"))) as proxy:
        with connect(proxy) as line:
            line.sendall(b"x")
            with pytest.raises(ConnectionResetError):
                line.recv(1)
        with connect(proxy) as line:
            line.sendall(b"x")
            assert line.recv(1) == b""


def test_what_is_held_back_comes_late_and_whole(echo):
    faults = Fault("delay", UP, seconds=0.3), Fault("trickle", DOWN, 2, 0.1, lasts=3)
    with proxy_of(echo, each(*faults)) as proxy:
        for content, least_s in ((b"abc", 0.3), (MEGABYTE, 0.3)):
            started = time.monotonic()
            assert exchange(proxy, content) == content
            assert time.monotonic() - started >= least_s
        assert proxy.struck() == {"delay", "trickle"}


def test_a_half_open_connection_is_silent_and_the_server_is_not_told(echo):
    with proxy_of(echo, each(Fault("half_open", UP, 3))) as proxy:
        with connect(proxy) as line:
            line.sendall(b"abc")
            assert line.recv(3, socket.MSG_WAITALL) == b"abc"
            line.sendall(b"def")
            line.settimeout(0.3)
            with pytest.raises(TimeoutError):
                line.recv(1)
        wait_for(lambda: not proxy.n_open(), "the client has gone")
        assert echo.received == [b"abc"]


def test_a_call_that_is_doubled_arrives_twice_and_is_answered_once(echo):
    with proxy_of(echo, each(Fault("duplicate"))) as proxy:
        assert exchange(proxy, MEGABYTE) == MEGABYTE
        wait_for(lambda: echo.received == [MEGABYTE, MEGABYTE], "both")


def test_a_network_that_is_away_for_a_while(echo):
    with proxy_of(echo) as proxy:
        with connect(proxy) as line:
            line.sendall(b"x")
            assert line.recv(1) == b"x"
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                line.recv(1)
        with contextlib.suppress(ConnectionError):  # as early as while it connects
            assert exchange(proxy, b"nobody") == b""
        proxy.mend()
        assert exchange(proxy, b"again") == b"again"


def test_one_call_waits_or_its_answer_and_others_pass(echo):
    with proxy_of(echo) as proxy:
        for way, is_at_server in ((UP, False), (DOWN, True)):
            echo.received.clear()
            hold = proxy.hold(rb"PATCH /\d", way, skip=1)
            with connect(proxy) as line:
                for content in (b"PATCH /1", b"POST /1"):
                    line.sendall(content)
                    assert line.recv(9) == content
                line.sendall(b"PATCH /2")
                hold.wait(PATIENCE_S)
                mine = b"PATCH /1POST /1" + b"PATCH /2" * is_at_server
                wait_for(lambda mine=mine: echo.received == [mine], "the call")
                assert exchange(proxy, b"GET /3") == b"GET /3"
                hold.let_go()
                assert line.recv(9) == b"PATCH /2"


def test_an_answer_that_waits_can_be_lost(echo):
    with proxy_of(echo) as proxy:
        hold = proxy.hold(rb"POST", DOWN)
        with connect(proxy) as line:
            line.sendall(b"POST /commit")
            hold.wait(PATIENCE_S)
            hold.let_go(is_lost=True)
            with pytest.raises(ConnectionResetError):
                line.recv(1)
        assert echo.received == [b"POST /commit"]


def test_a_server_that_is_away_and_comes_back_on_another_port(echo):
    with socket.socket() as free, proxy_of(echo) as proxy:
        free.bind(("127.0.0.1", 0))
        mine, proxy.target = proxy.target, free.getsockname()[1]
        assert exchange(proxy, b"nobody") == b""
        proxy.target = mine
        assert exchange(proxy, b"again") == b"again"


def test_a_seed_always_means_the_same_faults_and_all_kinds_occur():
    faults = [seeded(3, share=0.5)(number) for number in range(400)]
    assert faults == [seeded(3, share=0.5)(number) for number in range(400)]
    assert faults != [seeded(4, share=0.5)(number) for number in range(400)]
    assert {fault.kind for fault in faults if fault} == set(KINDS)
    n_faults = sum(fault is not None for fault in faults)
    assert 140 < n_faults < 260  # 200 are expected, 10 is a standard deviation


def test_hundreds_of_connections_at_once_and_none_is_left(echo):
    content = hashlib.sha256(b"mine").digest()
    with proxy_of(echo, seeded(5, share=0.5, kinds=("drop", "reset"))) as proxy:
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(exchange(proxy, content)))
            for _ in range(200)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert len(answers) == 200
        assert answers.count(content) > 100  # a fault may lie beyond 32 bytes
        wait_for(lambda: not proxy.n_open(), "the ends")


def test_http_passes_with_many_calls_on_one_connection(tmp_path):
    import requests

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with proxy_of(server) as proxy, requests.Session() as session:
            for size in (0, 1, 100_000):
                answer = session.post(f"http://127.0.0.1:{proxy.port}", MEGABYTE[:size])
                assert answer.content == MEGABYTE[:size]
            assert len(proxy.lines) == 1
        server.shutdown()


def test_a_proxy_that_ends_tls_sees_calls_and_doubles_them(tmp_path):
    import requests
    from support.certificates import make_certificates

    made, paths = make_certificates(tmp_path), []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            paths.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = made.tls().server.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port, fault = server.server_address[1], each(Fault("duplicate"))
        with FaultyProxy(port, fault, made.tls()) as proxy:
            hold = proxy.hold(rb"POST /two", DOWN)
            url, how = f"https://127.0.0.1:{proxy.port}", {"verify": str(made.ca)}
            assert requests.post(f"{url}/one", b"x", **how).status_code == 204
            wait_for(lambda: paths == ["/one"] * 2, "the double")
            sent = []
            thread = threading.Thread(
                target=lambda: sent.append(requests.post(f"{url}/two", b"x", **how))
            )
            thread.start()
            hold.wait(PATIENCE_S)
            assert (paths.count("/two"), sent) == (1, [])
            hold.let_go()
            thread.join(PATIENCE_S)
            assert sent[0].status_code == 204
        server.shutdown()
