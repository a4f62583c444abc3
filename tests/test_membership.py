"""Parties that join a federation while it runs, and parties that leave it."""

import shutil
import textwrap

import numpy as np
import pytest
import ray
import yaml
from support.cluster_runs import BackgroundRun, assert_repeats, kill
from support.waiting import PATIENCE_S

import fedray
from fedray import policy
from fedray.checkpoint import RunFolder
from fedray.cli import main
from fedray.config import members_in_round, read_yaml
from fedray.errors import (
    ConfigError,
    JoinFailed,
    PlacementError,
    UnknownRun,
)
from fedray.federation import join, leave, read_config

pytestmark = pytest.mark.usefixtures("cluster")


MINE = """
    import numpy as np

    class Mine:
        def __init__(self, path):
            self.file = np.load(path)

        def get_data(self):
            f = self.file
            return (f["x_train"], f["y_train"]), (f["x_test"], f["y_test"])
"""


@pytest.fixture
def start(settings, tmp_path):
    """Start a run in the background: ``start(rounds=5)``."""
    started = []

    def begin(name="run", config=settings, **words):
        started.append(BackgroundRun(config, tmp_path / name, **words))
        return started[-1]

    yield begin
    for run in started:
        run.is_enough.set()
        run.thread.join(PATIENCE_S)


@pytest.fixture
def third(digits):
    """A party that is not in the config."""
    return {"name": "c", "data": digits("c", 32, skip=200)}


def who(report) -> list[str]:
    assert {line.outcome for line in report.parties} <= {"fused", "apart"}
    return [line.name for line in report.parties]


def test_a_party_joins_another_leaves_and_the_runs_config_repeats_it(
    start, third, tmp_path
):
    run = start()
    run.wait_for_round(2)
    welcome = join("run", third)
    assert welcome.round > 2
    assert (welcome.n_train, welcome.n_test, welcome.device) == (32, 20, "cpu")
    assert join("run", third) == welcome  # asked twice
    run.wait_for_round(welcome.round + 1)
    last = leave("run", "a")
    assert leave("run", "a") >= last
    run.wait_for_round(last + 2)
    history = run.stop()
    for report in history:
        there = ["a", "b"] if report.round <= last else ["b"]
        there += ["c"] if report.round >= welcome.round else []
        assert who(report) == there
        assert report.joined == (["c"] if report.round == welcome.round else [])
        assert report.left == (["a"] if report.round == last + 1 else [])
    assert history[0].evaluated == 40
    assert history[-1].evaluated == 40  # tests of b and c
    assert f"party c has joined: round {welcome.round} is its first" in run.notes
    assert f"party a has left: round {last + 1} is without it" in run.notes
    told = assert_repeats(tmp_path / "run", tmp_path / "again")
    assert [(r.joined, r.left) for r in told] == [(r.joined, r.left) for r in history]
    page = (tmp_path / "again" / "report.html").read_text()
    assert f"joined in round {welcome.round}" in page
    assert f"left in round {last + 1}" in page
    assert not ray.util.list_named_actors(all_namespaces=True)


@pytest.mark.slow
def test_membership_survives_a_killed_aggregator_and_a_resumed_run(
    start, third, tmp_path
):
    code = tmp_path / "mine.py"
    code.write_text(textwrap.dedent(MINE))
    brought = third | {"data_handler": f"{code}:Mine"}
    run = start()
    run.wait_for_round(1)
    with pytest.raises(ConfigError, match="cannot be used"):
        join("run", brought | {"name": "../c"})
    assert not (tmp_path / "run" / "c.py").exists()
    joined = join("run", brought).round
    code.unlink()  # the run has its own copy
    run.wait_for_round(joined + 1)
    kill("aggregator:run", concurrency_group="control")
    run.wait_for_round(run.round + 3)
    assert leave("run", "b") >= joined
    kill("aggregator:run", concurrency_group="control")
    run.wait_for_round(run.round + 3)
    done = run.stop()[-1].round
    again = start(resume=True)  # with the config that it was begun with
    again.wait_for_round(done + 2)
    history = again.stop()
    assert who(history[-1]) == ["a", "c"]
    assert [report.joined for report in history if report.joined] == [["c"]]
    assert [report.left for report in history if report.left] == [["b"]]
    assert_repeats(tmp_path / "run", tmp_path / "again")


