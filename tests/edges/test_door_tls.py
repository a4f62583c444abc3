"""TLS of the edges' door, on the loop of asyncio and on that of Ray's actors."""

import asyncio
import os
import socket
import ssl
import threading

import pytest
import uvloop
from support.certificates import make_certificates

from fedray.edge_door import tls


class Echo(asyncio.Protocol):
    """Sends back what it gets."""

    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


def client_of(made, port: int) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(made.ca))
    line = socket.create_connection(("127.0.0.1", port), timeout=600)
    return context.wrap_socket(line, server_hostname="localhost")


def serve(made, run, act) -> tls.Handshakes:
    """Let `act(port, loop)` call a server with TLS; its table of handshakes."""
    table = tls.Handshakes(tls.Certificate(str(made.cert), str(made.key)))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: tls.TlsConnection(table, Echo), "127.0.0.1", 0, backlog=1024
        )
        port = server.sockets[0].getsockname()[1]
        await loop.run_in_executor(None, act, port, loop)
        server.close()

    run(main())
    return table


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_every_handshake_succeeds_and_no_file_stays_open(tmp_path, run):
    made = make_certificates(tmp_path)

    def act(port: int, loop) -> None:
        for i in range(30):
            with client_of(made, port) as line:
                line.sendall(b"%d" % i)
                assert line.recv(10) == b"%d" % i
        assert len(os.listdir("/proc/self/fd")) < n_files + 20

    n_files = len(os.listdir("/proc/self/fd"))
    assert not serve(made, run, act).open


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_idle_handshakes_give_way_and_do_not_keep_others_out(
    tmp_path, run, monkeypatch
):
    monkeypatch.setattr(tls, "MAX_HANDSHAKES", 20)
    made = make_certificates(tmp_path)

    def act(port: int, loop) -> None:
        all_are_there = threading.Event()
        loop.call_soon_threadsafe(all_are_there.wait)  # so that it takes them at once
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
        all_are_there.set()
        with client_of(made, port) as line:
            line.sendall(b"x")
            assert line.recv(1) == b"x"
        for one in idle[:40]:  # the oldest were closed
            one.settimeout(600)
            assert one.recv(1) == b""
        for one in idle:
            one.close()

    serve(made, run, act)
