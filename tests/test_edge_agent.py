"""The edge's own process, against a scripted service; none of them can import Ray."""

import hashlib
import json
import logging
import os
import signal
import stat
from pathlib import Path

import numpy as np
import pytest
from support.edge_runs import EdgeRun, from_file, make_run, to_file
from support.forked_edges import ForkedEdges, forked_edges
from support.scripted_door import ScriptedDoor
from support.waiting import wait_for

from fedray.cli.exit_codes import ExitCode
from fedray.edge import (
    Agent,
    EdgeEnded,
    EdgeOptions,
    EdgePolicy,
    PartyOptions,
    StateFolder,
)


@pytest.fixture(scope="module")
def edges():
    with forked_edges() as server:
        yield server


class Scene:
    """A service, and one edge's processes, in a folder."""

    def __init__(self, folder: Path, edges: ForkedEdges, door: ScriptedDoor, data: str):
        self.folder, self.edges, self.door, self.data = folder, edges, door, data
        self.state, self.log = folder / "state", folder / "edge.log"
        self.invitation = folder / "invitation"
        self.invitation.write_text(door.invitation + "\n")
        self.own = ["--data", data, "--data-handler", "mnist_pytorch"]

    def make_run(self, **settings) -> EdgeRun:
        return make_run(self.folder / "run", self.data, **settings)

    def words(self, *more) -> list:
        words = ["--url", self.door.url, *self.own, *more]
        if "--state-dir" not in more:
            words += ["--state-dir", self.state]
        if "--invitation-file" not in more:
            words += ["--invitation-file", self.invitation]
        return words

    def start(self, *more) -> int:
        return self.edges.start(self.words(*more), self.log)

    def until(self, pid: int, condition) -> None:
        """Wait for a condition, unless the process ends without it."""
        wait_for(lambda: condition() or self.edges.poll(pid) is not None)
        assert condition(), self.text

    def once(self, *more) -> int:
        return self.edges.run(self.words("--once", *more), self.log)

    @property
    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def update(self, task) -> dict:
        return from_file(self.folder, self.door.updates[task.id]).weights

    def report(self, task) -> dict:
        return json.loads(self.door.commits[task.id].report)

    def sent(self) -> list[dict]:
        return [json.loads(line) for line in (self.state / "sent.jsonl").open()]


@pytest.fixture
def scene(tmp_path, edges, digits):
    with ScriptedDoor(tmp_path) as door:
        scene = Scene(tmp_path, edges, door, digits("a", n_train=60, n_test=20))
        yield scene
        print(scene.text)  # shown where a test fails


def same(ours, theirs) -> bool:
    return ours.keys() == theirs.keys() and all(
        np.array_equal(ours[name], theirs[name]) for name in ours
    )


def test_an_edge_joins_trains_and_evaluates_as_a_party_in_the_cluster(scene):
    run, door = scene.make_run(), scene.door
    kinds = (("join", 0), ("train", 1), ("evaluate", 1))
    join, train, score = (
        door.open(kind, round, run.plan, run.base) for kind, round in kinds
    )
    pid = scene.start()
    scene.until(pid, lambda: score.id in door.verdicts)
    door.ended = "all rounds are done"
    assert scene.edges.wait(pid) == ExitCode.DONE
    assert scene.report(join)["n_train"] == 60
    assert scene.report(join)["n_test"] == 20
    assert same(scene.update(train), run.update(1))
    assert scene.report(train)["n_samples"] == 60
    expected, got = run.group.evaluate(run.payload, round=1).scores, scene.report(score)
    assert (got["loss"], got["accuracy"]) == (expected.loss, expected.accuracy)
    assert door.uploads == {}
    for words in ("enrolled in run", "round 1 (train): taken", "the run has ended"):
        assert words in scene.text


def test_the_update_file_says_of_which_round_and_party_it_is(scene):
    run = scene.make_run()
    task = scene.door.open("train", 2, run.plan, run.base)
    assert scene.once() == ExitCode.DONE
    assert from_file(scene.folder, scene.door.updates[task.id]).metadata == {
        "run": "tiny", "round": "2", "party": "3", "base": task.base, "n_samples": "60",
    }  # fmt: skip


