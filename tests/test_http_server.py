"""The socket of `fedray serve`, and what a killed server finds. No Ray."""

import contextlib
import resource
import socket
import subprocess
import sys
import threading

import pytest

from fedray.cli import main
from fedray.errors import ClusterError
from fedray.service import http_server
from fedray.service.http_server import Listener, listen, take_socket


def test_a_server_that_starts_again_finds_its_socket_and_the_clients_that_wait():
    with contextlib.closing(Listener("127.0.0.1", 0)) as listener:
        first = take_socket(listener.path)
        first.close()  # it was killed
        client = socket.create_connection(("127.0.0.1", listener.port), 60)
        with take_socket(listener.path) as second, client:
            line, _ = second.accept()
            line.sendall(b"late")
            line.close()
            assert client.recv(10) == b"late"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", listener.port), 60)
    with pytest.raises(FileNotFoundError):
        take_socket(listener.path)


def test_the_socket_is_for_its_owner_alone():
    import os

    with contextlib.closing(Listener("127.0.0.1", 0)) as listener:
        assert os.stat(listener.folder).st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("127.0.0.1", 65536, "no port 65536"),
        ("127.0.0.1", -1, "no port -1"),
        ("192.0.2.1", 8000, "'192.0.2.1' is no address of this machine"),
        ("no.such.host.invalid", 8000, "is no address of this machine"),
        ("a" * 300, 8000, "is no address of this machine"),
        ("[", 8000, "is no address of this machine"),
        ("..", 8000, "is no address of this machine"),
    ],
)
def test_an_address_where_nobody_can_listen_is_one_clear_line(host, port, words):
    with pytest.raises(ClusterError) as error:
        listen(host, port)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_localhost_is_listened_at_where_clients_look_first():
    with listen("localhost", 0) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"


def test_a_port_that_is_taken_ends_the_command_before_a_cluster_starts(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.delattr(http_server, "cluster_connection")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        words = ["serve", "--port", str(port), "--root", str(tmp_path)]
        assert main(words) != 0
    error = capsys.readouterr().err
    assert f"another program listens at 127.0.0.1:{port}" in error
    assert "Take another --port" in error


FILES = """
import resource
from fedray.service.http_server import with_files_for_connections
from fedray.service.settings import Settings
for files in ((2000, 4096), (256, 4096), (256, 1000)):
    resource.setrlimit(resource.RLIMIT_NOFILE, files)
    n = with_files_for_connections(Settings()).max_connections
    print(n, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def test_connections_are_no_more_than_files_that_may_be_open():
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 4096:
        pytest.skip("fewer files may be open here")
    words = [sys.executable, "-c", FILES]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["1024 2000", "1024 1568", "500 1000"]
    assert "ulimit -n is 1000: max_connections is 500" in done.stderr


def test_a_client_of_the_socket_that_hangs_up_at_once_does_not_end_it():
    with contextlib.closing(Listener("127.0.0.1", 0)) as listener:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(listener.path)
        threads = [
            threading.Thread(target=lambda: take_socket(listener.path).close())
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        take_socket(listener.path).close()
