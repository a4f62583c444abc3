"""What the simulated edge sends is what the protocol declares, by code of its own."""

import hashlib
import http.server
import json
import struct
import threading

import numpy as np
import pytest
from safetensors.numpy import load, save
from support.faulty_proxy import UP, Fault, FaultyProxy, each
from support.simulated_edge import (
    Answer,
    Connection,
    Refused,
    SimulatedEdge,
    metadata_of,
    send_update,
    with_metadata,
)

from fedray.edges.protocol import (
    CheckIn,
    Commit,
    Enrol,
    Enrolment,
    Fail,
    hash_secret,
    read_token,
    write_invitation,
)

RUN, TASK = "a" * 32, "d" * 32


@pytest.fixture
def edge():
    answer = Enrolment(run=RUN, party=7, name="h", edge="7")
    return SimulatedEdge().enrolled(Answer(201, {}, answer.to_json()))


def test_its_messages_are_those_of_the_protocol(edge):
    invitation = write_invitation(RUN, "s" * 43)
    enrol = Enrol.parse(edge.enrol(invitation).body)
    assert enrol.token_hash == hash_secret(edge.secret)
    assert CheckIn.parse(edge.checkin(3).body).wait_s == 3
    assert Fail.parse(edge.fail(TASK).body).kind == "other"
    token = edge.leave().headers["Authorization"].removeprefix("Bearer ")
    assert read_token(token) == (RUN, 7, edge.secret)


def test_a_commit_is_signed_as_the_protocol_says(edge):
    commit = Commit.parse(edge.commit(TASK, b"abc", {"n_samples": 3}).body)
    assert (commit.size, commit.sha256) == (3, hashlib.sha256(b"abc").hexdigest())
    assert json.loads(commit.report) == {"n_samples": 3}
    signature = bytes.fromhex(commit.signature)
    edge.key.public_key().verify(signature, commit.signed_bytes(TASK))


def test_an_update_is_the_base_with_metadata_of_its_own():
    base = save({"w": np.arange(6, dtype=np.float32).reshape(2, 3)})
    task = {"run": "r", "round": 2, "party": 1, "base": "c" * 64}
    content = with_metadata(base, metadata_of(task))
    (n,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + n])
    assert header["__metadata__"] == {
        "run": "r", "round": "2", "party": "1", "base": "c" * 64, "n_samples": "40",
    }  # fmt: skip
    assert np.array_equal(load(content)["w"], load(base)["w"])


class Uploads(http.server.BaseHTTPRequestHandler):
    """Keeps one upload, as a door would."""

    protocol_version = "HTTP/1.1"
    content = bytearray()

    def do_HEAD(self):
        return self._answer()

    def do_PATCH(self):
        if int(self.headers["Upload-Offset"]) != len(self.content):
            self.close_connection = True  # the body is not read
            return self._answer(409)
        left = int(self.headers["Content-Length"])
        while left and (piece := self.rfile.read1(min(left, 4096))):
            self.content.extend(piece)
            left -= len(piece)
        return self._answer()

    def _answer(self, status=204):
        self.send_response(status)
        self.send_header("Upload-Offset", str(len(self.content)))
        self.end_headers()

    def log_message(self, *_):
        pass


def test_an_upload_goes_on_where_it_broke_off(edge):
    content = bytes(range(256)) * 2000
    Uploads.content.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Uploads) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        faults = each(Fault("drop", UP, 200_000))
        with FaultyProxy(server.server_address[1], faults) as proxy:
            for _ in range(2):
                try:
                    with Connection(proxy.port) as connection:
                        send_update(edge, connection, TASK, content)
                except (ConnectionError, Refused):
                    continue
        server.shutdown()
    assert bytes(Uploads.content) == content