def test_sixteen_bits_travel_as_the_service_asks(scene):
    run = scene.make_run(wire_dtype="bfloat16", epochs=2)
    task = scene.door.open("train", 1, run.plan, run.base)
    assert scene.once() == ExitCode.DONE
    assert same(scene.update(task), run.update(1))


def test_an_edge_that_trains_apart_sends_its_update_when_it_is_asked(scene):
    run, door = scene.make_run(aggregation="adaptive"), scene.door
    apart = [door.open("train", k, run.plan, run.base, since=1) for k in (1, 2)]
    last = door.open("update", 2, run.plan, run.base, since=1)
    assert scene.once() == ExitCode.DONE
    assert [door.commits[task.id].size for task in apart] == [0, 0]
    assert scene.report(apart[1])["drifted"]["squares"] > 0
    place = np.array([0])
    for k in (1, 2):
        run.group.train(k, place, run.payload, None, 1)
    _, update = run.group.update(2, place, run.payload, None, 1)
    assert same(scene.update(last), update.weights)


def test_frozen_tensors_are_fetched_once(scene):
    run = scene.make_run(trainable=["3.*"])
    moving = {n: a for n, a in run.payload.items() if n.startswith("3.")}
    frozen = {n: a for n, a in run.payload.items() if n not in moving}
    plan = json.loads(run.plan)
    name = scene.door.add_object(to_file(scene.folder, frozen))
    content = json.dumps({**plan, "frozen": name}).encode()
    base = to_file(scene.folder, moving)
    tasks = [scene.door.open("train", k, content, base) for k in (1, 2)]
    assert scene.once() == ExitCode.DONE
    assert scene.once() == ExitCode.DONE
    _, update = run.group.with_frozen(frozen, "train", 2, np.array([0]), moving)
    assert same(scene.update(tasks[1]), update.weights)
    assert update.weights.keys() == moving.keys()
    assert scene.door.calls.count(("GET", f"objects/{name}")) == 1


def test_code_that_builds_the_model_is_the_edges_own(scene, mlp):
    run = scene.make_run(architecture=mlp)
    assert b"Sequential" not in run.plan  # no code travels
    task = scene.door.open("train", 1, run.plan, run.base)
    assert scene.once() == ExitCode.FAILED
    assert "--architecture file.py:mlp" in scene.text
    ((_, fail),) = scene.door.failures
    assert str(scene.folder) not in fail.message  # its owner's paths stay
    scene.door.tasks.append(task)
    assert scene.once("--architecture", mlp) == ExitCode.DONE
    assert same(scene.update(task), run.update(1))


OWN_LOOP = """
import numpy as np

class Means:
    def __init__(self):
        self.weights = {"means": np.zeros(784, np.float32)}
    def get_weights(self):
        return self.weights
    def set_weights(self, weights):
        self.weights = weights
    def train(self, data, context):
        x, _ = data
        step = np.asarray(x).reshape(len(x), -1).mean(0) - self.weights["means"]
        self.weights["means"] = self.weights["means"] + context.learning_rate * step
        return {"loss": float(np.square(step).mean())}
    def evaluate(self, data, context):
        return {"loss": 0.0, "n_samples": len(data[0])}
"""


def test_a_model_class_is_the_edges_own_too(scene):
    file = scene.folder / "means.py"
    file.write_text(OWN_LOOP)
    run = scene.make_run(model_type=f"{file}:Means", learning_rate=0.5)
    assert b"numpy" not in run.plan
    task = scene.door.open("train", 1, run.plan, run.base)
    assert scene.once() == ExitCode.FAILED
    assert "name it, --model-class file.py:Means" in scene.text
    scene.door.tasks.append(task)
    assert scene.once("--model-class", f"{file}:Means") == ExitCode.DONE
    x = np.load(scene.data)["x_train"].reshape(60, -1)
    expected = 0.5 * x.mean(0)
    assert np.allclose(scene.update(task)["means"], expected, atol=1e-6)
    assert same(scene.update(task), run.update(1))


