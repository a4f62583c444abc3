"""`fedray ui`: run folders as its page shows them, its calls, and the page itself."""

import contextlib
import json
import os
import subprocess
import threading
import time

import orjson
import pytest
import yaml
from starlette.testclient import TestClient
from support.browser import BROWSER, Browser
from support.processes import FEDRAY
from support.run_folders import line, party, write_many, write_run

from fedray.checkpoint import append_for_operator
from fedray.checkpoint.run_lock import lock_folder
from fedray.cli import main
from fedray.runs_page import RunDetails, RunReader
from fedray.service import store
from fedray.ui import server
from fedray.ui.run_index import RunIndex

TOKEN = "a-token"
MARKUP = '<img src=x onerror="document.title=1">'


def read(folder, name="a"):
    reader = RunReader(folder, name)
    reader.refresh()
    return reader.entry()


def details(folder):
    one = RunDetails(folder)
    one.refresh()
    return one.plain()


def index_of(*folders):
    index = RunIndex(folders, is_whole_machine=False)
    index.refresh()
    return index


def client_of(*folders, allow_stop=False, host="127.0.0.1", address="127.0.0.1"):
    app = server.build(RunIndex(folders, False), TOKEN, allow_stop)
    return TestClient(app, f"http://{host}:8400", client=(address, 1))


@pytest.fixture
def client(tmp_path):
    """A client that has the token, of the runs in tmp_path/runs."""
    (tmp_path / "runs").mkdir()
    one = client_of(tmp_path / "runs")
    assert one.get(f"/?token={TOKEN}").status_code == 200
    return one


# ---- one run


def test_an_entry_adds_up_what_the_rounds_say(tmp_path):
    lines = [
        line(1, accuracy=0.5, seconds=1.5, parties=[party("a"), party("b", "late")]),
        line(2, accuracy=0.7, parties=[party("a"), party("b", "late: busy")],
             notes=["data of a has changed"], left=["b"]),
        line(3, accuracy=0.8, loss=0.25, parties=[party("a", "refused: not finite")],
             spread={"accuracy": {"worst_tenth": 0.6}}, staleness=0.5),
    ]  # fmt: skip
    entry = read(write_run(tmp_path / "a", lines, fusion_algorithm="fedprox"))
    assert (entry["round"], entry["rounds"], entry["states"]) == (3, 3, ["ended"])
    assert (entry["accuracy"], entry["loss"]) == (0.8, 0.25)
    assert (entry["seconds"], entry["bytes_moved"]) == (5.5, 3000)
    assert entry["troubles"] == {"late": 2, "refused": 1, "gone": 1}
    assert entry["n_notes"] == 1
    assert (entry["worst_tenth"], entry["staleness"]) == ({"accuracy": 0.6}, 0.5)
    assert entry["fusion_algorithm"] == "fedprox"
    assert entry["settings"]["learning_rate"] == "0.1"
    assert entry["problem"] == ""


def test_only_new_lines_are_read_and_all_again_once_one_was_edited(tmp_path):
    folder = write_run(tmp_path / "a", [line(1, accuracy=0.1)], rounds=9)
    reader, file = RunReader(folder, "a"), folder / "history.jsonl"
    reader.refresh()
    first = reader.tail.offset
    assert first == file.stat().st_size
    with file.open("a") as history:
        history.write(json.dumps(line(2, accuracy=0.2)) + "\n" + '{"round": 3, "los')
    reader.refresh()
    assert (reader.totals.round, reader.totals.score("accuracy")) == (2, 0.2)
    with file.open("a") as history:
        history.write('s": 0.5, "accuracy": 0.3}\n')
    reader.refresh()
    assert (reader.totals.round, reader.totals.score("accuracy")) == (3, 0.3)
    assert reader.entry()["problem"] == ""
    text = file.read_text().replace('"round": 1,', '"round": 1, "x": 1,')
    file.write_text(text.replace('"accuracy": 0.3', '"accuracy": 0.4') + "\n")
    reader.refresh()
    assert (reader.totals.n_lines, reader.totals.score("accuracy")) == (3, 0.4)
    file.write_text("")  # begun anew
    reader.refresh()
    assert reader.entry()["round"] == 0


def test_unchanged_files_are_not_opened(tmp_path, monkeypatch):
    reader = RunReader(write_run(tmp_path / "a", [line(1)]), "a")
    reader.refresh()
    from pathlib import Path

    def refuse(*_, **__):
        raise AssertionError("opened")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_text", refuse)
    reader.refresh()


