"""`fedray check`, `runs`, `status`, `stop`: what a person sees before and meanwhile."""

import contextlib
import json
import threading

import numpy as np
import pytest
import ray
import yaml
from support.waiting import wait_for

import fedray
from fedray.cli import main
from fedray.config import FederationConfig
from fedray.errors import RunFolderError, Stopped, UnknownRun
from fedray.federation import runs
from fedray.federation.check import check, find_missing_tests
from fedray.federation.memory_estimate import memory_needed
from fedray.federation.traffic import round_bytes
from fedray.messages import ProbeResult
from fedray.placement import ActorPool, Node, Placement

MODEL = 4 * (784 * 16 + 16 + 16 * 10 + 10)  # bytes of the fixture's MLP


@pytest.fixture
def file(settings, tmp_path):
    """Write the tiny federation to a file, with keys laid over it."""

    def write(**more) -> str:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({**settings, **more}))
        return str(path)

    return write


@pytest.mark.usefixtures("cluster")
def test_a_check_predicts_what_the_run_does(file, settings, tmp_path, capsys):
    assert main(["check", file(), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["ok"], made["problems"]) == (True, [])
    assert made["model"]["n_parameters"] == 12_730
    assert made["model"]["bytes"] == MODEL
    found = {p["name"]: p["found"] for p in made["parties"]}
    assert {n: (f["n_train"], f["n_test"]) for n, f in found.items()} == {
        "a": (40, 20), "b": (64, 20),
    }  # fmt: skip
    assert found["a"]["samples"] == "float32[1, 28, 28]"
    assert found["a"]["peak_bytes"] > 50e6  # Python and a framework are at least that
    result = fedray.run(settings, run_dir=tmp_path / "run")
    nodes = {line.name: line.node for line in result.history[0].parties}
    assert nodes == {party["name"]: party["node"] for party in made["parties"]}
    assert made["bytes_per_round"] == result.history[1].bytes_moved


@pytest.mark.usefixtures("cluster")
def test_a_check_reports_every_problem_at_once(
    file, settings, digits, tmp_path, capsys
):
    np.savez(
        tmp_path / "odd.npz",
        x_train=np.zeros((4, 5, 5)), y_train=np.zeros(4),
        x_test=np.zeros((0, 5, 5)), y_test=np.zeros(0),
    )  # fmt: skip
    parties = [
        *settings["parties"],
        {"name": "gone", "data": str(tmp_path / "gone.npz")},
        {"name": "odd", "data": str(tmp_path / "odd.npz")},
        {"name": "far", "data": digits("f", 20), "labels": {"fedray-party": "far"}},
    ]
    assert main(["check", file(parties=parties)]) == 1
    printed = capsys.readouterr().out
    problems = [x for x in printed.splitlines() if x.startswith("problem")]
    assert len(problems) == 3
    assert "party far: wanted fedray-party: far; found 1 node:" in printed
    assert "gone.npz: got no file there" in printed
    assert "party odd: DataError" in printed
    assert "a on " in printed
    assert "gone.npz: not ready" in printed
    assert printed.endswith("not ready to run\n")


HANDLER = """
import numpy as np

class Shaped:
    # as many features as the file's name says
    def __init__(self, path):
        self.n = int(path.rpartition("/")[2])

    def get_data(self):
        x, y = np.ones((6, self.n), np.float32), np.arange(6) % 2
        return (x, y), (x, y)
"""


@pytest.mark.usefixtures("cluster")
def test_a_party_with_samples_of_another_shape_is_named(tmp_path):
    (tmp_path / "shaped.py").write_text(HANDLER)
    (tmp_path / "any.py").write_text(
        "from torch import nn\ndef any():\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool1d(3), nn.Linear(3, 2))\n"
    )
    config = {
        "architecture": f"{tmp_path}/any.py:any",
        "data_handler": f"{tmp_path}/shaped.py:Shaped",
        "parties": [
            {"name": name, "data": n} for name, n in zip("xyz", "787", strict=True)
        ],
    }
    problems = check(fedray.federation.read_config(config)).problems
    assert problems == ["party y: has samples float32[8], most have float32[7]"]


STREAMS = """
import numpy as np
from torch import nn
from torch.utils.data import IterableDataset

class Stream(IterableDataset):
    def __init__(self, is_anew):
        self.is_anew, self.epoch = is_anew, 0
        self.draw = np.random.default_rng(0)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        draw = np.random.default_rng(self.epoch) if self.is_anew else self.draw
        for place in draw.permutation(30):
            yield np.full(4, place / 30, np.float32), place % 2

class Streams:
    def __init__(self, path):
        self.path = path

    def get_data(self):
        goes_on = {"goes_on": (False, True), "of_tests": (True, False)}
        return tuple(map(Stream, goes_on.get(self.path, (True, True))))

    def get_train_counts(self):
        return 30

    get_test_counts = get_train_counts

def net():
    return nn.Linear(4, 2)
"""


@pytest.mark.usefixtures("cluster")
def test_a_stream_is_read_twice_and_one_that_does_not_repeat_is_named(tmp_path, capsys):
    (tmp_path / "streams.py").write_text(STREAMS)
    names = ("anew", "goes_on", "of_tests")
    config = {
        "architecture": f"{tmp_path}/streams.py:net", "batch_size": 8,
        "data_handler": f"{tmp_path}/streams.py:Streams",
        "parties": [{"name": name, "data": name} for name in names],
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert main(["check", str(tmp_path / "c.yaml")]) == 0
    printed = capsys.readouterr().out
    (own,) = (
        line for line in printed.splitlines() if "party goes_on: a second" in line
    )
    assert "gave other training samples from batch 1 on" in own
    assert "set_epoch" in own
    assert (
        "party of_tests: a second pass over its data gave other test samples" in printed
    )
    assert "party anew" not in printed


@pytest.mark.usefixtures("cluster")
def test_a_model_that_does_not_load_is_one_problem_among_others(file, tmp_path):
    (tmp_path / "broken.pt").write_bytes(b"not a model")
    config = fedray.federation.read_config(file(model_file=str(tmp_path / "broken.pt")))
    made = check(config)
    assert len(made.problems) == 1
    assert "broken.pt" in made.problems[0]
    assert [party["name"] for party in made.parties] == ["a", "b"]


def test_config_mistakes_are_reported_as_json_too(tmp_path, capsys):
    bad = tmp_path / "bad.yaml"
    bad.write_text("rounds: 0\nepocs: 3\nmodel_file: none.pt\n")
    assert main(["check", str(bad), "--json"]) == 1
    made = json.loads(capsys.readouterr().out)
    assert made["ok"] is False
    assert len(made["problems"]) >= 3
    assert any("did you mean 'epochs'" in problem for problem in made["problems"])


def pool(node: str, *actors: str) -> ActorPool:
    return ActorPool(range(len(actors)), actors, Placement(node, {}, 1, 0))


def test_needed_memory_is_the_measured_peak_and_four_models_per_actor():
    found = {"a": ProbeResult("n", "cpu", 1, 1, "", "", 300), "b": None}
    node = Node("n", {}, 2, 0)
    assert memory_needed(node, [pool("n", "a", "a2"), pool("m", "a")], found, 10) == 680


def test_a_comparison_needs_test_samples_of_a_party_beside_test_data():
    parties = [{"name": "a", "data": "a.npz"}]
    given = {"rounds": 1, "model_file": "m.pt", "test_data": "t.npz"}
    config = FederationConfig(**given, parties=parties, compare="local")
    without = ProbeResult("n", "cpu", 8, 0, "", "", 300)
    tested = ProbeResult("n", "cpu", 8, 2, "", "", 300)
    (problem,) = find_missing_tests({"a": without, "aggregator": tested}, config)
    assert problem.startswith("compare: local: no party has test samples")
    assert not find_missing_tests({"a": tested, "aggregator": tested}, config)


@pytest.mark.parametrize(
    ("pools", "rule", "fraction", "n_models"),
    [
        ([pool("own", "a", "b")], "fedavg", 1.0, 1 + 2),
        ([pool("own", "a"), pool("far", "b", "c")], "fedavg", 1.0, 2 + 2),
        ([pool("own", "a"), pool("far", "b", "c")], "fedavg", 0.34, 1 + 1),
    ],
)
def test_bytes_of_a_round_are_those_counted_by_hand(
    monkeypatch, pools, rule, fraction, n_models
):
    from fedray.models import Blueprint
    from fedray.weights import Form

    class Context:
        def get_node_id(self):
            return "own"

    monkeypatch.setattr(ray, "get_runtime_context", Context)
    n_parties = sum(len(one.actors) for one in pools)
    config = FederationConfig(
        fusion_algorithm=rule, num_parties=n_parties, party_fraction=fraction
    )
    blueprint = Blueprint("pytorch", None, {"w": Form((5,), "float32")}, ("w",))
    assert round_bytes(config, {None: blueprint}, pools) == 20 * n_models


@pytest.fixture
def running(settings, tmp_path):
    """A federation of very many rounds in a thread; what ended it."""
    ended = []

    def go() -> None:
        try:
            fedray.run(settings, run_dir=tmp_path / "long", rounds=100_000)
        except Stopped as stopped:
            ended.append(stopped)

    thread = threading.Thread(target=go)
    thread.start()
    yield ended
    with contextlib.suppress(fedray.FedrayError):
        runs.stop("long")
    thread.join(600)


@pytest.mark.usefixtures("cluster")
def test_a_run_is_listed_and_stopped_by_its_name(running, tmp_path, capsys):
    (state,) = wait_for(lambda: [s for s in runs.list_running() if s.last])
    assert (state.run, state.rounds) == ("long", 100_000)
    assert state.folder == str(tmp_path / "long")
    assert state.last.round <= state.round
    assert main(["status"]) == 0
    assert main(["status", "long", "--json"]) == 0
    first, _, rest = capsys.readouterr().out.partition("\n[")
    assert "long" in first
    assert "of 100000" in first
    assert json.loads(f"[{rest}")[0]["run"] == "long"
    assert main(["stop", "nope"]) == 1
    assert "no run 'nope' here; there are: long" in capsys.readouterr().err
    assert main(["stop", "long"]) == 0
    printed = capsys.readouterr().out
    assert "stopped long" in printed
    assert str(tmp_path / "long") in printed
    assert runs.list_running() == []
    wait_for(lambda: running)
    assert "go on with --resume" in str(running[0])


@pytest.mark.usefixtures("cluster")
def test_past_runs_are_read_from_their_folders(monkeypatch, settings, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = runs.runs_folder()
    fedray.run(settings, run_dir=folder / "whole")
    config = (folder / "whole" / "config.yaml").read_text()
    (folder / "cut").mkdir()
    (folder / "cut" / "config.yaml").write_text(config)
    (folder / "torn").mkdir()
    (folder / "torn" / "config.yaml").write_text(": [")
    (folder / "other").mkdir()
    states = {state.run: (state.stage, state.round) for state in runs.list_past()}
    assert states == {
        "whole": ("ended", 2), "cut": ("unfinished", 0), "torn": ("unreadable", 0),
    }  # fmt: skip
    assert main(["runs"]) == 0
    assert main(["status", "whole"]) == 0
    assert capsys.readouterr().out.count("whole") >= 2


def test_a_run_that_has_ended_cannot_be_stopped_and_is_said_to_exist(
    tmp_path, monkeypatch
):
    folder = tmp_path / ".fedray" / "runs" / "first"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("rounds: 1\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(RunFolderError, match="first: it is not running here"):
        runs.stop("first")
    with pytest.raises(UnknownRun, match="no run 'second' here"):
        runs.stop("second")