def test_killed_at_every_stage_it_goes_on_and_sends_the_same_update_once(scene):
    run, door = scene.make_run(), scene.door
    task = door.open("train", 1, run.plan, run.base)
    stages = [
        ("POST", "enrol"),
        ("POST", "checkin"),
        ("GET", f"objects/{task.plan}"),
        ("GET", f"objects/{task.base}"),
        ("HEAD", f"tasks/{task.id}/update"),  # it has trained
        ("PATCH", f"tasks/{task.id}/update"),
        ("POST", f"tasks/{task.id}/commit"),
    ]
    for stage in stages:
        pids = []

        def kill(method, path, stage=stage, pids=pids):
            if (method, path) == stage and pids:
                os.kill(pids.pop(), signal.SIGKILL)

        door.on_call = kill
        with door.lock:  # before it calls
            pid = scene.start("--once")
            pids.append(pid)
        assert scene.edges.wait(pid) == -signal.SIGKILL, stage
    door.on_call = lambda method, path: None
    assert scene.once() == ExitCode.DONE
    assert [*door.verdicts] == [task.id]
    assert same(scene.update(task), run.update(1))
    keys = {(one.public_key, one.token_hash) for one in door.enrolments}
    assert len(door.enrolments) >= 2
    assert len(keys) == 1


def test_a_training_that_is_killed_is_made_again_with_the_same_bits(scene):
    run = scene.make_run(epochs=100, batch_size=4)
    task = scene.door.open("train", 1, run.plan, run.base)
    pid = scene.start("--once")
    scene.until(pid, lambda: "begins" in scene.text)
    scene.edges.kill(pid)
    assert task.id not in scene.door.verdicts
    assert scene.once() == ExitCode.DONE
    assert same(scene.update(task), run.update(1))


def test_an_upload_goes_on_at_the_byte_where_it_broke_off(scene):
    run, door = scene.make_run(), scene.door
    task = door.open("train", 1, run.plan, run.base)
    busy = (503, {"Retry-After": "0"}, {})
    door.fault(f"PATCH tasks/{task.id}/update", "late cut", busy)
    door.fault("commit", "late cut", (429, {"Retry-After": "0"}, {}))
    words = scene.words("--max-bandwidth", "100k")  # three chunks
    pid = scene.edges.start(words, scene.log)
    scene.until(pid, lambda: task.id in door.verdicts)
    door.ended = "done"
    scene.edges.wait(pid)
    assert same(scene.update(task), run.update(1))
    n_bytes = sum(line["bytes"] for line in scene.sent() if line["kind"] == "update")
    assert n_bytes <= 2 * len(door.updates[task.id])


def test_a_download_goes_on_where_it_broke_off_and_is_what_it_is_called(scene):
    run, door = scene.make_run(), scene.door
    task = door.open("train", 1, run.plan, run.base)
    door.fault(f"GET objects/{task.base}", "after 1000", "after 500")
    assert scene.once() == ExitCode.DONE
    assert task.id in door.verdicts
    second = door.open("train", 2, run.plan, run.base)
    (scene.state / "objects" / task.base).unlink()
    door.objects[task.base] = door.objects[task.base][:-1] + b"!"
    assert scene.once() == ExitCode.FAILED
    assert "SHA-256 differs" in scene.text
    assert second.id not in door.verdicts


def test_an_update_that_is_too_large_is_given_back_and_one_too_late_is_dropped(scene):
    run, door = scene.make_run(), scene.door
    task = door.open("train", 1, run.plan, run.base)
    refusal = {"error": "", "detail": "at most 9 bytes", "hint": ""}
    door.fault("PATCH", (413, {}, refusal))
    assert scene.once() == ExitCode.FAILED
    assert "its result is not taken: at most 9 bytes (HTTP 413)" in scene.text
    assert [(id, fail.kind) for id, fail in door.failures] == [(task.id, "upload")]
    late = door.open("train", 2, run.plan, run.base)
    door.fault("HEAD", (409, {}, {**refusal, "detail": "its round is closed"}))
    door.on_call = lambda method, path: (
        door.close_task(late.id) if method == "HEAD" else None
    )
    assert scene.once() == ExitCode.DONE
    assert "not waited for any more" in scene.text
    assert len(door.failures) == 1
    assert not any((scene.state / "tasks").iterdir())