def test_a_party_counted_in_a_round_leaves_after_that_round(start, settings, tmp_path):
    run = start(keep_checkpoints=1000)
    run.wait_for_round(2)
    last = leave("run", "b")
    run.wait_for_round(last + 1)
    run.stop()
    # as a kill between the round and the next one leaves it
    for each in (run.folder / "checkpoints").iterdir():
        if int(each.name.removeprefix("round-")) > last:
            shutil.rmtree(each)
    kept = read_yaml(run.folder / "config.yaml")
    assert kept["parties"][1]["left"] == last + 1
    kept["parties"][1]["left"] = last
    (run.folder / "config.yaml").write_text(yaml.safe_dump(kept))
    words = {"run_dir": run.folder, "resume": True}
    history = fedray.run(settings, **words, rounds=last + 2).history
    assert [who(r) for r in history] == [["a", "b"]] * last + [["a"]] * 2
    assert [r.left for r in history] == [[]] * last + [["b"], []]
    assert_repeats(run.folder, tmp_path / "again")


HELD = """
    import time
    from pathlib import Path
    from fedray.data import MnistPytorch

    class Held(MnistPytorch):
        def __init__(self, path):
            while Path(path).with_name("hold").exists():
                time.sleep(0.05)
            super().__init__(path)
"""


def test_parties_join_and_leave_while_a_run_is_resumed(
    start, settings, third, tmp_path
):
    (tmp_path / "held.py").write_text(textwrap.dedent(HELD))
    settings["parties"][0]["data_handler"] = f"{tmp_path}/held.py:Held"
    run = start()
    run.wait_for_round(2)
    done = run.stop()[-1].round
    (tmp_path / "hold").touch()
    again = start(resume=True)
    again.wait_for_note("going on after")  # and waits for party a
    assert leave("run", "b") == done
    assert join("run", third).round == done + 1
    (tmp_path / "hold").unlink()
    again.wait_for_round(done + 2)
    history = again.stop()
    assert [who(r) for r in history[done - 1 : done + 1]] == [["a", "b"], ["a", "c"]]
    assert (history[done].joined, history[done].left) == (["c"], ["b"])
    assert_repeats(tmp_path / "run", tmp_path / "again")


def test_a_party_leaves_in_the_last_round(start, settings, tmp_path):
    run = start(rounds=1, epochs=400)
    run.wait_for_round(1, is_begun=True)
    assert leave("run", "b") == 1
    run.thread.join(PATIENCE_S)
    assert [who(r) for r in run.result.history] == [["a", "b"]]
    parties = read_yaml(run.folder / "config.yaml")["parties"]
    assert [party.get("left") for party in parties] == [None, 2]


def test_a_party_leaves_before_the_first_round(settings, tmp_path):
    settings["parties"][0]["left"] = 1
    history = fedray.run(settings, run_dir=tmp_path / "run", rounds=2).history
    assert [(who(r), r.left) for r in history] == [(["b"], ["a"]), (["b"], [])]


CANNOT_JOIN = [
    ({"name": "a"}, ConfigError, "party name 'a' is taken"),
    ({"name": "../c"}, ConfigError, r"party name '\.\./c' cannot be used"),
    ({"data": "/nowhere.npz"}, JoinFailed, r"c: DataError: data /nowhere\.npz"),
    ({"labels": {"site": "moon"}}, PlacementError, "party c: wanted site: moon"),
    ({"labels": "moon"}, ConfigError, "labels must be a mapping"),
    ({"data_handler": "mnist"}, ConfigError, "unknown data_handler 'mnist'"),
    ({"data_handler": "wikipedia"}, ConfigError, "wikipedia is not for pytorch"),
    ({"age": 3}, ConfigError, "unknown key 'age'"),
    ({"optimizer": "optim.Adam"}, ConfigError, "are for fusion_algorithm: ensem"),
]


def test_refused_joins_and_leaves_give_a_reason_and_the_run_continues(start, third):
    run = start(fusion_algorithm="median", quorum=0.6)
    run.wait_for_round(1)
    for party, error, told in CANNOT_JOIN:
        with pytest.raises(error, match=told):
            join("run", third | party)
    with pytest.raises(ConfigError, match="unknown party 'aa'; did you mean 'a'"):
        leave("run", "aa")
    leave("run", "a")
    with pytest.raises(ConfigError, match="no party is there in round"):
        leave("run", "b")
    with pytest.raises(UnknownRun, match="no run 'walk' here; there are: run"):
        leave("walk", "a")
    run.wait_for_note("a has left")
    assert who(run.stop()[-1]) == ["b"]


