"""Admission of calls over real connections: slots, bodies, unread answers. No Ray."""

import asyncio
import contextlib
import socket
import threading

import psutil
import pytest
import requests
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from support.waiting import wait_for

from fedray.errors import FedrayError
from fedray.service import auth
from fedray.service.admission import PIECE, Admission
from fedray.service.auth import AuthMiddleware
from fedray.service.disk import Disk
from fedray.service.request_body import BodyReader
from fedray.service.responses import error_response, json_response
from fedray.service.settings import Settings
from fedray.service.usage import Usage

MIB = 1 << 20
BIG = 64 * MIB  # bytes of an answer
LIMITS = {"max_calls_per_client": 8, "max_calls": 12, "max_stop_calls_per_client": 4,
          "max_bytes_in_flight_per_client": 4 * MIB, "body_timeout_s": 30.0,
          "min_free_disk": 0}  # fmt: skip


class Scene:
    """A small service on a real connection, with the keys of two clients."""

    def __init__(self, folder):
        keys = folder / "keys"
        self.headers = {
            name: dict(zip((auth.ID_HEADER, auth.SECRET_HEADER), pair, strict=True))
            for name in ("ann", "bob")
            if (pair := auth.add_key(keys, name))
        }
        self.settings = Settings(str(folder / "root"), str(keys), **LIMITS)
        self.usage, self.disk = Usage(self.settings), Disk(self.settings)
        self.hold = threading.Event()
        routes = [
            Route("/big", self.send_big),
            Route("/whole", self.send_whole),
            Route("/hold", self.wait),
            Route("/upload", self.read_upload, methods=["POST"]),
            Route("/stop", self.read_small, methods=["POST"]),
            Route("/health", self.health),
        ]

        async def answer_error(request, error):
            return error_response(error, request.scope)

        handlers = {FedrayError: answer_error}
        app = Admission(
            Starlette(routes=routes, exception_handlers=handlers), self.usage
        )
        self.app = AuthMiddleware(app, self.settings, error_response)

    async def health(self, request):
        return PlainTextResponse("ok")

    async def send_big(self, request):
        async def chunks():
            for _ in range(BIG // PIECE):
                yield bytes(PIECE)

        return StreamingResponse(chunks())

    async def send_whole(self, request):
        return Response(bytes(int(request.query_params["n"])))

    async def wait(self, request):
        while not self.hold.is_set():
            await asyncio.sleep(0.02)
        return PlainTextResponse("done")

    async def read_upload(self, request):
        form = await BodyReader(request, self.settings, self.disk).read()
        size = sum(upload.n_bytes for upload in form.files.values())
        form.discard()
        return json_response({"n_bytes": size, "values": list(form.values)})

    async def read_small(self, request):
        form = await BodyReader(request, self.settings).read()
        return json_response({"values": form.values, "stray": form.stray_files})

    def open(self, client: str, head: str, body: bytes = b"") -> socket.socket:
        """A connection that has sent this much of a call."""
        line = socket.create_connection(("127.0.0.1", self.port), 60)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        own = "".join(f"{k}: {v}\r\n" for k, v in self.headers[client].items())
        line.sendall(f"{head}\r\nHost: 127.0.0.1\r\n{own}\r\n".encode() + body)
        return line

    def call(self, client: str, path: str, method="GET", **options):
        url = f"http://127.0.0.1:{self.port}{path}"
        headers = self.headers[client]
        return requests.request(method, url, headers=headers, timeout=60, **options)


@pytest.fixture
def scene(tmp_path):
    scene = Scene(tmp_path)
    server = uvicorn.Server(uvicorn.Config(scene.app, port=0, log_level="critical"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        scene.port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        wait_for(lambda: server.started, "the server")
        yield scene
        scene.hold.set()
        server.should_exit = server.force_exit = True
        thread.join(60)


@contextlib.contextmanager
def lines_of(*lines):
    try:
        yield lines
    finally:
        for line in lines:
            line.close()


def test_answers_that_nobody_reads_are_not_held_in_memory(scene):
    before = psutil.Process().memory_info().rss
    lines = [scene.open("ann", "GET /big HTTP/1.1") for _ in range(30)]
    with lines_of(*lines):
        wait_for(lambda: scene.usage.total("calls") == 8, "eight unread answers")
        refused = scene.call("ann", "/big")
        assert refused.status_code == 429
        assert refused.json()["limit"] == "max_calls_per_client"
        assert int(refused.headers["Retry-After"]) > 0
        assert scene.call("bob", "/big").content == bytes(BIG)
        assert scene.call("bob", "/health").status_code == 200
        assert scene.usage.amount("bytes_in_flight", "ann") == 8 * PIECE
        assert psutil.Process().memory_info().rss - before < 300 * MIB
    wait_for(lambda: scene.usage.total("calls") == 0, "hung up")
    assert scene.usage.total("bytes_in_flight") == 0
    assert len(scene.call("ann", "/big").content) == BIG


def test_an_answer_counts_until_it_is_read(scene):
    with lines_of(scene.open("ann", f"GET /whole?n={3 * MIB} HTTP/1.1")) as [line]:
        wait_for(lambda: scene.usage.total("bytes_in_flight") == 3 * MIB, "on its way")
        refused = scene.call("ann", f"/whole?n={2 * MIB}")
        assert refused.status_code == 429
        assert refused.json()["limit"] == "max_bytes_in_flight_per_client"
        assert scene.call("ann", "/whole?n=1000").content == bytes(1000)
        n_read = 0
        while n_read < 3 * MIB:
            part = line.recv(MIB)
            assert part, "it has hung up"
            n_read += len(part)
        wait_for(lambda: scene.usage.total("bytes_in_flight") == 0, "read")
    assert scene.call("ann", f"/whole?n={2 * MIB}").content == bytes(2 * MIB)


def test_health_and_stops_have_slots_of_their_own(scene):
    with lines_of(*(scene.open("ann", "GET /hold HTTP/1.1") for _ in range(8))):
        wait_for(lambda: scene.usage.total("calls") == 8, "held calls")
        assert scene.call("ann", "/whole?n=1").status_code == 429
        assert scene.call("ann", "/health").status_code == 200
        stopped = scene.call("ann", "/stop", "POST", json={"aggregator_id": "x"})
        assert stopped.json()["values"] == {"aggregator_id": "x"}
        assert scene.call("bob", "/whole?n=1").status_code == 200
    wait_for(lambda: scene.usage.total("calls") == 8, "still held: the app waits")


HEAD = "POST /upload HTTP/1.1\r\nContent-Length: 1000000\r\nContent-Type: "
FORM = HEAD + "multipart/form-data; boundary=x"
BODY = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n'


def test_slow_bodies_hold_slots_of_their_own_client_only(scene):
    lines = [scene.open("ann", FORM, BODY) for _ in range(30)]
    with lines_of(*lines):
        wait_for(lambda: scene.usage.total("calls") == 8, "slow bodies")
        assert scene.call("ann", "/whole?n=1").status_code == 429
        sent = scene.call("bob", "/upload", "POST", files={"f": ("a", bytes(MIB))})
        assert sent.json()["n_bytes"] == MIB
        wait_for(lambda: scene.usage.total("disk") == 8_000_000, "reserved by declared")
    wait_for(lambda: scene.usage.total("calls") == 0, "hung up")
    assert scene.usage.total("disk") == scene.usage.total("unwritten") == 0
    assert list(scene.disk.upload_folder().iterdir()) == []


def test_a_client_with_many_bodies_in_memory_is_refused_and_can_still_stop(scene):
    lines = [scene.open("ann", HEAD + "application/json") for _ in range(7)]
    with lines_of(*lines):
        for line in lines:
            line.sendall(b" " * 700_000)
        wait_for(
            lambda: scene.usage.amount("bytes_in_flight", "ann") > 3.2 * MIB, "bodies"
        )
        refused = scene.call("ann", "/upload", "POST", data=b" " * MIB)
        assert refused.json()["limit"] == "max_bytes_in_flight_per_client"
        assert scene.call("ann", "/stop", "POST", json={}).status_code == 200


def test_json_counts_as_what_it_takes_once_it_is_read(scene):
    nested = b'{"a": [' + b"[]," * 60_000 + b"[]]}"
    refused = scene.call("ann", "/upload", "POST", data=nested)
    assert refused.status_code == 429
    flat = b'{"a": "' + b"x" * 100_000 + b'"}'
    assert scene.call("ann", "/upload", "POST", data=flat).status_code == 200


def test_a_call_without_files_stores_none(scene):
    sent = scene.call("ann", "/stop", "POST", files={"f": ("a", b"x"), "g": ("", b"")},
                      data={"aggregator_id": "x"})  # fmt: skip
    values = {"aggregator_id": "x", "g": ""}  # g is a file input left empty
    assert sent.json() == {"values": values, "stray": ["f"]}
    assert not (scene.settings.folder / ".incoming").exists()