def test_all_that_left_is_listed(scene):
    run, door = scene.make_run(), scene.door
    task = door.open("train", 1, run.plan, run.base)
    assert scene.once() == ExitCode.DONE
    lines = scene.sent()
    kinds = [line["kind"] for line in lines]
    assert kinds[:2] == ["enrol", "checkin"]
    assert kinds.count("update") == kinds.count("commit") == 1
    n_posts = sum(method in ("POST", "PATCH") for method, _ in door.calls)
    assert len(lines) == n_posts
    (line,) = [line for line in lines if line["kind"] == "update"]
    update = door.updates[task.id]
    assert line["bytes"] == len(update)
    assert line["sha256"] == hashlib.sha256(update).hexdigest()
    assert {line["run"] for line in lines} == {"ab" * 16}


def test_the_state_folder_is_for_its_owner_alone_and_for_one_process(scene):
    pid = scene.start()
    scene.until(pid, lambda: scene.door.check_ins)
    for path in [scene.state, *scene.state.rglob("*")]:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    assert scene.once() == ExitCode.FAILED
    assert "another fedray edge uses it" in scene.text
    os.kill(pid, signal.SIGTERM)
    assert scene.edges.wait(pid) == ExitCode.STOPPED
    assert "stopped; the same command goes on" in scene.text
    scene.state.chmod(0o755)
    assert scene.once() == ExitCode.FAILED
    assert "chmod -R go=" in scene.text


def test_heartbeats_tell_of_a_long_training_and_hear_that_it_is_void(scene):
    run, door = scene.make_run(epochs=1_000_000), scene.door
    task = door.open("train", 1, run.plan, run.base)
    pid = scene.start()
    scene.until(pid, lambda: any(one.state == "training" for one in door.check_ins))
    assert {one.task for one in door.check_ins if one.state == "training"} == {task.id}
    assert len({one.instance for one in door.check_ins}) == 1
    scene.until(pid, lambda: "begins" in scene.text)
    os.kill(pid, signal.SIGINT)
    assert scene.edges.wait(pid) == ExitCode.STOPPED
    door.close_task(task.id)
    door.ended = "stopped by its operator"
    assert scene.edges.run(scene.words(), scene.log) == ExitCode.DONE
    assert "stopped by its operator" in scene.text


def test_a_training_that_nobody_waits_for_ends_at_its_next_step(scene, caplog):
    run, door = scene.make_run(epochs=1_000_000), scene.door
    task = door.open("train", 1, run.plan, run.base)

    def close(method, path):
        if any(one.state == "training" for one in door.check_ins):
            door.close_task(task.id)

    door.on_call = close
    party = PartyOptions(scene.data, "mnist_pytorch")
    options = EdgeOptions((door.url,), party, heartbeat_s=0.05)
    caplog.set_level(logging.INFO, "fedray")
    with StateFolder(scene.state) as state:
        state.accept(door.invitation)
        agent = Agent(options, state, EdgePolicy(), sleep=lambda seconds: end(door))
        with pytest.raises(EdgeEnded, match="the run has ended"):
            agent.run()
    assert "round 1 (train): given up, its round was closed" in caplog.text
    assert door.verdicts == {}
    assert not any((scene.state / "tasks").iterdir())


def end(door: ScriptedDoor) -> None:
    door.ended = "done"


def nested(depth: int) -> list[dict]:
    """Layers, each of which holds the one before it twice."""
    layers = [{"kind": "ReLU", "args": {}, "children": []}]
    for i in range(depth):
        inner = [["0", i], ["1", i]]
        layers.append({"kind": "Sequential", "args": {}, "children": inner})
    return layers


HOSTILE = {  # a place in the plan: what stands there, and what is said to it
    "settings.party_dir": ("/", "which no edge takes"),
    "settings.model_type": ("/evil.py:Evil", "which no edge takes"),
    "settings.loss": ("/evil.py:loss", "names code"),
    "settings.metrics": (["/evil.py:metric"], "names code"),
    "settings.data_args": ({"test": "/etc/passwd"}, "names a file of data"),
    "settings.epochs": (-1, "epochs must be"),
    "frozen": ("../identity.key", "no object by its SHA-256"),
    "run_id": ("../../x", "run_id"),
    "model.type": ("doc2vec", ""),
    "model.plan.layers": (nested(40), "over 2000 layers"),
    "model.plan.tied": ([["a", "b"]], ""),
    "model.tensors": ([["0.weight", [1 << 39, 1 << 39], "float32"]], ""),
    "model.parameters": (["nobody"], ""),
    "format": (2, "format"),
}


