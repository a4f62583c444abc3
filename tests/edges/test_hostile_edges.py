"""Hostile edges over the whole stack: door, EdgeGroup, aggregator. Others go on."""

import contextlib
import itertools
import socket
import ssl
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.certificates import make_certificates
from support.cluster_runs import BackgroundRun
from support.edge_players import Player
from support.edge_scene import actor_pid
from support.hostile_edges import BAD, honest
from support.memory_group import pss
from support.simulated_edge import (
    PREFIX,
    REPORT,
    Call,
    Connection,
    SimulatedEdge,
    bearer,
)
from support.waiting import PATIENCE_S, wait_for

from fedray.checkpoint import RunFolder
from fedray.edge_door.actor import DoorSettings
from fedray.edges.registry import Registry
from fedray.service.settings import Settings

HONEST, HOSTILE = ("a", "b"), ("h0", "h1", "h2", "h3")
MIB = 1 << 20
NET = """
    from torch import nn

    def net():
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 4), nn.Linear(4, 10))
"""


@pytest.fixture(scope="module")
def door(cluster, tmp_path_factory):
    """The edges' door on the session's cluster, with TLS."""
    folder = tmp_path_factory.mktemp("door")
    made = make_certificates(folder)
    settings = DoorSettings("127.0.0.1", 0, str(made.cert), str(made.key))
    service = Settings(root=str(folder / "root"), body_timeout_s=2.0)
    with settings.listening() as listener:
        running = settings.start(service, listener)
        yield SimpleNamespace(port=listener.port, ca=str(made.ca), folder=folder)
        running.stop()


def connect(door) -> Connection:
    return Connection(door.port, door.ca)


def enrol(door, run: Path, name: str) -> SimulatedEdge:
    (invitation,) = Registry(run).invite(name)
    edge = SimulatedEdge(name)
    with connect(door) as connection:
        call = edge.enrol(invitation)
        answer = wait_for(lambda: _enrolled(connection.send(call)), "the run's door")
        return edge.enrolled(answer)


def _enrolled(answer):
    assert answer.status in (201, 503), answer
    return answer if answer.status == 201 else None


