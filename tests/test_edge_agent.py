"""The edge's own process, against a scripted service; none of them can import Ray."""

import hashlib
import json
import os
import signal
import stat

import numpy as np
import pytest
from support.edge_runs import from_file, make_run
from support.forked_edges import forked_edges
from support.scripted_door import ScriptedDoor
from support.waiting import wait_for

from fedray.cli.exit_codes import ExitCode


@pytest.fixture(scope="module")
def edges():
    with forked_edges() as server:
        yield server


@pytest.fixture
def door(tmp_path):
    with ScriptedDoor(tmp_path) as server:
        yield server


@pytest.fixture
def run(tmp_path, digits):
    return make_run(tmp_path / "run", digits("a", n_train=60, n_test=20))


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "edge.log"
    yield path
    if path.exists():  # shown where a test fails
        print(path.read_text())


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def invitation(tmp_path, door):
    path = tmp_path / "invitation"
    path.write_text(door.invitation + "\n")
    return path


def same(ours, theirs) -> bool:
    return ours.keys() == theirs.keys() and all(
        np.array_equal(ours[name], theirs[name]) for name in ours
    )


def test_an_edge_enrols_joins_trains_and_evaluates_as_a_party_in_the_cluster(
    edges, door, run, state, invitation, log, tmp_path
):
    join = door.open("join", 0, run.plan, run.base)
    train = door.open("train", 1, run.plan, run.base)
    score = door.open("evaluate", 1, run.plan, run.base)
    words = run.words(door.url, state, "--invitation-file", invitation)
    pid = edges.start(words, log)
    wait_for(lambda: score.id in door.verdicts, "all three tasks")
    door.ended = "all rounds are done"
    assert edges.wait(pid) == ExitCode.DONE
    assert json.loads(door.commits[join.id].report)["n_train"] == 60
    assert json.loads(door.commits[join.id].report)["n_test"] == 20
    update = from_file(tmp_path, door.updates[train.id])
    assert same(update.weights, run.update(1))
    report = json.loads(door.commits[train.id].report)
    assert report["n_samples"] == 60
    expected = run.group.evaluate(run.payload, round=1).scores
    got = json.loads(door.commits[score.id].report)
    assert (got["loss"], got["accuracy"]) == (expected.loss, expected.accuracy)
    assert door.uploads == {}
    text = log.read_text()
    for words in ("enrolled in run", "round 1 (train): taken", "the run has ended"):
        assert words in text


def test_the_update_file_says_of_which_round_and_party_it_is(
    edges, door, run, state, invitation, log, tmp_path
):
    task = door.open("train", 2, run.plan, run.base)
    words = run.words(door.url, state, "--invitation-file", invitation, "--once")
    assert edges.run(words, log) == ExitCode.DONE
    metadata = from_file(tmp_path, door.updates[task.id]).metadata
    assert metadata == {
        "run": "tiny", "round": "2", "party": "3", "base": task.base, "n_samples": "60",
    }  # fmt: skip


def test_sixteen_bits_travel_as_the_service_asks(
    edges, door, digits, state, invitation, log, tmp_path
):
    data = digits("a", n_train=60)
    run = make_run(tmp_path / "run", data, wire_dtype="bfloat16", epochs=2)
    task = door.open("train", 1, run.plan, run.base)
    words = run.words(door.url, state, "--invitation-file", invitation, "--once")
    assert edges.run(words, log) == ExitCode.DONE
    assert same(from_file(tmp_path, door.updates[task.id]).weights, run.update(1))


def test_code_that_builds_the_model_is_the_edges_own(
    edges, door, digits, mlp, state, invitation, log, tmp_path
):
    run = make_run(tmp_path / "run", digits("a", n_train=60), architecture=mlp)
    assert b"nn.Sequential" not in run.plan  # no code travels
    task = door.open("train", 1, run.plan, run.base)
    words = run.words(door.url, state, "--invitation-file", invitation, "--once")
    assert edges.run(words, log) == ExitCode.FAILED
    assert "--architecture file.py:mlp" in log.read_text()
    ((_, fail),) = door.failures
    assert str(tmp_path) not in fail.message  # its owner's paths stay
    door.tasks.append(task)
    words = run.words(door.url, state, "--once", "--architecture", mlp)
    assert edges.run(words, log) == ExitCode.DONE
    assert same(from_file(tmp_path, door.updates[task.id]).weights, run.update(1))


