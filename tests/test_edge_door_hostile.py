"""Hostile edges at the door: refused in bounded memory and time. No Ray."""

import gzip
import hashlib
import json
import os
import socket
import ssl
import time

import psutil
import pytest
from support.certificates import make_certificates
from support.door import DoorScene
from support.simulated_edge import Call, SimulatedEdge
from support.waiting import wait_for

from fedray.edges.protocol import MAX_COMMIT, PREFIX
from fedray.edges.registry import Registry


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    limits = {"body_timeout_s": 1.0, "header_timeout_s": 1.0}
    with DoorScene(tmp_path_factory.mktemp("door"), **limits).open() as scene:
        yield scene


@pytest.fixture
def line(scene):
    with scene.connect() as connection:
        yield connection


def asked(scene, edge, **changes):
    """A task of this edge that the door knows."""
    id = hashlib.sha256(edge.name.encode()).hexdigest()[:32]
    task = scene.group.open(edge.name, id=id, **changes)
    wait_for(lambda: scene.open_run.board.task_of(edge.name, task.id), "the task")
    return task


def calls_of(edge, task, sha):
    """Every call that has a token."""
    return [
        edge.checkin(),
        edge.download(sha),
        edge.offset(task),
        edge.upload(task, 0, b"update"),
        edge.commit(task, b"update", {}),
        edge.fail(task),
        edge.leave(),
    ]


def files_below(folder):
    return {
        path: path.stat().st_size for path in folder.rglob("*") if path.suffix != ".bin"
    }


def stolen(victim, **changes):
    """An edge with another's place, or another token."""
    other = SimulatedEdge(victim.name, run=victim.run, edge=victim.edge)
    other.key = victim.key
    for name, value in changes.items():
        setattr(other, name, value)
    return other


def test_a_token_that_is_not_valid_has_no_effect_in_any_call(scene, line):
    victim, revoked = scene.enrol(), scene.enrol()
    task = asked(scene, victim)
    Registry(scene.folder).revoke(revoked.name)
    before = files_below(scene.folder)
    guesses = [
        stolen(victim),  # another secret
        stolen(victim, secret=revoked.secret),  # another edge's
        stolen(revoked, secret=revoked.secret),
        stolen(victim, edge="999999", secret=victim.secret),
        stolen(victim, edge="00", secret=victim.secret),
        stolen(victim, secret=""),
        stolen(victim, secret=victim.secret + "x"),
        stolen(victim, secret="\xff" * 43),
    ]
    for guess in guesses:
        for call in calls_of(guess, task.id, task.plan):
            answer = line.send(call)
            assert answer.status == 401
            assert answer.headers["www-authenticate"] == "Bearer"
    assert files_below(scene.folder) == before
    assert not [one for one in scene.group.failures if one[1] == victim.name]
    assert scene.group.left == []
    assert line.send(victim.checkin()).status == 200


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic eHg6eHg=", "Bearer a.b.c", "Bearer " + "x" * 9000],
)
def test_what_is_no_token_is_401(scene, line, header):
    body = SimulatedEdge(run="0" * 32, edge="0").checkin().body
    call = Call("POST", "/checkin", {"Authorization": header}, body)
    assert line.send(call).status == 401


def test_a_token_given_twice_is_401(scene, line):
    edge = scene.enrol()
    line.http.putrequest("POST", f"{PREFIX}/checkin")
    for _ in range(2):
        line.http.putheader("Authorization", f"Bearer {edge.token}")
    line.http.putheader("Content-Length", "0")
    line.http.endheaders()
    answer = line.http.getresponse()
    answer.read()
    assert answer.status == 401


def test_another_edges_task_is_refused_in_every_call_and_stays_as_it_was(scene, line):
    victim, thief = scene.enrol(), scene.enrol()
    task = asked(scene, victim)
    line.send(victim.upload(task.id, 0, b"half"))
    assert line.send(thief.offset(task.id)).status == 409
    assert line.send(thief.upload(task.id, 4, b"more")).status == 409
    answer = line.send(thief.commit(task.id, b"half", {"loss": 0}))
    assert answer.json()["verdict"] == "late"
    assert line.send(thief.fail(task.id)).status == 200
    assert line.send(thief.download(task.plan)).status == 404
    assert task.id not in scene.group.commits
    assert not [one for one in scene.group.failures if one[1] == thief.name]
    assert line.send(victim.offset(task.id)).headers["upload-offset"] == "4"
    assert line.send(victim.checkin(task=task.id, state="sending")).status == 204
    assert line.send(thief.checkin(task=task.id)).headers["edge-task"] == "void"