DAMAGED = {  # lines, rounds that count, what the entry says
    "cut by a kill": ([line(1), line(2), '{"round": 3, "chos'], 2, ""),
    "edited": ([line(1), "no json", line(3)], 3, "history.jsonl: no round's: line 2"),
    "of no object": ([line(1), "[1]", line(3)], 3, "no round's: line 2"),
    "empty": ([], 0, ""),
    "twice": ([line(1), line(2), line(2), line(3)], 3, "rounds twice or out of order"),
    "out of order": ([line(3), line(1)], 3, "rounds twice or out of order"),
    "no whole round": ([line(1.5), line(3)], 3, "no round's: line 1"),
    "values of other kinds": ([line(1, parties=[1]), line(2)], 2, "no round's: line 1"),
    "parties of another kind": ([line(1, parties="abc", notes=7), line(2)], 2, ""),
    "a metric that is a text": ([line(1, accuracy="high"), line(2)], 2, ""),
    "deep": (["[" * 100_000, line(2)], 2, "no round's: line 1"),
    "a number too large": ([line(10**400), line(2)], 2, "no round's: line 1"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_history_is_one_line_and_the_rest_counts(tmp_path, case):
    lines, n_rounds, problem = DAMAGED[case]
    folder = write_run(tmp_path / "a", lines)
    if case == "cut by a kill":
        file = folder / "history.jsonl"
        file.write_text(file.read_text().removesuffix("\n"))
    entry = read(folder)
    assert entry["round"] == n_rounds
    assert problem in entry["problem"]
    assert bool(problem) == bool(entry["problem"])
    orjson.dumps(details(folder))


def test_nan_counts_as_not_measured(tmp_path):
    text = json.dumps(line(2, accuracy=float("nan"), seconds=float("inf")))
    folder = write_run(tmp_path / "a", [line(1, accuracy=0.5), text])
    entry = read(folder)
    assert "NaN" in text
    assert (entry["round"], entry["loss"], entry["accuracy"]) == (2, 0.5, None)
    assert entry["seconds"] is None
    assert details(folder)["curves"][0]["accuracy"] == [0.5, None]


CONFIGS = {
    "missing": (None, "config.yaml: there is no such file"),
    "no YAML": ("a: [1", "config.yaml: not YAML in line"),
    "a list": ("- 1", "config.yaml: no mapping"),
    "too large": ("a: '" + "x" * (5 << 20) + "'", "config.yaml: larger than"),
    "of another version": ("a_key_of_another_version: 3\nrounds: 1\n", ""),
    "rounds that are none": ("rounds: many\n", ""),
    "an alias of itself": ("a: &a [*a]\nrounds: 1\n", ""),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_cannot_be_read_is_one_line(tmp_path, case):
    text, problem = CONFIGS[case]
    folder = write_run(tmp_path / "a", [line(1, accuracy=0.75)])
    (folder / "config.yaml").unlink()
    if text is not None:
        (folder / "config.yaml").write_text(text)
    entry = read(folder)
    assert entry["accuracy"] == 0.75
    assert problem in entry["problem"]
    assert bool(problem) == bool(entry["problem"])
    orjson.dumps([entry, details(folder)])


def test_states_are_those_of_fedray_runs(tmp_path):
    done = [line(1), line(2), line(3)]
    folders = {
        "ended": write_run(tmp_path / "a", done),
        "budget_spent": write_run(
            tmp_path / "b", [line(1, stop_reason="budget_spent: epsilon 3")]
        ),
        "unfinished": write_run(tmp_path / "c", [line(1)]),
        "failed": write_run(tmp_path / "d", [line(1)]),
        "stopped": write_run(tmp_path / "e", [line(1)]),
        "unreadable": write_run(tmp_path / "f", [line(1)]),
        "training": write_run(tmp_path / "g", [line(1)]),
    }
    (folders["failed"] / "failure.txt").write_text("party a: ValueError\n")
    (folders["stopped"] / "failure.txt").write_text("stopped after 1 of 3 rounds\n")
    (folders["unreadable"] / "config.yaml").write_text("{")
    with lock_folder(folders["training"]):
        states = {name: read(folder)["states"] for name, folder in folders.items()}
    assert states == {name: [name] for name in folders}
    assert read(folders["failed"])["failure"] == "party a: ValueError"
    assert read(folders["training"])["states"] == ["unfinished"]


def test_groups_are_curves_of_their_own_and_their_scores_are_weighted(tmp_path):
    lines = [
        line(1, group="north", accuracy=0.9, evaluated=300, seconds=1.0),
        line(1, group="south", accuracy=0.5, evaluated=100, seconds=3.0),
    ]
    folder = write_run(tmp_path / "a", lines, rounds=1)
    entry = read(folder)
    assert entry["accuracy"] == pytest.approx(0.8)  # (0.9·300 + 0.5·100) / 400
    assert (entry["seconds"], entry["bytes_moved"]) == (3.0, 2000)  # side by side
    assert [one["group"] for one in details(folder)["curves"]] == ["north", "south"]


def test_each_partys_troubles_are_counted_and_who_suffers_is_said(tmp_path):
    tests = {"party": ["a", "b", "c"], "n_samples": [9, 9, 9],
             "accuracy": [0.9, 0.4, 0.8]}  # fmt: skip
    lines = [
        line(1, parties=[party("a"), party("b"), party("c", "late")], joined=["c"]),
        line(2, parties=[party("a"), party("c", "refused: 3 values are not finite")],
             tests=tests, spread={"accuracy": {"median": 0.8}}, left=["b"]),
    ]  # fmt: skip
    plain = details(write_run(tmp_path / "a", lines))
    a, b, c = plain["parties"]
    assert (a["chosen"], a["fused"], a["strip"]) == (2, 2, "ff")
    assert (b["left"], b["strip"], b["tests"]) == (2, "f-", {"accuracy": 0.4})
    assert (c["late"], c["refused"], c["strip"], c["joined"]) == (1, 1, "lr", 1)
    assert c["trouble"] == "round 2: refused: 3 values are not finite"
    assert plain["findings"] == [
        "lowest accuracy on its own tests: b, 0.4; the median is 0.8",
        "most trouble: c, 1 × late, 1 × refused in the 2 rounds that chose it",
    ]


def test_a_private_run_shows_what_disclosure_lets_out(tmp_path):
    hidden = {"name": "a", "outcome": None}
    lines = [line(1, parties=[hidden], bytes_moved=None, refused=None,
                  privacy={"epsilon": 1.5, "weights": "equal"})]  # fmt: skip
    folder = write_run(tmp_path / "runs" / "a", lines, rounds=1)
    append_for_operator(folder, line(1, parties=[party("a", "refused: SECRET")]))
    client = client_of(tmp_path / "runs")
    client.get(f"/?token={TOKEN}")
    (entry,) = client.get("/runs").json()["runs"]
    assert entry["troubles"] is None
    assert entry["bytes_moved"] is None
    assert entry["epsilons"] == {"party": 1.5}
    whole = client.get(f"/runs/{entry['id']}")
    assert whole.json()["run"]["is_hidden"]
    assert "SECRET" not in whole.text
    for name in ("operator.jsonl", "privacy.key", "..%2foperator.jsonl"):
        answer = client.get(f"/runs/{entry['id']}/models/{name}")
        assert answer.status_code == 404
        assert "SECRET" not in answer.text


def test_long_histories_and_many_parties_have_bounded_answers(tmp_path):
    lines = [line(i, accuracy=i / 5000) for i in range(1, 5001)]
    lines[-1]["parties"] = [
        party(f"p{i}", "late" if i == 999 else "fused") for i in range(1000)
    ]
    plain = details(write_run(tmp_path / "a", lines, rounds=5000))
    (curves,) = plain["curves"]
    assert len(curves["round"]) == len(curves["accuracy"]) == 400
    assert (curves["round"][0], curves["round"][-1]) == (1, 5000)
    assert (len(plain["parties"]), plain["n_parties"]) == (300, 1000)
    assert "p999" in [one["name"] for one in plain["parties"]]
    assert len(orjson.dumps(plain)) < 500_000


# ---- finding runs


def test_runs_of_sweeps_and_the_service_are_found_and_projects_are_not(tmp_path):
    root = tmp_path / "runs"
    write_run(root / "alone", [line(1)])
    write_run(root / "sweep" / "seed=1", [line(1)])
    begun = write_run(root / "begun", [])
    (begun / "history.jsonl").unlink()
    (root / "project").mkdir()
    (root / "project" / "config.yaml").write_text("rounds: 3\n")
    (root / "empty").mkdir()
    state = store.State(store.make_id(), None, {"num_parties": 2, "rounds": "4"}, 2)
    (root / store.INCOMING).mkdir()
    store.create(root, state, None)
    index = index_of(root)
    entries = {entry["name"]: entry for entry in index.entries()}
    assert {*entries} == {"alone", "sweep/seed=1", "begun", state.name}
    assert entries[state.name]["states"] == ["waiting for parties"]
    assert entries[state.name]["remaining_parties"] == 2
    assert index.notes == []


def test_runs_that_come_and_go_are_noticed(tmp_path):
    index = index_of(tmp_path)
    assert index.entries() == []
    folder = write_run(tmp_path / "a", [line(1)])
    index.refresh_time = 0.0
    index.refresh()
    assert len(index.entries()) == 1
    (folder / "history.jsonl").unlink()
    (folder / ".lock").unlink()
    index.refresh_time = 0.0
    index.refresh()
    assert index.entries() == []


def test_what_cannot_be_looked_into_is_said_and_links_are_not_followed(tmp_path):
    write_run(tmp_path / "runs" / "a", [line(1)])
    write_run(tmp_path / "elsewhere", [line(1)])
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs")
    os.mkfifo(tmp_path / "runs" / "a" / "global_model.pt")
    index = index_of(tmp_path / "runs", tmp_path / "nowhere")
    assert [entry["name"] for entry in index.entries()] == ["a"]
    assert index.entries()[0]["model"] is None


def test_too_many_folders_are_not_all_looked_into(tmp_path, monkeypatch):
    monkeypatch.setattr("fedray.ui.run_index.MAX_VISITED", 10)
    for i in range(20):
        (tmp_path / f"folder-{i}").mkdir()
    index = index_of(tmp_path)
    (note,) = index.notes
    assert "10 folders were looked into, no more: name one that has runs" in note


def test_500_runs_are_listed_for_little_more_than_reading_their_files_takes(tmp_path):
    write_many(tmp_path, 500)
    files = [*tmp_path.rglob("history.jsonl")]
    assert len(files) == 500

    def read_plainly():
        for file in files:
            yaml.load((file.parent / "config.yaml").read_bytes(), yaml.CSafeLoader)
            for text in file.read_text().splitlines():
                json.loads(text)

    def list_all():
        index = RunIndex([tmp_path], is_whole_machine=False)
        index.refresh()
        while index.unread:
            index.refresh()
        return index.entries(), index

    plain_s = cpu_seconds(read_plainly)
    entries, index = list_all()
    assert len(entries) == 500
    assert cpu_seconds(list_all) < 3 * plain_s
    index.refresh_time = 0.0

    def look_again():
        index.refresh_time = 0.0
        index.refresh()

    assert cpu_seconds(look_again) < 0.5 * plain_s  # files are looked at, not read


def cpu_seconds(work, n=3):
    """CPU time of this process, the best of some."""
    times = []
    for _ in range(n):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


# ---- calls


def test_only_who_has_the_token_is_let_in(tmp_path):
    client = client_of(tmp_path)
    for path in ("/", "/page.js", "/runs", "/runs/a", "/compare?run=a", "/nope"):
        answer = client.get(path)
        assert answer.status_code == 403, path
        assert TOKEN not in answer.text
    assert "Open that link" in client.get("/").text
    assert client.get("/?token=other").status_code == 403
    assert client.get(f"/runs?token={TOKEN}").status_code == 403  # it is of the link
    page = client.get(f"/?token={TOKEN}")
    assert page.status_code == 200
    assert page.url.query == b""  # it does not stay in the address
    cookie = page.history[0].headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert client.get("/runs").status_code == 200


@pytest.mark.parametrize("wrong", ["host", "origin", "address"])
def test_other_machines_and_pages_of_other_sites_are_refused(tmp_path, wrong):
    hosts = {"host": "evil.example"}
    addresses = {"address": "10.0.0.7"}
    client = client_of(tmp_path, host=hosts.get(wrong, "127.0.0.1"),
                       address=addresses.get(wrong, "127.0.0.1"))  # fmt: skip
    headers = {"cookie": f"fedray-ui-8400={TOKEN}"}
    if wrong == "origin":
        headers["origin"] = "http://evil.example"
    answer = client.get("/runs", headers=headers)
    assert answer.status_code == 403
    assert "its own machine alone" in answer.json()["detail"]


def test_answers_carry_a_policy_that_forbids_inline_code(client):
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy
    for path in ("/page.js", "/curves.js", "/page.css"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
        assert "innerHTML" not in answer.text
        assert "insertAdjacentHTML" not in answer.text


def test_what_the_page_has_already_is_not_sent_again(client, tmp_path):
    write_run(tmp_path / "runs" / "a", [line(1)])
    whole = client.get("/runs").json()
    (entry,) = whole["runs"]
    assert client.get(f"/runs?seen={whole['version']}").json() == {
        "version": whole["version"]
    }
    path = f"/runs/{entry['id']}"
    one = client.get(path).json()
    assert client.get(f"{path}?seen={one['version']}").json() == {
        "version": one["version"]
    }
    with (tmp_path / "runs" / "a" / "history.jsonl").open("a") as history:
        history.write(json.dumps(line(2)) + "\n")
    assert client.get(f"{path}?seen={one['version']}").json()["run"]["round"] == 2


def test_reports_and_models_of_a_run_can_be_had(client, tmp_path):
    folder = write_run(tmp_path / "runs" / "a", [line(1)])
    (folder / "report.html").write_text("<p>a report</p>")
    (folder / "global_model.pt").write_bytes(b"model")
    (folder / "global_model_best.pt").symlink_to("/etc/passwd")
    (entry,) = client.get("/runs").json()["runs"]
    report = client.get(entry["report"])
    assert report.text == "<p>a report</p>"
    assert "script-src" not in report.headers["content-security-policy"]
    model = client.get(entry["model"])
    assert model.content == b"model"
    assert 'filename="global_model.pt"' in model.headers["content-disposition"]
    path = f"/runs/{entry['id']}/models"
    assert client.get(f"{path}/global_model_best.pt").status_code == 404
    assert client.get(f"{path}/..%2f..%2fetc%2fpasswd").status_code == 404
    (run,) = [client.get(f"/runs/{entry['id']}").json()["run"]]
    assert [(name, size) for _, name, size in run["models"]] == [("global_model.pt", 5)]


def test_runs_are_compared_as_fedray_compare_does(client, tmp_path, capsys):
    for algorithm, gain in (("fedavg", 0.0), ("fedprox", 0.05)):
        for seed in range(3):
            write_run(tmp_path / "runs" / f"{algorithm}-{seed}",
                      [line(1, accuracy=0.7 + gain), line(2, accuracy=0.85 + gain),
                       line(3, accuracy=0.91 + gain / 10 + seed / 1000)],
                      fusion_algorithm=algorithm, seed=seed)  # fmt: skip
    ids = [one["id"] for one in client.get("/runs").json()["runs"]]
    names = [("run", id) for id in ids] + [("target", "0.9")]
    answer = client.get("/compare", params=names).json()
    assert answer["titles"][0] == "fusion_algorithm"
    best, other = answer["rows"]
    assert best[0] == "fedprox"
    assert "worse" in other
    assert answer["findings"][0] == (
        "fewest bytes to accuracy 0.9: fusion_algorithm=fedprox, 2.0 kB (3 of 3 runs "
        "reached it); fusion_algorithm=fedavg needs 3.0 kB (3 of 3): clear, 95 % "
        "interval of the difference +1.0 kB to +1.0 kB"
    )
    assert [len(one["x"]) for one in answer["curves"]["bytes"]] == [3, 3]
    assert len(answer["ids"]) == len(answer["runs"]["rows"]) == 6
    for form in ("csv", "html", "latex"):
        file = client.get(f"/compare.{form}", params=names)
        assert file.status_code == 200
        assert "attachment" in file.headers["content-disposition"]
    assert main(["compare", str(tmp_path / "runs"), "--target", "0.9"]) == 0
    assert f"result   {answer['findings'][0]}" in capsys.readouterr().out


WRONG = {
    "none": ("", 422, "0 runs are named"),
    "unknown": ("run=nope", 404, "no such run here"),
    "metric": ("run={a}&metric=f2", 422, "no run has measured 'f2'"),
    "target": ("run={a}&target=much", 422, "target must be a finite number"),
    "not finite": ("run={a}&target=inf", 422, "target must be a finite number"),
    "by": ("run={a}&by=rounds", 422, "is the same in all runs"),
    "mode": ("run={a}&mode=best", 422, "mode must be max or min"),
    "too many": ("&".join(f"run={i}" for i in range(201)), 422, "201 runs are named"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_question_is_one_clear_line(client, tmp_path, case):
    write_run(tmp_path / "runs" / "a", [line(1)])
    (entry,) = client.get("/runs").json()["runs"]
    query, status, message = WRONG[case]
    answer = client.get(f"/compare?{query.format(a=entry['id'])}")
    assert answer.status_code == status
    assert message in answer.json()["detail"]


def test_runs_without_a_round_are_told_in_a_comparison(client, tmp_path):
    write_run(tmp_path / "runs" / "a", [])
    (entry,) = client.get("/runs").json()["runs"]
    answer = client.get(f"/compare?run={entry['id']}").json()
    assert (answer["n_runs"], answer["notes"]) == (0, ["a: no round is over"])


def test_nothing_is_stopped_unless_the_user_allows_it(client, tmp_path, monkeypatch):
    folder = write_run(tmp_path / "runs" / "a", [line(1)])
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "stopped a; 1 of 3", "")

    monkeypatch.setattr(server.subprocess, "run", run)
    (entry,) = client.get("/runs").json()["runs"]
    path = f"/runs/{entry['id']}/stop"
    refused = client.post(path)
    assert refused.status_code == 403
    assert "--allow-stop" in refused.json()["hint"]
    assert client.get(path).status_code == 405
    assert commands == []
    allowed = client_of(tmp_path / "runs", allow_stop=True)
    allowed.get(f"/?token={TOKEN}")
    assert client.get("/runs").json()["may_stop"] is False
    assert allowed.get("/runs").json()["may_stop"] is True
    evil = {"origin": "http://evil.example"}
    assert allowed.post(path, headers=evil).status_code == 403
    assert allowed.post(path).json() == {"message": "stopped a; 1 of 3"}
    assert [command[-2:] for command in commands] == [["stop", str(folder)]]


def test_what_fedray_stop_refuses_is_answered(tmp_path):
    write_run(tmp_path / "runs" / "a", [line(1)])
    allowed = client_of(tmp_path / "runs", allow_stop=True)
    allowed.get(f"/?token={TOKEN}")
    (entry,) = allowed.get("/runs").json()["runs"]
    answer = allowed.post(f"/runs/{entry['id']}/stop")
    assert answer.status_code == 409
    assert "fedray: " in answer.json()["detail"]
    assert "Traceback" not in answer.json()["detail"]


# ---- the command


def test_mistakes_of_the_command_are_one_clear_line(tmp_path, capsys):
    assert main(["ui", "--runs", str(tmp_path / "nowhere")]) == 1
    assert "there is no such folder" in capsys.readouterr().err
    with contextlib.closing(server.listen("127.0.0.1", 0)) as sock:
        port = str(sock.getsockname()[1])
        assert main(["ui", "--runs", str(tmp_path), "--port", port]) == 1
    assert "another program listens" in capsys.readouterr().err
    assert main(["ui", "--runs", str(tmp_path), "--port", "99999"]) == 1
    assert "there is no port 99999" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_prints_a_link_that_shows_the_runs_and_ends_alone(tmp_path):
    import requests

    write_run(tmp_path / "a", [line(1)])
    before = sorted(tmp_path.rglob("*"))
    command = [*FEDRAY, "ui", "--port", "0", "--runs", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        url = lines[1].split()[1]
        session = requests.Session()
        assert session.get(url, timeout=60).status_code == 200
        base = url.partition("/?")[0]
        assert len(session.get(f"{base}/runs", timeout=60).json()["runs"]) == 1
    finally:
        process.terminate()
        process.wait(60)
    assert sorted(tmp_path.rglob("*")) == before  # it writes nothing


# ---- the service's page is the same


def test_the_services_page_has_the_federations_of_its_client(tmp_path):
    from fedray.service import asgi
    from fedray.service.settings import Settings

    asgi_client = TestClient(asgi.build(Settings(str(tmp_path))), "http://localhost")
    (tmp_path / store.INCOMING).mkdir()
    states = []
    for owner, rule in ((None, "fedavg"), (None, "fedprox"), ("ann", "krum")):
        settings = {"rounds": "3", "fusion_algorithm": rule, "num_parties": "2"}
        state = store.State(store.make_id(), owner, settings, 2)
        folder = store.create(tmp_path, state, None)
        (folder / "history.jsonl").write_text(
            "".join(
                json.dumps(line(i, parties=[party("p", f"failed: {folder}/x.py")]))
                + "\n"
                for i in (1, 2, 3)
            )
        )
        states.append(state)
    answer = asgi_client.get("/runs").json()
    assert answer["is_service"]
    assert [run["id"] for run in answer["runs"]] == [states[1].id, states[0].id]
    own = answer["runs"][0]
    assert own["states"] == ["waiting for parties"]
    assert (own["round"], own["fusion_algorithm"]) == (3, "fedprox")
    assert "folder" not in own
    whole = asgi_client.get(f"/runs/{own['id']}")
    assert str(tmp_path) not in whole.text
    assert whole.json()["run"]["parties"][0]["trouble"].startswith("round 3: failed")
    assert asgi_client.get(f"/runs/{states[2].id}").status_code == 404
    names = [("run", state.id) for state in states[:2]]
    compared = asgi_client.get("/compare", params=names)
    assert compared.json()["titles"][0] == "fusion_algorithm"
    assert str(tmp_path) not in compared.text
    others = asgi_client.get("/compare", params=[("run", states[2].id)])
    assert others.status_code == 404
    for path in ("/", "/page.js", "/curves.js", "/page.css"):
        assert asgi_client.get(path).status_code == 200
    described = asgi_client.get("/openapi.json").json()["paths"]
    assert not {"/runs", "/compare"} & {*described}  # of the page, not of the API


@pytest.fixture
def address(tmp_path):
    """The link of a server of the runs in tmp_path/runs."""
    import uvicorn

    (tmp_path / "runs").mkdir(exist_ok=True)
    index = RunIndex([tmp_path / "runs"], is_whole_machine=False)
    with server.listen("127.0.0.1", 0) as sock:
        app = server.build(index, TOKEN)
        config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None)
        own = uvicorn.Server(config)
        thread = threading.Thread(target=own.run, args=([sock],), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/?token={TOKEN}"
        own.should_exit = True
        thread.join(60)


@pytest.fixture
def browser(tmp_path):
    if not BROWSER:
        pytest.skip("no Chromium here")
    one = Browser(tmp_path)
    yield one
    one.close()


def names_shown(browser):
    script = "[...document.querySelectorAll('#runs td.run a')].map(a => a.textContent)"
    return browser.run(script)


@pytest.fixture
def some_runs(tmp_path):
    """Two algorithms with three seeds; a failed run, a damaged one, a hostile one."""
    root = tmp_path / "runs"
    for algorithm, gain in (("fedavg", 0.0), ("fedprox", 0.05)):
        for seed in range(3):
            tests = {"party": ["a", "b"], "n_samples": [5, 5], "accuracy": [0.9, 0.7]}
            lines = [
                line(i, accuracy=0.6 + 0.1 * i + gain / i + seed / 1000, tests=tests,
                     parties=[party("a"), party("b", "late" if i > 1 else "fused")],
                     seconds=i + 1.0, loss=1 / i)
                for i in (1, 2, 3)
            ]  # fmt: skip
            folder = write_run(root / f"{algorithm}-{seed}", lines, seed=seed,
                               fusion_algorithm=algorithm)  # fmt: skip
            (folder / "global_model.pt").write_bytes(b"model")
    failed = write_run(root / "failed", [line(1, accuracy=0.1)], rounds=9)
    (failed / "failure.txt").write_text("party b: ValueError: 3 columns\n")
    write_run(root / "damaged", [line(1, accuracy=0.2), "no json"], rounds=9)
    hostile = party(MARKUP, f"refused: {MARKUP}", note=MARKUP)
    lines = [line(1, parties=[hostile], notes=[MARKUP], accuracy=0.3)]
    write_run(root / MARKUP, lines, rounds=1, fusion_algorithm=MARKUP)
    return root


@pytest.mark.slow
def test_the_page_lists_filters_sorts_and_compares(some_runs, address, browser):
    browser.open(address)
    browser.wait("document.querySelectorAll('#runs tbody tr').length === 9")
    assert "history.jsonl: no round's: line 2" in browser.run("document.body.innerText")
    assert "party b: ValueError: 3 columns" in browser.run("document.body.innerText")
    browser.run("byId('sort').value = 'accuracy'; byId('sort').dispatchEvent(new "
                "Event('change'))")  # fmt: skip
    assert names_shown(browser)[0] == "fedprox-2"
    head = "document.querySelector('th[data-title=accuracy]')"
    assert browser.run(f"{head}.getAttribute('aria-sort')") == "descending"
    browser.run(f"{head}.querySelector('button').click()")
    assert names_shown(browser)[0] == "failed"
    for text, names in {
        "accuracy>0.91": {"fedprox-0", "fedprox-1", "fedprox-2"},
        "fedprox seed=1": {"fedprox-1"},
        "state:nothing": set(),
        "failed": {"failed"},
        "round<2 accuracy<15%": {"failed"},
    }.items():
        browser.run("byId('find').focus(); byId('find').select()")
        browser.type(text)
        assert {*names_shown(browser)} == names, text
    browser.run("byId('find').select()")
    browser.type("learning_rate=0.1 round>2")
    assert len(names_shown(browser)) == 6
    browser.run("byId('tick-shown').click(); byId('compare').click()")
    browser.wait("document.querySelector('#comparison table')")
    browser.run("byId('target').value = '0.85'; "
                "document.querySelector('.question button').click()")  # fmt: skip
    text = browser.wait(
        "byId('comparison').innerText.includes('bytes to 0.85') && "
        "byId('comparison').innerText"
    )
    assert "fewest bytes to accuracy 0.85: " in text
    assert "best mean" in text
    assert browser.run("document.querySelectorAll('#comparison polyline').length") == 6
    assert browser.errors == []


@pytest.mark.slow
def test_texts_of_runs_never_become_markup(some_runs, address, browser):
    browser.open(address)
    browser.wait("document.querySelectorAll('#runs tbody tr').length === 9")
    hostile = browser.run("page.runs.find((run) => run.name.includes('onerror')).id")
    browser.run(f"location.hash = 'run={hostile}'")
    browser.wait(
        "document.querySelector('article h2')?.textContent.includes('onerror')"
    )
    shown = browser.run("document.querySelector('article').innerText")
    assert shown.count("<img src=x onerror=") >= 4
    browser.run(f"location.hash = 'compare={hostile},{hostile}'")
    browser.wait("document.querySelector('#comparison table')")
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.run("document.title") == "fedray"
    assert browser.errors == []


@pytest.mark.slow
def test_a_run_grows_on_the_page_and_can_be_had(some_runs, address, browser):
    browser.open(address)
    browser.wait("document.querySelectorAll('#runs tbody tr').length === 9")
    growing = browser.run("page.runs.find((run) => run.name === 'failed').id")
    browser.run(f"location.hash = 'run={growing}'")
    browser.wait("document.querySelector('article').innerText.includes('1 of 9')")
    with (some_runs / "failed" / "history.jsonl").open("a") as history:
        history.write(json.dumps(line(2, accuracy=0.77)) + "\n")
    browser.wait("document.querySelector('article').innerText.includes('77.0 %')")
    (some_runs / "failed" / "global_model.pt").write_bytes(b"model")
    link = "document.querySelector('article .links a[download]')?.getAttribute('href')"
    assert browser.wait(link) == f"/runs/{growing}/models/global_model.pt"
    assert "learning_rate" in browser.run(
        "document.querySelector('.settings').innerText"
    )
    assert browser.errors == []


@pytest.mark.slow
@pytest.mark.parametrize("is_dark", [False, True])
def test_the_page_fits_a_phone_and_both_themes_have_contrast(
    some_runs, address, browser, is_dark
):
    browser.open(address, 400, is_dark)
    browser.wait("document.querySelectorAll('#runs tbody tr').length === 9")
    one = browser.run("page.runs.find((run) => run.name === 'fedavg-0').id")
    title = "document.querySelector('article h2')?.textContent"
    ids = browser.run("page.runs.map((run) => run.id).join(',')")
    for place, ready in (
        ("", "!byId('list').hidden"),
        (f"run={one}", f"{title} === 'fedavg-0'"),
        (f"compare={ids}&target=0.8", "document.querySelector('#comparison table')"),
    ):
        browser.run(f"location.hash = '{place}'")
        browser.wait(ready)
        assert browser.run("document.documentElement.scrollWidth") <= 400, place
    assert browser.run(CONTRAST) >= 4.5  # WCAG 2.2, AA


CONTRAST = """(() => {  // least of text against the cards' background
  const channel = (c) => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
  const light = (text) => { const [r, g, b] = text.match(/[\\d.]+/g).map(Number);
    return .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b); };
  const card = light(getComputedStyle(byId('comparison')).backgroundColor);
  const parts = [...document.querySelectorAll('#comparison *, .state, header *')]
    .filter((one) => [...one.childNodes].some((node) => node.nodeType === 3));
  return Math.min(...parts.map((one) => {
    const own = light(getComputedStyle(one).color);
    return (Math.max(own, card) + .05) / (Math.min(own, card) + .05); }));
})()"""


@pytest.mark.slow
def test_all_can_be_done_by_keyboard(some_runs, address, browser):
    browser.open(address)
    browser.wait("document.querySelectorAll('#runs tbody tr').length === 9")
    browser.run("byId('find').focus()")
    browser.type("fedprox")
    focused = "document.activeElement.getAttribute('aria-label')"
    n_ticked = 0
    for _ in range(40):
        browser.press("Tab")
        if (browser.run(focused) or "").startswith("compare "):
            assert browser.run(OUTLINE) == "solid"
            browser.press(" ")
            n_ticked += 1
        if n_ticked == 2:
            break
    assert browser.run("ticked.size") == 2
    browser.run("poll()")  # a new answer takes nobody's focus
    assert browser.run(focused).startswith("compare fedprox")
    browser.run("byId('compare').focus()")
    browser.press("Enter")
    browser.wait("document.querySelector('#comparison table')")
    browser.run("byId('target').focus()")
    browser.type("0.8")
    browser.press("Enter")
    browser.wait("byId('comparison').innerText.includes('bytes to 0.8')")
    assert browser.run("document.activeElement.id") == "target"
    assert browser.run(UNNAMED) == []


OUTLINE = "getComputedStyle(document.activeElement).outlineStyle"
UNNAMED = """[...document.querySelectorAll('button, a, input, select')]
  .filter((one) => !one.textContent.trim() && !one.labels?.length)
  .filter((one) => !one.getAttribute('aria-label')).map((one) => one.outerHTML)"""