def test_killed_at_every_stage_it_goes_on_and_sends_the_same_update_once(
    edges, door, run, state, invitation, log, tmp_path
):
    task = door.open("train", 1, run.plan, run.base)
    size = len(run.base) // 3
    slow = "--max-bandwidth", max(1, len(run.base) // 40)  # so that chunks are small
    words = run.words(door.url, state, "--invitation-file", invitation, "--once")
    stages = [
        ("POST", "enrol"),  # before the answer
        ("POST", "checkin"),
        ("GET", f"objects/{task.plan}"),
        ("GET", f"objects/{task.base}"),
        ("HEAD", f"tasks/{task.id}/update"),  # trained
        ("PATCH", f"tasks/{task.id}/update"),
        ("POST", f"tasks/{task.id}/commit"),
    ]
    for stage in stages:
        pids = []

        def kill(method, path, stage=stage, pids=pids):
            if (method, path) == stage and pids:
                os.kill(pids.pop(), signal.SIGKILL)

        door.on_call = kill
        pid = edges.start(words, log)
        pids.append(pid)
        assert edges.wait(pid) == -signal.SIGKILL, stage
    door.on_call = lambda method, path: None
    assert edges.run(words, log) == ExitCode.DONE
    assert size and slow
    assert [*door.verdicts] == [task.id]
    assert same(from_file(tmp_path, door.updates[task.id]).weights, run.update(1))
    keys = {(one.public_key, one.token_hash) for one in door.enrolments}
    assert len(door.enrolments) >= 2 and len(keys) == 1


def test_a_training_that_is_killed_is_made_again_with_the_same_bits(
    edges, door, digits, state, invitation, log, tmp_path
):
    data = digits("a", n_train=200)
    run = make_run(tmp_path / "run", data, epochs=60, batch_size=4)
    task = door.open("train", 1, run.plan, run.base)
    words = run.words(door.url, state, "--invitation-file", invitation, "--once")
    pid = edges.start(words, log)
    wait_for(lambda: log.exists() and "begins" in log.read_text())
    edges.kill(pid)
    assert task.id not in door.verdicts
    assert edges.run(words, log) == ExitCode.DONE
    assert same(from_file(tmp_path, door.updates[task.id]).weights, run.update(1))


def test_an_upload_goes_on_at_the_byte_where_it_broke_off(
    edges, door, run, state, invitation, log, tmp_path
):
    task = door.open("train", 1, run.plan, run.base)
    update = f"PATCH tasks/{task.id}/update"
    door.fault(update, "late cut", (503, {"Retry-After": "0"}, {}), "cut")
    door.fault(f"commit", "late cut", (429, {"Retry-After": "0"}, {}))
    words = run.words(door.url, state, "--invitation-file", invitation, "--once")
    words += ["--max-bandwidth", "200k"]
    assert edges.run(words, log) in (ExitCode.DONE, ExitCode.FAILED)
    while task.id not in door.verdicts:  # --once gives up after three failures
        edges.run(words, log)
    assert same(from_file(tmp_path, door.updates[task.id]).weights, run.update(1))
    sent = [json.loads(line) for line in (state / "sent.jsonl").open()]
    n_bytes = sum(line["bytes"] for line in sent if line["kind"] == "update")
    assert n_bytes < 4 * len(door.updates[task.id])


def test_a_download_goes_on_where_it_broke_off_and_must_be_what_it_is_called(
    edges, door, run, state, invitation, log
):
    task = door.open("train", 1, run.plan, run.base)
    door.fault(f"GET objects/{task.base}", "after 1000", "after 500")
    words = run.words(door.url, state, "--invitation-file", invitation, "--once")
    assert edges.run(words, log) == ExitCode.DONE
    assert task.id in door.verdicts
    good = door.objects[task.base]
    second = door.open("train", 2, run.plan, run.base)
    (state / "objects" / task.base).unlink()
    door.objects[task.base] = good[:-1] + b"!"
    assert edges.run(words, log) == ExitCode.FAILED
    assert "SHA-256" in log.read_text()
    assert second.id not in door.verdicts


def test_all_that_left_is_listed_before_it_leaves(
    edges, door, run, state, invitation, log
):
    door.open("train", 1, run.plan, run.base)
    bodies = []
    words = run.words(door.url, state, "--invitation-file", invitation, "--once")
    assert edges.run(words, log) == ExitCode.DONE
    lines = [json.loads(line) for line in (state / "sent.jsonl").open()]
    kinds = [line["kind"] for line in lines]
    assert kinds[:2] == ["enrol", "checkin"]
    assert kinds.count("update") == kinds.count("commit") == 1
    (update,) = door.updates.values()
    (line,) = [line for line in lines if line["kind"] == "update"]
    assert line["bytes"] == len(update)
    assert line["sha256"] == hashlib.sha256(update).hexdigest()
    assert {line["run"] for line in lines} == {"ab" * 16}
    assert bodies == []


def test_the_state_folder_is_for_its_owner_alone_and_for_one_process(
    edges, door, run, state, invitation, log
):
    words = run.words(door.url, state, "--invitation-file", invitation)
    pid = edges.start(words, log)
    wait_for(lambda: door.check_ins)
    for path in [state, *state.rglob("*")]:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    assert edges.run(words, log) == ExitCode.FAILED
    assert "another fedray edge uses it" in log.read_text()
    os.kill(pid, signal.SIGTERM)
    assert edges.wait(pid) == ExitCode.STOPPED
    assert "stopped; the same command goes on" in log.read_text()
    state.chmod(0o755)
    assert edges.run(words, log) == ExitCode.FAILED
    assert "chmod -R go=" in log.read_text()


def test_heartbeats_tell_of_a_long_training_and_hear_that_it_is_void(
    edges, door, digits, state, invitation, log, tmp_path, monkeypatch
):
    run = make_run(tmp_path / "run", digits("a", n_train=400), epochs=100_000)
    task = door.open("train", 1, run.plan, run.base)
    words = run.words(door.url, state, "--invitation-file", invitation)
    pid = edges.start(words, log)
    wait_for(lambda: any(one.state == "training" for one in door.check_ins))
    assert {one.task for one in door.check_ins if one.state == "training"} == {task.id}
    assert len({one.instance for one in door.check_ins}) == 1
    door.close_task(task.id)
    door.ended = "stopped by its operator"
    assert edges.wait(pid) == ExitCode.DONE
    assert "stopped by its operator" in log.read_text()


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ((401, {}, {"error": "", "detail": "revoked", "hint": ""}), 1, "revoked"),
        ((410, {}, {"error": "", "detail": "", "hint": "", "reason": "done"}), 0,
         "the run has ended: done"),
        ((426, {}, {"error": "", "detail": "", "hint": "", "min_version": "9.0"}), 1,
         "needs fedray 9.0 at least: update it here"),
        ((400, {}, {"error": "", "detail": "no such key", "hint": ""}), 1,
         "refuses the check-in: no such key"),
    ],
)  # fmt: skip
def test_an_answer_after_which_no_call_helps_ends_the_edge_with_a_line(
    edges, door, run, state, invitation, log, answer, code, words
):
    door.fault("checkin", answer)
    command = run.words(door.url, state, "--invitation-file", invitation)
    assert edges.run(command, log) == code
    assert words in log.read_text()