def test_a_hostile_plan_is_given_back_and_the_edge_goes_on(scene, caplog):
    run, door, plans = scene.make_run(), scene.door, [b"no JSON", b"[]", b"{}"]
    for place, (value, _) in HOSTILE.items():
        plan = json.loads(run.plan)
        *holders, key = place.split(".")
        holder = plan
        for name in holders:
            holder = holder[name]
        holder[key] = value
        plans.append(json.dumps(plan).encode())
    tasks = [
        door.open("train", k, plan, run.base) for k, plan in enumerate(plans, start=1)
    ]
    good = door.open("train", 99, run.plan, run.base)
    party = PartyOptions(scene.data, "mnist_pytorch")
    with StateFolder(scene.state) as state:
        state.accept(door.invitation)
        options = EdgeOptions((door.url,), party)
        agent = Agent(options, state, EdgePolicy(), sleep=lambda seconds: None)
        door.on_call = lambda method, path: end(door) if good.id in door.updates else 0
        with pytest.raises(EdgeEnded, match="the run has ended"):
            agent.run()
    failures = dict(door.failures)
    assert [*failures] == [task.id for task in tasks]
    words = ["JSON", "format", "format", *(words for _, words in HOSTILE.values())]
    for task, expected in zip(tasks, words, strict=True):
        assert expected in failures[task.id].message + caplog.text
        assert str(scene.folder) not in failures[task.id].message
    assert same(scene.update(good), run.update(99))


ENDS = {  # a status, what its body says, and: exit code, words
    401: ({"detail": "revoked"}, 1, "does not know this edge any more (revoked)"),
    410: ({"reason": "done"}, 0, "the run has ended: done"),
    426: ({"min_version": "9.0"}, 1, "needs fedray 9.0 at least: update it here"),
    400: ({"detail": "no such key"}, 1, "refuses the check-in: no such key"),
}


@pytest.mark.parametrize("status", ENDS)
def test_an_answer_after_which_no_call_helps_ends_the_edge_with_a_line(scene, status):
    said, code, words = ENDS[status]
    refusal = {"error": "", "detail": "", "hint": "", **said}
    scene.door.fault("checkin", (status, {}, refusal))
    assert scene.edges.run(scene.words(), scene.log) == code
    assert words in scene.text


def test_an_invitation_that_is_refused_or_used_ends_with_what_to_do(scene):
    assert scene.once() == ExitCode.DONE
    assert "nothing to do now" in scene.text
    assert scene.once("--state-dir", scene.folder / "other") == ExitCode.FAILED
    assert "enrolled another edge" in scene.text
    scene.door.invitation = "fedray-invite." + "ab" * 16 + "." + "x" * 43
    assert scene.once("--state-dir", scene.folder / "third") == ExitCode.FAILED
    assert "the invitation is refused" in scene.text
    assert not (scene.folder / "third" / "enrolment.json").exists()


def test_the_invitation_may_come_from_standard_input_and_is_kept_no_longer(scene):
    door, state = scene.door, scene.state
    words = scene.words("--invitation-file", "-", "--once")
    door.fault("enrol", "cut", "cut", "cut")
    assert scene.edges.run(words, scene.log, door.invitation) == ExitCode.FAILED
    assert (state / "invitation").exists()
    without = [word for word in words if word not in ("--invitation-file", "-")]
    assert scene.edges.run(without, scene.log) == ExitCode.DONE
    assert not (state / "invitation").exists()
    files = [path for path in state.rglob("*") if path.is_file()]
    assert not any(door.invitation.encode() in path.read_bytes() for path in files)


def test_an_edge_that_was_shut_out_comes_back_by_a_new_invitation(scene):
    door = scene.door
    assert scene.once() == ExitCode.DONE
    key = door.enrolments[0].public_key
    door.enrolments.clear()  # revoked
    assert scene.once() == ExitCode.FAILED
    assert "does not know this edge any more" in scene.text
    door.invitation = "fedray-invite." + "ab" * 16 + "." + "n" * 43
    scene.invitation.write_text(door.invitation)
    assert scene.once() == ExitCode.DONE
    assert door.enrolments[0].public_key != key
    assert scene.once() == ExitCode.DONE  # not again
    assert len(door.enrolments) == 1