@pytest.fixture(scope="module")
def stage(door, tmp_path_factory, digits_file):
    """A run of two honest edges and four hostile ones, all enrolled; none calls yet."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "net.py").write_text(textwrap.dedent(NET))
    settings = {
        "architecture": f"{folder / 'net.py'}:net",
        "data_handler": "mnist_pytorch",
        "learning_rate": 0.1,
        "test_data": digits_file,
        "evaluate_every": 1000,
        "max_refused": 1000,
        "quorum": 0.3,
        "max_update_norm": 1000.0,
        "parties": [{"name": name, "edge": True} for name in HONEST + HOSTILE],
    }
    run = BackgroundRun(settings, folder / "run")
    edges = {name: enrol(door, run.folder, name) for name in HONEST + HOSTILE}
    players = {
        name: Player(edges[name], lambda: connect(door), honest) for name in HONEST
    }
    yield SimpleNamespace(run=run, edges=edges, players=players, door=door)
    for player in players.values():
        with contextlib.suppress(AttributeError):  # it was not started
            player.stop()
    run.stop()


@pytest.fixture(scope="module")
def digits_file(tmp_path_factory) -> str:
    from fedray.data import MnistPytorch

    path = tmp_path_factory.mktemp("data") / "test.npz"
    (x, y), (x_test, y_test) = MnistPytorch("mnist").get_data()
    arrays = {"x_train": x[:20], "y_train": y[:20]}
    np.savez(path, **arrays, x_test=x_test[:20], y_test=y_test[:20])
    return str(path)


@pytest.fixture(scope="module")
def played(stage):
    """Every bad update sent once by a hostile edge, a few in each round."""
    bad, seen, lock = iter(BAD), {}, threading.Lock()

    def make_for(name):
        def make(base, task):
            with lock:
                one = next(bad, None)
            if one is None:
                return honest(base, task)
            seen[one.name] = (name, task["round"])
            return one.make(base, task)

        return make

    for player in stage.players.values():
        player.start()
    hostile = {
        name: Player(stage.edges[name], lambda: connect(stage.door), make_for(name))
        for name in HOSTILE
    }
    for player in hostile.values():
        player.start()
    everybody = [*stage.players.values(), *hostile.values()]

    def is_done() -> bool:
        assert stage.run.thread.is_alive(), stage.run.error
        assert [one.errors for one in everybody if one.errors] == []
        return len(seen) == len(BAD)

    wait_for(is_done, "all bad updates", PATIENCE_S)
    last = max(round for _, round in seen.values())
    stage.run.wait_for_round(last + 1)
    for player in hostile.values():
        player.stop()
    return seen


def history(stage):
    return RunFolder(stage.run.folder).history()


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_a_bad_update_is_refused_and_the_others_count(stage, played, bad):
    name, round = played[bad.name]
    (line,) = [line for line in history(stage) if line.round == round]
    outcomes = {party.name: str(party.outcome) for party in line.parties}
    assert outcomes[name].startswith(("refused", "failed")), outcomes
    assert bad.why in outcomes[name]
    assert [outcomes[name] for name in HONEST] == ["fused", "fused"]


def test_bad_updates_do_not_move_the_weights(stage, played):
    """Each honest update adds 1 to every number: after n rounds they are n more."""
    folder = RunFolder(stage.run.folder)
    newest, _ = folder.newest_checkpoint()
    lines = [line for line in history(stage) if line.round <= newest.round]
    assert len(lines) == newest.round
    for array in newest.weights.values():
        assert np.isfinite(array).all()
        assert np.abs(array - newest.round).max() < 1.0  # where they began
    assert not Path("/tmp/fedray-was-hacked").exists()


def open_task(stage, name: str) -> dict:
    """The training that an edge is asked for now; it is not done."""
    with connect(stage.door) as connection:
        edge = stage.edges[name]

        def ask():
            answer = connection.send(edge.checkin(wait_s=5))
            return answer.json() if answer.status == 200 else None

        return wait_for(ask, f"a task of {name}")


def calls_with(edge: SimulatedEdge, task: dict) -> dict[str, Call]:
    """Every call that names a task."""
    id = task["id"]
    return {
        "offset": edge.offset(id),
        "upload": edge.upload(id, 0, b"x" * 100),
        "commit": edge.commit(id, b"", REPORT),
        "fail": edge.fail(id),
    }


def test_an_edge_can_do_nothing_with_the_task_of_another(stage, played):
    theirs, mine = open_task(stage, "h1"), open_task(stage, "h0")
    with connect(stage.door) as connection:
        for name, call in calls_with(stage.edges["h0"], theirs).items():
            answer = connection.send(call)
            if name == "fail":
                continue  # of what is not its own it fails nothing
            is_refused = answer.status == 409 or answer.json()["verdict"] != "taken"
            assert is_refused, answer
            if name == "upload":
                assert answer.json()["task"] == mine["id"]
    assert open_task(stage, "h1")["id"] == theirs["id"]  # it still has it


def test_tokens_that_are_none_open_nothing_and_all_are_answered_alike(stage, played):
    one, other = stage.edges["h0"], stage.edges["a"]
    task, run = open_task(stage, "h0"), one.run
    tokens = [
        f"{run}.{other.edge}.{one.secret}",  # another's id
        f"{run}.{one.edge}.{'A' * 43}",
        f"{run}.99999.{one.secret}",
        f"{run}.-1.{one.secret}",
        f"{run}.{one.edge}.{one.secret}x",
        f"{run}.{one.edge}.",
        f"{run}..{one.secret}",
        "x" * 60_000,
        "é",
        "",
    ]
    answers = set()
    with connect(stage.door) as connection:
        for token in tokens:
            calls = [one.checkin(), one.leave(), one.download(task["base"])]
            for call in [*calls, *calls_with(one, task).values()]:
                headers = dict(call.headers) | {"Authorization": f"Bearer {token}"}
                headers["Authorization"] = headers["Authorization"].encode()
                forged = Call(call.method, call.path, headers, call.body)
                answer = connection.send(forged)
                assert answer.status in (401, 400, 431), (token[:50], answer)
                if answer.status == 401 and call.method != "HEAD":
                    answers.add(answer.body)
        other_run = Call("POST", "/checkin", bearer(f"{'0' * 32}.1.{one.secret}"))
        assert connection.send(other_run).status in (401, 503)
        assert connection.send(Call("POST", "/leave", {}, b"{}")).status == 401
    assert len(answers) == 1, answers
    assert open_task(stage, "h0")["id"] == task["id"]


def test_ids_and_paths_that_are_guessed_lead_nowhere(stage, played):
    edge, task = stage.edges["h0"], open_task(stage, "h0")
    guesses = [
        "0" * 64, "..", "../../edges.jsonl", "..%2f..%2fedges.jsonl", "%00", "." * 64,
        task["base"][:63], task["base"].upper(), task["base"] + "/x", task["id"],
        "a" * 500,
    ]  # fmt: skip
    with connect(stage.door) as connection:
        for guess in guesses:
            answer = connection.send(edge.download(guess))
            assert answer.status in (400, 404), (guess, answer)
            if guess == task["id"]:
                continue  # its own: it may be uploaded to
            answer = connection.send(edge.upload(guess, 0, b"x"))
            assert answer.status in (400, 404, 405, 409), (guess, answer)
    spool = stage.run.folder / "edges"
    assert stat_mode(spool / "spool") == 0o700
    names = {path.name for path in (spool / "spool" / "uploads").iterdir()}
    assert all(len(name) == 37 and name.endswith(".part") for name in names), names


def stat_mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_one_invitation_enrols_one_key_however_often_it_is_tried(stage, played):
    (invitation,) = Registry(stage.run.folder).invite("late-comer")
    files = sorted((stage.run.folder / "edges").glob("*.jsonl"))
    first = SimulatedEdge("late-comer")
    with connect(stage.door) as connection:
        answer = connection.send(first.enrol(invitation))
        first.enrolled(answer)
        sizes = [file.stat().st_size for file in files]
        started, n_tries = time.monotonic(), 300
        for _ in range(n_tries):
            again = connection.send(SimulatedEdge("late-comer").enrol(invitation))
            assert again.status == 409, again
        seconds = time.monotonic() - started
        assert connection.send(first.enrol(invitation)).body == answer.body
        assert [file.stat().st_size for file in files] == sizes
        guessed = invitation[:-6] + "AAAAAA"
        assert connection.send(SimulatedEdge().enrol(guessed)).status == 403
        assert connection.send(first.leave()).status == 200
        assert connection.send(first.checkin()).status == 401
        assert connection.send(first.enrol(invitation)).status == 403
    assert seconds / n_tries < 0.5  # a million of them write nothing and take no lock


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"[" * 60_000, b'{"a":' * 10_000, b"\xff" * 100,
     b'{"instance": NaN}', b"9" * 60_000, b'{"wait_s": 1e999}', b'"' + b"x" * 60_000],
    ids=lambda body: repr(body[:10]),
)  # fmt: skip
def test_bodies_that_are_no_messages_are_refused(stage, played, body):
    edge, task = stage.edges["h0"], open_task(stage, "h0")
    paths = ["/enrol", "/checkin", f"/tasks/{task['id']}/commit"]
    with connect(stage.door) as connection:
        for path in paths:
            answer = connection.send(Call("POST", path, bearer(edge.token), body))
            assert answer.status in (400, 413, 422), (path, answer)


def test_bodies_that_are_too_large_or_inflate_are_not_read(stage, played):
    edge, task = stage.edges["h0"], open_task(stage, "h0")
    id = task["id"]
    with connect(stage.door) as connection:
        for encoding in ("gzip", "deflate", "br", "zstd"):
            call = edge.upload(
                id, 0, b"\x1f\x8b" * 50, **{"Content-Encoding": encoding}
            )
            assert connection.send(call).status == 415
    too_large = {
        "checkin": ("POST", "/checkin", 1 << 20),
        "commit": ("POST", f"/tasks/{id}/commit", 64 << 20),
        "update": ("PATCH", f"/tasks/{id}/update", 1 << 40),
    }
    for method, path, length in too_large.values():
        more = f"Content-Length: {length}\r\nUpload-Offset: 0"
        head = head_of(edge, f"{method} {PREFIX}{path}", more)
        assert status_of(stage.door, head, [b"x" * 1000]) == 413
    more = "Transfer-Encoding: chunked\r\nUpload-Offset: 0"
    chunk = b"%x\r\n" % MIB + bytes(MIB) + b"\r\n"
    head = head_of(edge, f"PATCH {PREFIX}/tasks/{id}/update", more)
    status = status_of(stage.door, head, itertools.repeat(chunk, 64))
    assert status in (409, 413)
    part = stage.run.folder / "edges" / "spool" / "uploads" / f"{id}.part"
    assert not part.exists() or part.stat().st_size <= task["max_bytes"]


def line_to(door) -> ssl.SSLSocket:
    """A connection with TLS."""
    context = ssl.create_default_context(cafile=door.ca)
    line = socket.create_connection(("127.0.0.1", door.port), timeout=PATIENCE_S)
    return context.wrap_socket(line, server_hostname="localhost")


def head_of(edge: SimulatedEdge, call: str, more: str) -> bytes:
    """Request line and headers."""
    lines = [f"{call} HTTP/1.1", "Host: localhost", more]
    lines += [f"Authorization: Bearer {edge.token}", "", ""]
    return "\r\n".join(lines).encode()


def status_of(door, head: bytes, pieces) -> int:
    """Status of a call that is sent as it stands; 0 if the connection just ends."""
    with line_to(door) as line:
        with contextlib.suppress(OSError):
            line.sendall(head)
            for piece in pieces:
                line.sendall(piece)
        with contextlib.suppress(OSError):
            if answer := line.recv(4096):
                return int(answer.split()[1])
        return 0


def test_others_go_on_beside_idle_lines_and_uploads_that_never_end(stage, played):
    edge, task = stage.edges["h0"], open_task(stage, "h0")
    pid = actor_pid("edge-door")
    before, round = pss({pid}), stage.run.round
    lines = []
    try:
        for _ in range(300):  # no TLS at all
            lines.append(socket.create_connection(("127.0.0.1", stage.door.port)))
        for _ in range(100):  # nothing after TLS
            lines.append(line_to(stage.door))
        slow = line_to(stage.door)
        lines.append(slow)
        more = f"Upload-Offset: 0\r\nContent-Length: {task['max_bytes']}"
        call = f"PATCH {PREFIX}/tasks/{task['id']}/update"
        slow.sendall(head_of(edge, call, more) + b"x")
        players = [
            Player(stage.edges[name], lambda: connect(stage.door), honest).start()
            for name in HOSTILE
        ]
        stage.run.wait_for_round(round + 2)
        assert pss({pid}) - before < 64 * MIB
        for player in players:
            player.stop()
    finally:
        for line in lines:
            line.close()