def test_one_invitation_enrols_one_edge_however_often_it_is_tried(scene, line):
    (text,) = Registry(scene.folder).invite()
    line.send(SimulatedEdge().enrol(text))
    file = scene.folder / "edges" / "edges.jsonl"
    size, memory = file.stat().st_size, psutil.Process().memory_info().rss
    edge = SimulatedEdge()
    for i in range(300):
        answer = line.send(edge.enrol(text, token_hash=f"{i:064x}"))
        assert answer.status == 409
    assert file.stat().st_size == size
    assert psutil.Process().memory_info().rss < memory + (20 << 20)


@pytest.mark.parametrize(
    "invitation",
    [
        *("", "x" * 10_000, "fedray-invite", 5, None, ["a"], {"a": 1}),
        "fedray-invite." + "0" * 32 + "." + "x" * 42,
        "fedray-invite.../../../etc." + "x" * 43,
    ],
)
def test_what_is_no_invitation_enrols_nobody(scene, line, invitation):
    answer = line.send(SimulatedEdge().enrol(invitation))
    assert answer.status in (403, 422)


def test_an_upload_that_never_ends_takes_no_more_than_its_task_may(scene):
    edge = scene.enrol()
    task = asked(scene, edge, max_bytes=3 << 20)
    with scene.connect() as endless:
        http = endless.http
        http.putrequest("PATCH", f"{PREFIX}/tasks/{task.id}/update")
        for name, value in edge.upload(task.id, 0, b"").headers.items():
            http.putheader(name, value)
        http.putheader("Transfer-Encoding", "chunked")
        http.endheaders()
        piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        for _ in range(200):  # 13 MB
            http.send(piece)
        assert http.getresponse().status == 413
    with scene.connect() as line:
        path = scene.open_run.uploads._path(task.id)
        assert path.stat().st_size <= 3 << 20
        assert line.send(edge.offset(task.id)).status == 204


def test_an_upload_that_stands_still_is_ended_and_goes_on_later(scene, line):
    edge = scene.enrol()
    task = asked(scene, edge)
    with scene.connect() as slow:
        slow.http.putrequest("PATCH", f"{PREFIX}/tasks/{task.id}/update")
        for name, value in edge.upload(task.id, 0, b"").headers.items():
            slow.http.putheader(name, value)
        slow.http.putheader("content-length", "100")
        slow.http.endheaders()
        slow.http.send(b"0123456789")
        answer = slow.http.getresponse()
        assert (answer.status, answer.read()[:10]) == (408, b'{"error":"')
    assert line.send(edge.offset(task.id)).headers["upload-offset"] == "10"


def test_a_body_that_inflates_is_not_read(scene, line):
    bomb = gzip.compress(b"[" * (8 << 20))
    edge = scene.enrol()
    call = edge.checkin()
    headers = {**call.headers, "Content-Encoding": "gzip"}
    assert line.send(Call("POST", "/checkin", headers, bomb)).status == 415
    plain = Call("POST", "/checkin", call.headers, bomb[:5000])
    assert line.send(plain).status == 422


def test_json_that_is_deep_wide_or_long_is_refused_in_bounded_memory(scene, line):
    edge = scene.enrol()
    token = edge.checkin().headers
    memory = psutil.Process().memory_info().rss
    for body, status in (
        (b"[" * 65_000, 422),
        (b'{"have":[' + b'"a",' * 16_000 + b'"a"]}', 422),
        (b"{" + b'"x":1,' * 10_000 + b'"x":1}', 422),
        (b'{"share":' + b"9" * 60_000 + b"}", 422),
        (b'"' + b"\\u0000" * 10_000 + b'"', 422),
        (b"\xff" * 1000, 422),
        (b"x" * (65 << 10), 413),
    ):
        assert line.send(Call("POST", "/checkin", token, body)).status == status
    task = asked(scene, edge)
    path = f"/tasks/{task.id}/commit"
    answer = line.send(Call("POST", path, token, b"x" * (MAX_COMMIT + 1)))
    assert answer.status == 413
    deep = json.dumps({"size": 0, "sha256": "0" * 64, "signature": "0" * 128})
    body = deep[:-1].encode() + b',"report":"' + b"[" * 500_000 + b'"}'
    assert line.send(Call("POST", path, token, body)).status == 422
    assert psutil.Process().memory_info().rss < memory + (60 << 20)