def test_a_rule_that_needs_so_many_keeps_them(start, settings, digits):
    settings["parties"] += [
        {"name": name, "data": digits(name, 24, skip=200 + i)}
        for i, name in enumerate("cde")
    ]
    run = start(fusion_algorithm="krum", n_hostile=1)
    run.wait_for_round(1)
    with pytest.raises(ConfigError, match="krum"):
        leave("run", "e")
    run.wait_for_round(run.round + 1)
    assert who(run.stop()[-1]) == list("abcde")


def test_parties_of_one_cut_and_compared_ones_are_fixed(start, settings, third):
    compared = settings | {"groups": {"by": "similarity", "k": 2}}
    cut = settings | {"partition": {"samples_per_party": 24}, "num_parties": 2}
    del cut["parties"]
    fixed = "partition neither join nor leave"
    for name, config, who, *told in [
        ("cut", cut, "party-0", fixed, fixed),
        ("compared", compared, "a", "similarity take in nobody later",
         "nobody would be left in group-"),
    ]:  # fmt: skip
        run = start(name, config)
        run.wait_for_round(1)
        with pytest.raises(ConfigError, match=told[0]):
            join(name, third)
        with pytest.raises(ConfigError, match=told[1]):
            leave(name, who)
        run.stop()


def test_a_party_joins_the_group_of_its_field(start, settings, third, tmp_path):
    for party, region in zip(settings["parties"], ("eu", "us"), strict=True):
        party["fields"] = {"region": region}
    settings["groups"] = {"by": "region"}
    run = start()
    run.wait_for_round(1)
    with pytest.raises(ConfigError, match="'c' has no field 'region'"):
        join("run", third)
    with pytest.raises(ConfigError, match="no party of region 'asia' is there in r"):
        join("run", third | {"fields": {"region": "asia"}})
    first = join("run", third | {"fields": {"region": "us"}}).round
    run.wait_for_round(first + 1)
    with pytest.raises(ConfigError, match="no party of region 'eu' is there in rou"):
        leave("run", "a")
    history = run.stop()
    last = [r for r in history if r.round == first]
    assert {r.group: (who(r), r.joined) for r in last} == {
        "eu": (["a"], []),
        "us": (["b", "c"], ["c"]),
    }


def test_adaptive_parties_leave_while_apart_and_join_after_the_fusion(
    start, third, tmp_path
):
    run = start(aggregation="adaptive", drift_threshold=1e9, max_rounds_apart=12)
    run.wait_for_round(1)
    leave("run", "a")
    run.wait_for_note("a has left")
    run.wait_for_round(join("run", third).round + 13)
    history = run.stop()
    fusions = [r.round for r in history if r.aggregated]
    left = next(r.round for r in history if r.left)
    assert "a" not in [name for r in history if r.round >= left for name in who(r)]
    begun = next(r.round for r in history if "c" in who(r))
    assert begun - 1 in fusions
    assert_repeats(tmp_path / "run", tmp_path / "again")


def test_a_run_that_waits_for_a_lost_party_continues_once_it_has_left(
    settings, third, tmp_path
):
    folder = tmp_path / "run"
    fedray.run(settings, run_dir=folder, rounds=2)
    file = tmp_path / "b.npz"
    lost = file.read_bytes()
    file.unlink()
    settings["rounds"] = 4
    with pytest.raises(JoinFailed, match=r"b\.npz"):
        fedray.run(settings, run_dir=folder, resume=True)
    assert join(str(folder), third).round == 3
    assert leave(str(folder), "b") == 2
    history = fedray.run(settings, run_dir=folder, resume=True).history
    assert [who(report) for report in history] == [["a", "b"]] * 2 + [["a", "c"]] * 2
    assert (history[2].joined, history[2].left) == (["c"], ["b"])
    with pytest.raises(ConfigError, match="has ended: 4 rounds are done"):
        leave(str(folder), "c")
    file.write_bytes(lost)
    assert_repeats(folder, tmp_path / "again")