def test_an_invitation_that_is_refused_or_used_ends_with_what_to_do(
    edges, door, run, state, invitation, log, tmp_path
):
    words = run.words(door.url, state, "--invitation-file", invitation, "--once")
    assert edges.run(words, log) == ExitCode.DONE
    assert "nothing to do now" in log.read_text()
    again = run.words(door.url, tmp_path / "other", "--invitation-file", invitation)
    assert edges.run(again, log) == ExitCode.FAILED
    assert "enrolled another edge" in log.read_text()
    door.invitation = "fedray-invite." + "ab" * 16 + "." + "x" * 43
    third = run.words(door.url, tmp_path / "third", "--invitation-file", invitation)
    assert edges.run(third, log) == ExitCode.FAILED
    assert "the invitation is refused" in log.read_text()
    assert not (tmp_path / "third" / "enrolment.json").exists()


def test_the_invitation_may_come_from_standard_input_and_is_kept_no_longer(
    edges, door, run, state, log
):
    words = run.words(door.url, state, "--invitation-file", "-", "--once")
    door.fault("enrol", "cut", "cut", "cut")
    assert edges.run(words, log, door.invitation) == ExitCode.FAILED
    assert (state / "invitation").exists()
    words = run.words(door.url, state, "--once")
    assert edges.run(words, log) == ExitCode.DONE
    assert not (state / "invitation").exists()
    assert door.invitation not in "".join(
        path.read_text(errors="replace") for path in state.rglob("*") if path.is_file()
    )


def test_leaving_asks_the_service_to_forget_and_forgets(
    edges, door, run, state, invitation, log
):
    words = run.words(door.url, state, "--invitation-file", invitation)
    assert edges.run([*words, "--once"], log) == ExitCode.DONE
    assert edges.run([*run.words(door.url, state), "--leave"], log) == ExitCode.DONE
    assert door.has_left
    assert {path.name for path in state.iterdir()} == {"lock", "party", "sent.jsonl"}
    assert edges.run([*run.words(door.url, state), "--leave"], log) == 1