def test_leaving_asks_the_service_to_forget_and_forgets(scene):
    assert scene.once() == ExitCode.DONE
    assert scene.edges.run(scene.words("--leave"), scene.log) == ExitCode.DONE
    assert scene.door.has_left
    names = {path.name for path in scene.state.iterdir()}
    assert names == {"lock", "party", "sent.jsonl"}


def test_an_edge_refuses_what_its_owner_does_not_allow(scene):
    run, policy = scene.make_run(epochs=5), scene.folder / "edge.yaml"
    policy.write_text("max_epochs: 4\n")
    task = scene.door.open("train", 1, run.plan, run.base)
    assert scene.once("--policy", policy) == ExitCode.FAILED
    ((task_id, fail),) = scene.door.failures
    assert (task_id, fail.kind) == (task.id, "refused")
    assert fail.message == "the owner of this edge allows max_epochs 4, not 5 epochs"
    assert ("GET", f"objects/{task.base}") not in scene.door.calls


def test_noise_counts_only_if_the_edge_adds_it_itself(scene):
    own = {"dp_sgd": {"noise_multiplier": 0.8, "max_grad_norm": 1.0, "delta": 1e-3}}
    run, policy = scene.make_run(**own), scene.folder / "edge.yaml"
    task = scene.door.open("train", 1, run.plan, run.base)
    policy.write_text("privacy: {noise_at_least: 1}\n")
    assert scene.once("--policy", policy) == ExitCode.FAILED
    message = scene.door.failures[0][1].message
    assert message.endswith("noise_at_least 1, not a noise multiplier of 0.8")
    policy.write_text("privacy: {noise_at_least: 0.8}\n")
    scene.door.tasks.append(task)
    assert scene.once("--policy", policy) == ExitCode.DONE
    assert scene.report(task)["spending"]["noise_multiplier"] == pytest.approx(0.8)


def test_a_training_that_fails_is_given_back_without_data(scene):
    run = scene.make_run()
    np.savez(scene.folder / "a.npz", x_train=np.zeros(3), secret=np.zeros(2))
    scene.door.open("train", 1, run.plan, run.base)
    assert scene.once() == ExitCode.FAILED
    ((_, fail),) = scene.door.failures
    assert fail.kind in ("training", "other")
    assert str(scene.folder) not in fail.message


def test_a_dry_run_lists_what_would_leave_and_sends_nothing(scene):
    assert scene.edges.run(scene.words("--dry-run"), scene.log) == ExitCode.DONE
    assert "60 training samples, 20 test samples" in scene.text
    assert "stays here: samples, labels" in scene.text
    assert scene.door.calls == []
    assert not scene.state.exists()


def test_nothing_is_asked_while_the_owners_command_fails(scene):
    run, charging = scene.make_run(), scene.folder / "charging"
    scene.door.open("train", 1, run.plan, run.base)
    when = "--when", f"test -e {charging}"
    assert scene.once(*when) == ExitCode.DONE
    pid = scene.start(*when)
    scene.until(pid, lambda: "waiting" in scene.text)
    assert scene.door.calls == []
    charging.touch()
    scene.until(pid, lambda: scene.door.verdicts)
    scene.door.ended = "done"
    assert scene.edges.wait(pid) == ExitCode.DONE


def test_old_weights_are_deleted_and_too_large_ones_not_fetched(scene):
    run, door = scene.make_run(), scene.door
    first = door.open("train", 1, run.plan, run.base)
    assert scene.once() == ExitCode.DONE
    other = make_run(scene.folder / "other", scene.data, learning_rate=0.5)
    second = door.open("train", 2, other.plan, other.base[:-4] + bytes(4))
    assert scene.once() == ExitCode.DONE
    names = {path.name for path in (scene.state / "objects").iterdir()}
    assert names == {second.plan, second.base}
    assert not names & {first.plan, first.base}
    door.open("train", 3, run.plan, run.base)
    assert scene.once("--max-disk", "1k") == ExitCode.FAILED
    assert door.failures[0][1].kind == "disk"
    assert "--max-disk allows less" in door.failures[0][1].message