def test_parties_join_and_leave_by_config(settings, third, tmp_path):
    parties = [*settings["parties"], third | {"joined": 2, "left": 4}]
    settings |= {"parties": parties, "rounds": 5}
    history = fedray.run(settings, run_dir=tmp_path / "run").history
    assert [who(report) for report in history] == [
        ["a", "b"], ["a", "b", "c"], ["a", "b", "c"], ["a", "b"], ["a", "b"],
    ]  # fmt: skip
    assert [report.joined for report in history] == [[], ["c"], [], [], []]
    assert [report.left for report in history] == [[], [], [], ["c"], []]
    assert [report.evaluated for report in history] == [40, 60, 60, 40, 40]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([{"joined": 0}, {}], "'a': joined must be a round from 1 on, got 0"),
        ([{"joined": 3, "left": 2}, {}], r"'a': left \(in round 2\) before it joined"),
        ([{"left": 2}, {"joined": 3}], "no party is there in round 2"),
        ([{"joined": 2}, {"joined": 2}], "no party is there in round 1"),
        ([{"joined": "soon"}, {}], "joined must be a whole number, got 'soon'"),
    ],
)
def test_wrong_joined_and_left_rounds_are_config_errors(settings, changes, told):
    pairs = zip(settings["parties"], changes, strict=True)
    settings["parties"] = [party | more for party, more in pairs]
    with pytest.raises(ConfigError, match=told):
        read_config(settings | {"rounds": 5})


def test_parties_are_selected_from_the_present_ones(settings, third):
    parties = [third | {"name": f"p{i}"} for i in range(6)]
    parties[1]["left"], parties[4]["joined"] = 3, 3
    config = read_config(settings | {"parties": parties, "rounds": 9})
    everyone = np.arange(6)
    assert members_in_round(config, everyone, 1).tolist() == [0, 1, 2, 3, 5]
    assert members_in_round(config, everyone, 2).tolist() == [0, 1, 2, 3, 5]
    assert members_in_round(config, everyone, 3).tolist() == [0, 2, 3, 4, 5]
    assert policy.count_fewest(config) == 5
    plain = [{k: v for k, v in p.items() if k not in ("left", "joined")}
             for p in parties]  # fmt: skip
    plain = read_config(settings | {"parties": plain})
    assert members_in_round(plain, everyone, 1) is everyone
    assert policy.count_fewest(config.with_changes(rounds=2)) == 5


def test_join_and_leave_from_a_terminal(start, third, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = start()
    run.wait_for_round(1)
    assert main(["join", "run", "--name", "c", "--data", third["data"]]) == 0
    out = capsys.readouterr().out
    assert "c has joined run: round " in out
    assert "32 samples, 20 tests, on cpu of node " in out
    assert main(["leave", "run", "--name", "a"]) == 0
    assert "a leaves run: no round after " in capsys.readouterr().out
    assert main(["leave", "run", "--name", "z"]) == 1
    assert "unknown party 'z'" in capsys.readouterr().err
    words = ["join", "run", "--name", "d", "--data", "/d.npz", "--labels", "moon"]
    assert main(words) == 1
    assert "--labels must be like" in capsys.readouterr().err
    run.wait_for_note("c has joined")
    run.wait_for_note("a has left")
    assert who(run.stop()[-1]) == ["b", "c"]
    words = ["join", str(tmp_path / "run"), "--name", "d", "--data", third["data"]]
    assert main(words) == 0
    assert "with --resume" in capsys.readouterr().out


def test_a_folder_without_a_run_and_one_that_another_cluster_uses(tmp_path, third):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnknownRun, match="empty"):
        join(str(tmp_path / "empty"), third)
    with pytest.raises(UnknownRun, match="none"):
        join(str(tmp_path / "none"), third)


def test_a_party_with_documents_learns_the_words_that_were_agreed(
    start, text, texts, tmp_path
):
    more = tmp_path / "more"
    more.mkdir()
    late = texts(more)["parties"][0] | {"name": "c"}
    run = start(config=text)
    run.wait_for_round(2)
    words = shapes(run.folder)
    run.wait_for_round(join("run", late).round + 1)
    history = run.stop()
    assert who(history[-1]) == ["a", "b", "c"]
    assert shapes(run.folder) == words


def shapes(folder) -> dict:
    weights = RunFolder(folder).last_checkpoint().weights
    return {name: array.shape for name, array in weights.items()}
