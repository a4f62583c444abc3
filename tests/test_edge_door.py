"""The edges' door: every call, what it answers, what survives a kill. No Ray."""

import asyncio
import hashlib
import json
import random
import threading
import time

import pytest
from support.door import DoorScene
from support.simulated_edge import Call, Connection, SimulatedEdge, json_call
from support.waiting import wait_for

from fedray.edge_door.calls import MAX_WAITING
from fedray.edge_door.uploads import Upload
from fedray.edges import pacing
from fedray.edges.contacts import read_contacts
from fedray.edges.protocol import CHUNK, MAX_BODY, Task
from fedray.edges.registry import Registry


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """One door for all tests that do not end it: each has an edge of its own."""
    with DoorScene(tmp_path_factory.mktemp("door")).open() as scene:
        yield scene


@pytest.fixture
def line(scene):
    with scene.connect() as connection:
        yield connection


@pytest.fixture
def own_scene(tmp_path):
    """A door that may be killed, or whose run may end."""
    with DoorScene(tmp_path).open() as scene:
        yield scene


@pytest.fixture
def own_line(own_scene):
    with own_scene.connect() as connection:
        yield connection


def in_thread(call, *arguments):
    """The list that will have what a call returns."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(call(*arguments)))
    thread.start()
    answers_of = {"thread": thread, "answers": answers}
    return answers_of


def ended(running):
    running["thread"].join(60)
    (answer,) = running["answers"]
    return answer


def checking_in(scene, edge, **changes):
    """A check-in that waits, on a connection of its own."""

    def send():
        with scene.connect() as connection:
            return connection.send(edge.checkin(**{"wait_s": 20, **changes}))

    return in_thread(send)


def waiting(scene, edge):
    return lambda: edge.name in scene.open_run.board._waiting


def test_an_edge_goes_through_all_calls(own_scene, own_line):
    scene, line = own_scene, own_line
    edge = scene.enrol("hospital-a")
    assert line.send(edge.checkin()).status == 204
    weights = bytes(range(256)) * 100
    base = scene.group.add_object(weights)
    task = scene.group.open("hospital-a", base=base, base_bytes=len(weights))
    wait_for(lambda: scene.open_run.board.next_task("hospital-a"), "the task")
    answer = line.send(edge.checkin())
    assert Task.parse(answer.body) == task
    assert line.send(edge.download(base)).body == weights
    update = b"update" * 1000
    assert line.send(edge.offset(task.id)).headers["upload-offset"] == "0"
    answer = line.send(edge.upload(task.id, 0, update))
    assert (answer.status, answer.headers["upload-offset"]) == (204, "6000")
    answer = line.send(edge.commit(task.id, update, {"loss": 1.5}))
    assert (answer.status, answer.json()["verdict"]) == (200, "taken")
    submission, _ = scene.group.commits[task.id]
    assert (submission.name, submission.report) == ("hospital-a", {"loss": 1.5})
    assert scene.group.contents[task.id] == update
    again = line.send(edge.commit(task.id, update, {"loss": 1.5}))
    assert (again.status, again.body) == (200, answer.body)
    other = line.send(edge.commit(task.id, b"other", {"loss": 1.5}))
    assert other.status == 409
    assert other.json()["sha256"] == submission.sha256
    row = read_contacts(scene.folder / "edges", 1)[0]
    assert (row["bytes_up"], row["bytes_down"]) == (6000, len(weights))
    assert (row["round"], row["version"]) == (1, b"0.1.0")


def test_a_check_in_that_waits_is_answered_when_a_task_is_there(scene):
    edge = scene.enrol()
    running = checking_in(scene, edge)
    wait_for(waiting(scene, edge), "the check-in")
    task = scene.group.open(edge.name)
    answer = ended(running)
    assert (answer.status, answer.json()["id"]) == (200, task.id)


def test_one_edge_cannot_take_the_places_of_all_that_wait(scene, line):
    edge = scene.enrol()
    running = [checking_in(scene, edge) for _ in range(MAX_WAITING)]
    n_open = scene.open_run.presence._n_open
    wait_for(lambda: sum(n_open.values()) == MAX_WAITING, "the check-ins")
    answer = line.send(edge.checkin(wait_s=20))
    assert (answer.status, answer.headers["retry-after"] > "0") == (204, True)
    task = scene.group.open(edge.name)
    assert {Task.parse(ended(one).body).id for one in running} == {task.id}


def test_a_check_in_that_waits_in_vain_is_answered_204_come_back_at_once(scene, line):
    edge = scene.enrol()
    answer = line.send(edge.checkin(wait_s=0.05))
    assert (answer.status, answer.headers["retry-after"]) == (204, "0")
    answer = line.send(edge.checkin())
    assert (answer.status, answer.headers["retry-after"]) == (204, "1")


def test_a_task_is_given_again_after_a_lost_answer_and_goes_on_while_it_trains(
    scene, line
):
    edge = scene.enrol()
    task = scene.group.open(edge.name)
    wait_for(lambda: scene.open_run.board.next_task(edge.name), "the task")
    for _ in range(2):
        assert line.send(edge.checkin()).json()["id"] == task.id
    answer = line.send(edge.checkin(state="training", task=task.id, wait_s=0.05))
    assert (answer.status, "edge-task" in answer.headers) == (204, False)
    answer = line.send(edge.checkin(state="training", task=task.id))
    assert 24 <= int(answer.headers["retry-after"]) <= 36


def test_an_edge_that_trains_hears_at_once_that_its_task_is_void(scene):
    edge = scene.enrol()
    task = scene.group.open(edge.name)
    wait_for(lambda: scene.open_run.board.next_task(edge.name), "the task")
    running = checking_in(scene, edge, state="training", task=task.id)
    wait_for(waiting(scene, edge), "the check-in")
    scene.group.close(task)
    answer = ended(running)
    assert (answer.status, answer.headers["edge-task"]) == (204, "void")


def test_an_edge_that_trains_hears_at_once_of_another_task(scene):
    edge = scene.enrol()
    first = scene.group.open(edge.name)
    wait_for(lambda: scene.open_run.board.next_task(edge.name), "the task")
    running = checking_in(scene, edge, state="training", task=first.id)
    wait_for(waiting(scene, edge), "the check-in")
    del scene.group.tasks[first.id]
    second = scene.group.open(edge.name, id="e" * 32, round=2)
    assert ended(running).json()["id"] == second.id


def test_the_end_of_a_run_is_410_with_the_reason_at_once_and_after_a_kill(
    own_scene, own_line
):
    scene, line = own_scene, own_line
    edge, invited = scene.enrol(), Registry(scene.folder).invite()[0]
    running = checking_in(scene, edge)
    wait_for(waiting(scene, edge), "the check-in")
    scene.call(scene.runs.close, scene.run_id, "all rounds are done")
    calls = [edge.checkin(), edge.fail("0" * 32), SimulatedEdge().enrol(invited)]
    answers = [ended(running), *map(line.send, calls)]
    scene.kill()
    scene.start()
    answers.append(line.send(edge.checkin()))
    for answer in answers:
        assert answer.status == 410
        assert answer.json()["reason"] == "all rounds are done"


def test_a_group_says_that_its_run_has_ended(own_scene, own_line):
    scene, line = own_scene, own_line
    edge = scene.enrol()
    scene.group.end("stopped by its operator")
    wait_for(lambda: scene.open_run.ended, "the end")
    assert line.send(edge.checkin()).json()["reason"] == "stopped by its operator"


def test_an_upload_goes_on_at_the_byte_where_it_broke_off_also_after_a_kill(
    own_scene, own_line
):
    scene, line = own_scene, own_line
    edge = scene.enrol()
    task = scene.group.open(edge.name, max_bytes=1 << 22)
    wait_for(lambda: scene.open_run.board.next_task(edge.name), "the task")
    update = random.Random(0).randbytes(2 << 20)
    path = scene.open_run.uploads._path(task.id)
    with scene.connect() as broken:
        begin_upload(broken, edge, task, len(update))
        broken.http.send(update[: 3 << 19])
        wait_for(lambda: path.exists() and path.stat().st_size >= 1 << 20, "bytes")
    (upload,) = scene.open_run.uploads._by_task.values()
    answer = line.send(edge.upload(task.id, 0, update))
    n_there = path.stat().st_size
    assert (answer.status, answer.headers["upload-offset"]) == (409, str(n_there))
    assert 1 << 20 <= n_there <= 3 << 19
    piece = update[n_there:][:5000]
    assert line.send(edge.upload(task.id, n_there, piece)).status == 204
    assert upload.n_bytes == n_there + 5000
    scene.kill()
    scene.start()
    wait_for(lambda: not scene.open_run.unready, "the group's tasks")
    offset = str(n_there + 5000)
    assert line.send(edge.offset(task.id)).headers["upload-offset"] == offset
    answer = line.send(edge.commit(task.id, update, {}))
    assert (answer.status, answer.headers["upload-offset"]) == (409, offset)
    assert f"{offset} of {2 << 20} bytes have arrived" in answer.json()["detail"]
    rest = update[n_there + 5000 :]
    assert line.send(edge.upload(task.id, n_there + 5000, rest)).status == 204
    assert line.send(edge.commit(task.id, update, {})).json()["verdict"] == "taken"
    assert scene.group.contents[task.id] == update


def begin_upload(connection, edge, task, n_bytes):
    """The head of a call that sends a part of an update."""
    connection.http.putrequest("PATCH", f"/edge/v1/tasks/{task.id}/update")
    for name, value in edge.upload(task.id, 0, b"").headers.items():
        connection.http.putheader(name, value)
    connection.http.putheader("content-length", str(n_bytes))
    connection.http.endheaders()


def test_bytes_that_are_not_the_file_are_deleted_and_sent_again(scene, line):
    edge = scene.enrol()
    task = scene.group.open(edge.name)
    wait_for(lambda: scene.open_run.board.next_task(edge.name), "the task")
    line.send(edge.upload(task.id, 0, b"wrong"))
    answer = line.send(edge.commit(task.id, b"right", {}))
    assert (answer.status, answer.headers["upload-offset"]) == (409, "0")
    line.send(edge.upload(task.id, 0, b"right"))
    assert line.send(edge.commit(task.id, b"right", {})).status == 200


def test_a_file_that_is_too_long_begins_anew(scene, line):
    edge = scene.enrol()
    task = scene.group.open(edge.name)
    wait_for(lambda: scene.open_run.board.next_task(edge.name), "the task")
    line.send(edge.upload(task.id, 0, b"right and more"))
    answer = line.send(edge.commit(task.id, b"right", {}))
    assert (answer.status, answer.headers["upload-offset"]) == (409, "0")
    line.send(edge.upload(task.id, 0, b"right"))
    assert line.send(edge.commit(task.id, b"right", {})).status == 200


def test_a_file_that_a_killed_group_took_is_sent_again(scene, line):
    edge = scene.enrol()
    task = scene.group.open(edge.name)
    wait_for(lambda: scene.open_run.board.next_task(edge.name), "the task")
    path = scene.open_run.uploads._path(task.id)
    line.send(edge.upload(task.id, 0, b"right"))
    path.unlink()  # moved, and its commit not noted
    answer = line.send(edge.commit(task.id, b"right", {}))
    assert (answer.status, answer.headers["upload-offset"]) == (409, "0")
    line.send(edge.upload(task.id, 0, b"ri"))
    path.unlink()
    answer = line.send(edge.upload(task.id, 2, b"ght"))
    assert (answer.status, answer.headers["upload-offset"]) == (409, "0")
    assert not path.exists()
    line.send(edge.upload(task.id, 0, b"right"))
    assert line.send(edge.commit(task.id, b"right", {})).status == 200
    assert scene.group.contents[task.id] == b"right"


def test_no_byte_of_a_file_changes_while_its_commit_is_judged(scene, line):
    edge = scene.enrol()
    task = scene.group.open(edge.name)
    wait_for(lambda: scene.open_run.board.next_task(edge.name), "the task")
    line.send(edge.upload(task.id, 0, b"right"))
    commit, asked, may_go_on = scene.group.commit, threading.Event(), threading.Event()

    async def judge(submission):
        asked.set()
        while not may_go_on.is_set():
            await asyncio.sleep(0.005)
        return await commit(submission)

    def send(call):
        with scene.connect() as connection:
            return connection.send(call)

    scene.group.commit = judge
    try:
        first = in_thread(send, edge.commit(task.id, b"right", {}))
        assert asked.wait(60)
        upload = scene.open_run.uploads._by_task[task.id]
        other = in_thread(send, edge.commit(task.id, b"wrong", {}))
        more = in_thread(send, edge.upload(task.id, 5, b"more"))
        wait_for(lambda: len(upload.lock._waiters or ()) == 2, "both calls")
        assert upload.path.read_bytes() == b"right"
    finally:
        may_go_on.set()
        scene.group.commit = commit
    assert ended(first).status == 200
    assert [ended(other).status, ended(more).status] == [409, 409]
    assert scene.group.contents[task.id] == b"right"


def test_a_run_that_goes_on_after_its_end_has_no_old_bytes(own_scene, own_line):
    scene, line = own_scene, own_line
    edge = scene.enrol()
    task = scene.group.open(edge.name)
    wait_for(lambda: scene.open_run.board.next_task(edge.name), "the task")
    line.send(edge.upload(task.id, 0, b"ri"))
    scene.call(scene.runs.close, scene.run_id, "stopped")
    assert line.send(edge.checkin()).status == 410
    scene.call(scene.runs.open, scene.run_id, scene.folder, ["group"])
    wait_for(lambda: not scene.open_run.unready, "the group's tasks")
    assert line.send(edge.offset(task.id)).headers["upload-offset"] == "0"
    line.send(edge.upload(task.id, 0, b"right"))
    assert line.send(edge.commit(task.id, b"right", {})).status == 200


def test_a_body_of_single_bytes_costs_no_more_than_another(tmp_path):
    async def single_bytes():
        for _ in range(500_000):
            yield b"x"

    upload = Upload(tmp_path / "part")
    asyncio.run(upload.receive(0, single_bytes()))
    assert upload.path.read_bytes() == b"x" * 500_000


def test_a_task_without_a_file_is_committed_by_its_report(scene, line):
    edge = scene.enrol()
    task = scene.group.open(edge.name, kind="join", max_bytes=0)
    wait_for(lambda: scene.open_run.board.next_task(edge.name), "the task")
    answer = line.send(edge.commit(task.id, b"", {"n_train": 40}))
    assert answer.json()["verdict"] == "taken"
    assert scene.group.commits[task.id][0].path is None


def test_a_newer_call_takes_an_upload_over_from_one_that_hangs(scene, line):
    edge = scene.enrol()
    task = scene.group.open(edge.name)
    wait_for(lambda: scene.open_run.board.next_task(edge.name), "the task")
    with scene.connect() as hanging:
        begin_upload(hanging, edge, task, 10)
        hanging.http.send(b"he")
        upload = scene.open_run.uploads._by_task
        wait_for(lambda: task.id in upload and upload[task.id].turn == 1, "the call")
        assert line.send(edge.upload(task.id, 0, b"0123456789")).status == 204
        hanging.http.send(b"llo wor!")
        assert hanging.http.getresponse().status == 409
    assert line.send(edge.commit(task.id, b"0123456789", {})).status == 200


def test_objects_come_in_ranges_with_their_hash_as_tag(scene, line):
    edge = scene.enrol()
    sha = scene.group.add_object(b"0123456789")
    assert line.send(edge.download(sha)).status == 404  # it has no task
    scene.group.open(edge.name, base=sha, base_bytes=10)
    wait_for(lambda: scene.open_run.board.next_task(edge.name), "the task")
    whole = line.send(edge.download(sha))
    assert (whole.status, whole.headers["etag"]) == (200, f'"{sha}"')
    part = line.send(edge.download(sha, 7))
    assert (part.status, part.body) == (206, b"789")
    assert part.headers["content-range"] == "bytes 7-9/10"
    same = line.send(edge.download(sha, **{"If-None-Match": f'"{sha}"'}))
    assert (same.status, same.body) == (304, b"")
    assert line.send(edge.download(sha, 10)).status == 416


def test_a_second_process_of_one_identity_is_refused_and_the_operator_told(
    own_scene, own_line, caplog
):
    scene, line = own_scene, own_line
    edge = scene.enrol("hospital-a")
    running = checking_in(scene, edge)
    wait_for(waiting(scene, edge), "the check-in")
    clone = {"instance": "f" * 32}
    for _ in range(2):
        answer = line.send(edge.checkin(**clone))
        assert answer.status == 409
        assert "Another process calls with the identity" in answer.json()["detail"]
    lines = [one for one in caplog.messages if "two processes" in one]
    assert len(lines) == 1
    assert "hospital-a" in lines[0]
    scene.group.open("hospital-a")
    assert ended(running).status == 200


def test_a_process_that_died_makes_room_for_the_next_at_once(scene, line):
    edge = scene.enrol()
    with scene.connect() as dying:
        dying.http.request(
            "POST", "/edge/v1/checkin", *request_parts(edge.checkin(wait_s=20))
        )
        wait_for(waiting(scene, edge), "the check-in")
        dying.http.sock.close()
    old, edge.instance = edge.instance, "f" * 32
    wait_for(lambda: line.send(edge.checkin()).status == 204, "its place")
    edge.instance = old  # it was not dead: a copy of it goes on
    assert line.send(edge.checkin()).status == 409


def request_parts(call):
    return call.body, dict(call.headers)


def test_leaving_erases_what_the_edge_has_sent_and_its_token(own_scene, own_line):
    scene, line = own_scene, own_line
    edge = scene.enrol()
    task = scene.group.open(edge.name)
    wait_for(lambda: scene.open_run.board.next_task(edge.name), "the task")
    line.send(edge.upload(task.id, 0, b"half"))
    path = scene.open_run.uploads._path(task.id)
    assert path.read_bytes() == b"half"
    assert line.send(edge.leave()).status == 200
    assert not path.exists()
    assert scene.group.left == [edge.name]
    assert line.send(edge.checkin()).status == 401
    hashed = hashlib.sha256(edge.secret.encode()).hexdigest()
    texts = [f.read_text() for f in (scene.folder / "edges").glob("*.jsonl")]
    assert not any(hashed in text or edge.public_key in text for text in texts)


def test_what_has_arrived_of_a_task_is_deleted_when_it_is_closed(scene, line):
    edge = scene.enrol()
    task = scene.group.open(edge.name)
    wait_for(lambda: scene.open_run.board.next_task(edge.name), "the task")
    line.send(edge.upload(task.id, 0, b"half"))
    scene.group.close(task)
    path = scene.open_run.uploads._path(task.id)
    wait_for(lambda: not path.exists(), "the end of the file")
    answer = line.send(edge.upload(task.id, 4, b"more"))
    assert (answer.status, answer.json()["task"]) == (409, None)
    answer = line.send(edge.commit(task.id, b"half", {}))
    assert answer.json() == {
        "verdict": "late",
        "why": "its round was closed",
        "sha256": None,
    }


def test_a_task_that_is_given_back_reaches_its_group_without_harm(scene, line):
    edge = scene.enrol()
    task = scene.group.open(edge.name)
    wait_for(lambda: scene.open_run.board.next_task(edge.name), "the task")
    assert line.send(edge.fail(task.id, "memory", "no \x1b[31mroom\n")).status == 200
    expected = (task.id, edge.name, "memory", "no \\u001b[31mroom\\u000a")
    assert line.send(edge.fail("0" * 32)).status == 200
    own = [one for one in scene.group.failures if one[1] == edge.name]
    assert own == [expected]


def test_a_group_that_is_down_is_503_and_its_tasks_stay(own_scene, own_line):
    scene, line = own_scene, own_line
    edge = scene.enrol()
    task = scene.group.open(edge.name)
    wait_for(lambda: scene.open_run.board.next_task(edge.name), "the task")
    line.send(edge.upload(task.id, 0, b"update"))
    scene.group.is_down = True
    answer = line.send(edge.commit(task.id, b"update", {}))
    assert (answer.status, answer.headers["retry-after"]) == (503, "2")
    assert line.send(edge.checkin()).json()["id"] == task.id
    scene.group.is_down = False
    assert line.send(edge.commit(task.id, b"update", {})).status == 200


def test_until_a_door_that_starts_again_knows_the_tasks_it_says_come_again(
    own_scene, own_line
):
    scene, line = own_scene, own_line
    edge = scene.enrol()
    task = scene.group.open(edge.name)
    wait_for(lambda: scene.open_run.board.next_task(edge.name), "the task")
    scene.kill()
    scene.group.is_down = True
    scene.start()
    for call in (edge.offset(task.id), edge.commit(task.id, b"x", {})):
        answer = line.send(call)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert line.send(edge.checkin(task=task.id, state="training")).status == 204
    scene.group.is_down = False
    wait_for(lambda: line.send(edge.offset(task.id)).status == 204, "the tasks")


def test_edges_enrol_before_their_run_is_opened(tmp_path):
    scene = DoorScene(tmp_path)
    scene.start()
    try:
        edge = scene.enrol()
        with scene.connect() as line:
            assert line.send(edge.checkin()).status == 204
            unknown = SimulatedEdge().enrol(f"fedray-invite.{'0' * 32}.{'x' * 43}")
            answer = line.send(unknown)
            assert (answer.status, answer.headers["retry-after"]) == (503, "15")
    finally:
        scene.kill()


def test_enrolments_at_once_are_answered_after_one_flush(own_scene, monkeypatch):
    scene = own_scene
    texts = Registry(scene.folder).invite(count=40)
    edges = [SimulatedEdge() for _ in texts]

    def enrol(edge, text):
        with scene.connect() as connection:
            return connection.send(edge.enrol(text))

    running = [in_thread(enrol, *pair) for pair in zip(edges, texts, strict=True)]
    answers = [ended(one) for one in running]
    assert {answer.status for answer in answers} == {201}
    assert len({answer.json()["edge"] for answer in answers}) == 40
    assert len(Registry(scene.folder).edges) == 40


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"protocol": 0}, 426),
        ({"protocol": 2}, 426),
        ({"version": "0.0.9"}, 426),
        ({"version": "0.1.0.dev3"}, 204),
        ({"version": "1.0"}, 204),
        ({"version": "ten"}, 422),
        ({"protocol": 7, "mood": "good"}, 426),
        ({"wait_s": 26}, 422),
        ({"wait_s": -1}, 422),
        ({"state": "asleep"}, 422),
        ({"share": 2}, 422),
        ({"have": ["a" * 64] * 65}, 422),
        ({"instance": "x"}, 422),
        ({"secret": "s"}, 422),
    ],
)
def test_an_edge_that_is_too_old_hears_what_it_needs(scene, line, changes, status):
    answer = line.send(scene.enrol().checkin(**changes))
    assert answer.status == status
    if status == 426:
        assert answer.json()["min_version"] == "0.1.0"
        assert answer.headers["upgrade"] == "fedray/0.1.0"


def test_above_2000_edges_nobody_waits_and_all_are_told_when_to_come_back(
    own_scene, own_line
):
    scene, line = own_scene, own_line
    edge = scene.enrol()
    presence = scene.open_run.presence
    presence.contacts.row(100_000)
    presence.contacts.rows["last_seen"][:100_000] = time.time()
    presence._next_count = 0.0
    answer = line.send(edge.checkin(wait_s=25))
    assert answer.status == 204
    assert 250 <= int(answer.headers["retry-after"]) <= 750
    assert pacing.RATE == 200


def test_the_description_names_every_call_and_message(scene, line):
    answer = line.send(Call("GET", "/openapi.json"))
    described = answer.json()
    paths = described["paths"]
    assert set(paths) == {
        *("/enrol", "/checkin", "/objects/{sha256}", "/tasks/{task}/update"),
        *("/tasks/{task}/commit", "/tasks/{task}/fail", "/leave", "/health"),
    }
    text = json.dumps(described)
    for name in ("Enrol", "CheckIn", "Task", "Commit", "Verdict", "Fail", "Refusal"):
        assert f'"#/components/schemas/{name}"' in text
        assert name in described["components"]["schemas"]
    assert line.send(Call("GET", "/health")).json()["status"] == "ok"


@pytest.mark.parametrize(
    ("call", "status"),
    [
        (Call("GET", "/checkin"), 405),
        (Call("POST", "/nothing"), 404),
        (Call("GET", ""), 404),
        (Call("GET", "/../../aggregators"), 404),
        (Call("GET", "/objects/../../../etc/passwd"), 404),
        (Call("POST", "/enrol", {"Content-Encoding": "gzip"}, b"\x1f\x8b"), 415),
        (Call("POST", "/enrol", {}, b"x" * (MAX_BODY + 1)), 413),
        (Call("POST", "/enrol", {}, b"{}"), 422),
        (Call("POST", "/checkin", {}, b"{}"), 401),
        (Call("PATCH", f"/tasks/{'0' * 32}/update", {}, b"x"), 401),
    ],
)
def test_what_is_no_call_is_refused_in_json(scene, line, call, status):
    answer = line.send(call)
    assert answer.status == status
    assert {"error", "detail", "hint"} <= set(answer.json())


def test_nothing_but_edge_calls_is_answered(scene, line):
    for path in ("/", "/aggregators", "/health", "/docs", "/edge/v2/checkin"):
        line.http.request("GET", path)
        answer = line.http.getresponse()
        answer.read()
        assert answer.status == 404


def test_sizes_are_bounded_before_bytes_are_taken(scene, line):
    edge = scene.enrol()
    task = scene.group.open(edge.name, max_bytes=100)
    wait_for(lambda: scene.open_run.board.next_task(edge.name), "the task")
    assert line.send(edge.upload(task.id, 0, b"x" * 101)).status == 413
    assert line.send(edge.upload(task.id, 0, b"x" * 60)).status == 204
    assert line.send(edge.upload(task.id, 60, b"x" * 41)).status == 413
    assert line.send(edge.upload(task.id, 10**14, b"x")).status == 409
    for offset in ("", "-1", "1e3", "²", "9" * 16):
        call = edge.upload(task.id, 0, b"x", **{"Upload-Offset": offset})
        assert line.send(call).status == 400
    big = scene.group.open(edge.name, id="b" * 32, max_bytes=1 << 40)
    wait_for(lambda: scene.open_run.board.task_of(edge.name, big.id), "the task")
    begin_upload(line, edge, big, CHUNK + 1)
    assert line.http.getresponse().status == 413


def test_a_commit_that_is_not_signed_by_the_edge_is_refused(scene, line):
    edge, other = scene.enrol(), SimulatedEdge()
    task = scene.group.open(edge.name, kind="join", max_bytes=0)
    wait_for(lambda: scene.open_run.board.next_task(edge.name), "the task")
    sha = hashlib.sha256(b"").hexdigest()
    foreign = other.sign(task.id, 0, sha, "{}")
    for call in (
        edge.commit_hash(task.id, 0, sha, "{}", signature=foreign),
        edge.commit_hash(task.id, 0, sha, "{}", signature="0" * 128),
        edge.commit_hash(task.id, 0, sha, "[]"),
        edge.commit_hash(task.id, 0, sha, "{"),
        edge.commit_hash(task.id, 0, sha, "[" * 100_000),
    ):
        assert line.send(call).status == 422
    assert task.id not in scene.group.commits


def test_the_list_of_open_runs_survives_a_kill_and_a_foreign_folder_is_refused(
    own_scene, tmp_path
):
    scene = own_scene
    from fedray.errors import ConfigError

    with pytest.raises(ConfigError, match="is not that of the run"):
        scene.call(scene.runs.open, "0" * 32, scene.folder, [])
    with pytest.raises(ConfigError, match="another machine"):
        scene.call(scene.runs.open, scene.run_id, tmp_path / "none", [])
    scene.kill()
    scene.start()
    assert list(scene.open_run.groups) == ["group"]
    file = tmp_path / "service" / "runs.json"
    assert file.stat().st_mode & 0o777 == 0o600


def test_json_calls_need_no_content_type(scene, line):
    edge = scene.enrol()
    call = edge.checkin()
    headers = {k: v for k, v in call.headers.items() if k != "Content-Type"}
    assert line.send(Call(call.method, call.path, headers, call.body)).status == 204
    assert line.send(json_call("POST", "/checkin", "nonsense", {})).status == 401
    assert isinstance(line, Connection)


@pytest.mark.parametrize("damage", ["[1]", "{", "5", '{"x": 5}', '{"x": {}}'])
def test_a_damaged_list_of_runs_does_not_keep_the_door_shut(tmp_path, damage, caplog):
    from fedray.edge_door.open_runs import OpenRuns

    file = tmp_path / "runs.json"
    file.write_text(damage)
    OpenRuns(file, lambda name: None).load()
    assert "the edges' door cannot" in caplog.text


def test_a_run_that_is_damaged_does_not_keep_the_others_out(
    own_scene, own_line, caplog
):
    scene, other = own_scene, Registry(own_scene.folder.parent / "other")
    edge = scene.enrol()
    scene.call(scene.runs.open, other.begin(), other.folder.parent, [])
    scene.kill()
    with (other.folder / "edges.jsonl").open("w") as file:
        file.write("damage\n")
    scene.start()
    assert own_line.send(edge.checkin()).status == 204
    assert "has a damaged line in edges.jsonl" in caplog.text