def test_an_edge_refuses_what_its_owner_does_not_allow(
    edges, door, digits, state, invitation, log, tmp_path
):
    run = make_run(tmp_path / "run", digits("a", n_train=60), epochs=5)
    policy = tmp_path / "edge.yaml"
    policy.write_text("max_epochs: 4\n")
    task = door.open("train", 1, run.plan, run.base)
    words = run.words(door.url, state, "--invitation-file", invitation)
    words += ["--once", "--policy", policy]
    assert edges.run(words, log) == ExitCode.FAILED
    ((task_id, fail),) = door.failures
    assert (task_id, fail.kind) == (task.id, "refused")
    assert fail.message == "the owner of this edge allows max_epochs 4, not 5 epochs"
    assert not [path for _, path in door.calls if path == f"objects/{task.base}"]


def test_noise_counts_only_if_the_edge_adds_it_itself(
    edges, door, digits, state, invitation, log, tmp_path
):
    own = {"dp_sgd": {"noise_multiplier": 0.8, "max_grad_norm": 1.0, "delta": 1e-3}}
    run = make_run(tmp_path / "run", digits("a", n_train=60), **own)
    task = door.open("train", 1, run.plan, run.base)
    words = run.words(door.url, state, "--invitation-file", invitation, "--once")
    policy = tmp_path / "edge.yaml"
    policy.write_text("privacy: {noise_at_least: 1}\n")
    assert edges.run([*words, "--policy", policy], log) == ExitCode.FAILED
    message = door.failures[0][1].message
    assert message.endswith("noise_at_least 1, not a noise multiplier of 0.8")
    policy.write_text("privacy: {noise_at_least: 0.8}\n")
    door.tasks.append(task)
    assert edges.run([*words, "--policy", policy], log) == ExitCode.DONE
    report = json.loads(door.commits[task.id].report)
    assert report["spending"]["noise_multiplier"] == pytest.approx(0.8)


def test_a_training_that_fails_is_given_back_without_data(
    edges, door, run, state, invitation, log, tmp_path
):
    np.savez(tmp_path / "bad.npz", x_train=np.zeros(3), secret=np.zeros(2))
    door.open("train", 1, run.plan, run.base)
    run.data = str(tmp_path / "bad.npz")
    words = run.words(door.url, state, "--invitation-file", invitation, "--once")
    assert edges.run(words, log) == ExitCode.FAILED
    ((_, fail),) = door.failures
    assert fail.kind in ("training", "other")
    assert str(tmp_path) not in fail.message


def test_a_dry_run_lists_what_would_leave_and_sends_nothing(edges, door, run, log):
    words = ["--url", door.url, "--data", run.data, "--data-handler", "mnist_pytorch"]
    assert edges.run([*words, "--dry-run"], log) == ExitCode.DONE
    text = log.read_text()
    assert "60 training samples, 20 test samples" in text
    assert "stays here: samples, labels" in text
    assert door.calls == []


def test_nothing_is_asked_while_the_owners_command_fails(
    edges, door, run, state, invitation, log, tmp_path
):
    charging = tmp_path / "charging"
    door.open("train", 1, run.plan, run.base)
    words = run.words(door.url, state, "--invitation-file", invitation, "--once")
    pid = edges.start([*words, "--when", f"test -e {charging}"], log)
    wait_for(lambda: log.exists() and "waiting" in log.read_text())
    assert door.calls == []
    charging.touch()
    assert edges.wait(pid) == ExitCode.DONE
    assert len(door.verdicts) == 1


def test_old_weights_are_deleted_and_too_large_ones_not_fetched(
    edges, door, run, state, invitation, log, tmp_path
):
    other = make_run(tmp_path / "other", run.data, learning_rate=0.5)
    first = door.open("train", 1, run.plan, run.base)
    words = run.words(door.url, state, "--invitation-file", invitation, "--once")
    assert edges.run(words, log) == ExitCode.DONE
    second = door.open("train", 2, other.plan, other.base)
    assert edges.run(words, log) == ExitCode.DONE
    names = {path.name for path in (state / "objects").iterdir()}
    assert names == {second.plan, second.base} and first.plan not in names
    door.open("train", 3, run.plan, run.base)
    assert edges.run([*words, "--max-disk", "1k"], log) == ExitCode.FAILED
    assert door.failures[0][1].kind == "disk"
    assert "--max-disk allows less" in door.failures[0][1].message