def test_paths_lead_nowhere_else(scene, line):
    edge = scene.enrol()
    asked(scene, edge)
    secret = scene.folder / "edges" / "edges.jsonl"
    names = ("..%2f..%2fedges%2fedges.jsonl", "../../edges/edges.jsonl", str(secret))
    for name in (*names, "%00", "a" * 63, "A" * 64, "٣" * 64):
        for path in (f"/objects/{name}", f"/tasks/{name}/update"):
            call = Call("GET", path.encode("latin-1", "replace").decode("latin-1"))
            headers = edge.checkin().headers
            answer = line.send(Call(call.method, call.path, headers))
            assert answer.status in (404, 405, 409)
            assert b"token_hash" not in answer.body


def test_errors_say_no_path_of_the_service(scene, line, monkeypatch):
    edge = scene.enrol()
    task = asked(scene, edge)

    def fail(*_):
        raise OSError(5, "Input/output error", str(scene.folder / "spool"))

    monkeypatch.setattr("fedray.edge_door.uploads.Upload._append", fail)
    answer = line.send(edge.upload(task.id, 0, b"x"))
    assert answer.status == 500
    assert str(scene.folder) not in answer.body.decode()
    monkeypatch.undo()
    assert line.send(edge.upload(task.id, 0, b"x")).status == 204


def test_a_full_disk_is_507_and_the_upload_goes_on_later(scene, line, monkeypatch):
    edge = scene.enrol()
    task = asked(scene, edge)

    def fail(*_):
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(os, "pwrite", fail)
    answer = line.send(edge.upload(task.id, 0, b"x"))
    assert (answer.status, answer.headers["retry-after"]) == (507, "60")
    monkeypatch.undo()
    assert line.send(edge.upload(task.id, 0, b"x")).status == 204


@pytest.fixture
def small_scene(tmp_path):
    """A door with TLS and few places, so that few connections fill it."""
    made = make_certificates(tmp_path)
    scene = DoorScene(
        tmp_path / "door",
        (str(made.cert), str(made.key)),
        max_connections=60,
        max_connections_per_address=60,
        header_timeout_s=1.0,
    )
    scene.ca = str(made.ca)
    with scene.open():
        yield scene


def test_thousands_of_idle_connections_keep_no_edge_out(small_scene):
    scene = small_scene
    edge = scene.enrol()
    context = ssl.create_default_context(cafile=scene.ca)
    idle = [socket.create_connection(("127.0.0.1", scene.port)) for _ in range(700)]
    for one in idle[:30]:
        one.sendall(b"\x16\x03")  # a handshake begins
    shaken = []
    for _ in range(150):
        raw = socket.create_connection(("127.0.0.1", scene.port), timeout=600)
        shaken.append(context.wrap_socket(raw, server_hostname="localhost"))
    for one in shaken[-40:]:
        one.sendall(b"POST /edge/v1/checkin HTTP/1.1\r\nHost: x\r\nAuthor")
    started = time.process_time()
    for _ in range(5):
        with scene.connect(ca=scene.ca) as line:
            assert line.send(edge.checkin()).status == 204
    assert time.process_time() - started < 20
    n_open = len(scene.server.server_state.connections)
    assert n_open <= 60 + 24 + 32
    for one in (*idle, *shaken):
        one.close()


def test_plain_http_to_a_door_with_tls_gets_nothing(small_scene):
    with socket.create_connection(("127.0.0.1", small_scene.port), 600) as plain:
        plain.sendall(b"GET /edge/v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        try:
            while piece := plain.recv(4096):
                received += piece
        except ConnectionError:
            pass
    assert b"HTTP" not in received


def test_a_renewed_certificate_is_used_and_a_broken_one_is_not(small_scene, caplog):
    scene = small_scene
    cert, key = scene.tls
    before = open(cert, "rb").read()
    with scene.connect(ca=scene.ca) as line:
        assert line.send(Call("GET", "/health")).status == 200
    with open(cert, "w") as file:
        file.write("no certificate")
    with scene.connect(ca=scene.ca) as line:
        assert line.send(Call("GET", "/health")).status == 200
    assert any("the certificate before goes on" in text for text in caplog.messages)
    with open(cert, "wb") as file:
        file.write(before)
    made = make_certificates(scene.folder)
    for old, new in ((key, made.key), (cert, made.cert)):
        os.replace(new, old)
    with scene.connect(ca=str(made.ca)) as line:
        assert line.send(Call("GET", "/health")).status == 200
