"""`fedray.service:app` on Ray Serve, as `serve run` deploys it."""

import socket
from pathlib import Path

import pytest
import ray
from support.rest import Client, json_of

from fedray.service.settings import Settings


@pytest.fixture
def url(cluster, tmp_path):
    from ray import serve

    from fedray.service import deployment

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(deployment.application(Settings(root=str(tmp_path / "root"))))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def test_the_application_is_deployed_on_serve_with_limits_on_connections(url):
    client = Client(url)
    assert json_of(client.get("/health")) == {"status": "ok"}
    id = json_of(client.start())["aggregator_id"]
    assert client.state(id)["remaining_parties"] == 2
    assert json_of(client.stop(id))["status"] == "stopped"
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    with socket.create_connection(address, 60) as line:  # by LimitedProtocol
        line.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000)
        assert line.recv(1000).startswith(b"HTTP/1.1 431")
    assert client.get("/%1b%5B31m%0AX-forged").status_code == 404
    node: str = ray._private.worker._global_node.get_session_dir_path()
    logs = Path(node, "logs", "serve")
    files = list(logs.glob("*fedray*.log"))
    assert files
    assert not any(b"\x1b" in file.read_bytes() for file in files)
