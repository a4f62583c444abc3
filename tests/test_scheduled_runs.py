"""Federations with a schedule: resumed and killed ones end with the same bits."""

import json

import pytest
from support.cluster_runs import kill_once
from support.comparison import assert_close

import fedray
from fedray.config import parse, rate_function, read_yaml
from fedray.errors import ConfigError, JoinFailed

pytestmark = pytest.mark.usefixtures("cluster")
COSINE = {
    "scheduler": "cosine",
    "scheduler_args": {"warmup": 3, "total_rounds": 4, "end_factor": 0.1},
    "scheduler_every": "step",
    "optimizer_args": {"momentum": 0.9},
    "gradient_clip_norm": 1.0,
}
PLATEAU = {
    "scheduler": "plateau",
    "scheduler_args": {"patience": 0, "factor": 0.5, "threshold": 0.5},
}


def lines_of(result):
    text = (result.folder / "history.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_two_halves_with_a_resume_are_one_scheduled_run(settings, tmp_path):
    whole = fedray.run(settings | COSINE, rounds=4, run_dir=tmp_path / "whole")
    half = {"run_dir": tmp_path / "halves"}
    fedray.run(settings | COSINE, rounds=2, **half)
    halves = fedray.run(settings | COSINE, rounds=4, resume=True, **half)
    assert_close(halves.weights(), whole.weights(), 0)
    rates = [line["learning_rate"] for line in lines_of(whole)]
    assert rates == [line["learning_rate"] for line in lines_of(halves)]
    # party a takes 3 steps a round, b 4; the median of two is their mean
    config, _ = parse(read_yaml(whole.folder / "config.yaml"))
    for line in lines_of(whole):
        ends = [rate_function(config, line["round"], n)(n - 1) for n in (3, 4)]
        assert line["learning_rate"] == pytest.approx(sum(ends) / 2, rel=1e-12)


def test_local_steps_are_one_run_in_two_halves_too(settings, tmp_path):
    del settings["epochs"]
    keys = settings | {"local_steps": 5, "scheduler": "linear",
                       "scheduler_args": {"total_rounds": 4}}  # fmt: skip
    whole = fedray.run(keys, rounds=4, run_dir=tmp_path / "whole")
    fedray.run(keys, rounds=1, run_dir=tmp_path / "halves")
    halves = fedray.run(keys, rounds=4, resume=True, run_dir=tmp_path / "halves")
    assert_close(halves.weights(), whole.weights(), 0)
    rates = [line["learning_rate"] for line in lines_of(whole)]
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert [p.n_samples for p in whole.history[0].parties] == [40, 64]


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def plateau(settings, kept, tmp_path):
    """Settings of rates that fall by half nearly every round; the run undisturbed."""
    keys = settings | PLATEAU | {"rounds": 4}
    if not kept:
        kept["run"] = fedray.run(keys, run_dir=tmp_path / "undisturbed")
    return keys, kept["run"]


def test_the_rate_falls_where_the_loss_does_not(plateau):
    _, run = plateau
    lines = lines_of(run)
    # the first loss is the best; half of it is reached by none
    assert [line["learning_rate"] for line in lines] == [0.1, 0.1, 0.05, 0.025]
    assert lines[-1]["plateau"]["learning_rate"] == 0.0125
    rate, losses = lines[-1]["plateau"]["best"], [line["loss"] for line in lines]
    assert rate == losses[0]


@pytest.mark.parametrize("actor", ["party:run:b", "aggregator:run"])
def test_a_killed_actor_comes_back_to_the_same_rates(plateau, actor, tmp_path):
    keys, run = plateau
    control = {"concurrency_group": "control"} if actor != "party:run:b" else {}
    watch = kill_once(actor, lambda p: p.round >= 3, **control)
    again = fedray.run(keys, run_dir=tmp_path / "run", watch=watch)
    assert len(watch.done) == 1
    assert_close(again.weights(), run.weights(), 0)
    assert [line["plateau"] for line in lines_of(again)] == [
        line["plateau"] for line in lines_of(run)
    ]


def test_a_resumed_plateau_decides_the_same(plateau, tmp_path):
    keys, run = plateau
    fedray.run(keys, rounds=3, run_dir=tmp_path / "halves")
    again = fedray.run(keys, resume=True, run_dir=tmp_path / "halves")
    assert_close(again.weights(), run.weights(), 0)


def test_rounds_apart_that_are_trained_again_have_the_rate_they_had(settings, tmp_path):
    apart = {
        "aggregation": "adaptive", "drift_threshold": 1e9, "max_rounds_apart": 2,
        "rounds": 7, "stacked": "false",
    }  # fmt: skip
    keys = settings | PLATEAU | apart
    run = fedray.run(keys, run_dir=tmp_path / "undisturbed")
    rates = [line["learning_rate"] for line in lines_of(run)]
    fused = [line["round"] for line in lines_of(run) if line["aggregated"]]
    assert fused == [1, 3, 5, 7]
    assert rates == [0.1, 0.1, 0.1, 0.05, 0.05, 0.025, 0.025]
    watch = kill_once("party:run:a", lambda p: p.round >= 5)
    again = fedray.run(keys, run_dir=tmp_path / "run", watch=watch)
    assert_close(again.weights(), run.weights(), 0)


@pytest.mark.parametrize("rule", ["best_model", "median"])
def test_other_rules_take_the_rate_of_the_plateau(settings, rule, tmp_path):
    keys = settings | PLATEAU | {"fusion_algorithm": rule, "rounds": 3}
    result = fedray.run(keys, run_dir=tmp_path / rule)
    assert [line["learning_rate"] for line in lines_of(result)] == [0.1, 0.1, 0.05]


def test_groups_have_rates_of_their_own(settings, tmp_path):
    for party, site in zip(settings["parties"], "xy", strict=True):
        party["fields"] = {"site": site}
    keys = settings | PLATEAU | {"groups": {"by": "site"}, "rounds": 3}
    result = fedray.run(keys, run_dir=tmp_path / "run")
    for site in "xy":
        own = [line for line in lines_of(result) if line["group"] == site]
        assert [line["learning_rate"] for line in own] == [0.1, 0.1, 0.05]


def test_a_changed_rate_of_a_resumed_run_is_taken_and_said(settings, tmp_path):
    folder = tmp_path / "run"
    fedray.run(settings, rounds=1, run_dir=folder)
    notes = []
    words = {"scheduler": "exponential", "scheduler_args": {"gamma": 0.5}}
    result = fedray.run(
        settings | words, learning_rate=0.4, rounds=3, resume=True, run_dir=folder,
        watch=lambda progress: notes.extend(progress.notes),
    )  # fmt: skip
    lines = lines_of(result)
    assert [line.get("learning_rate") for line in lines] == [None, 0.2, 0.1]
    said = "learning_rate was 0.1, is 0.4 from here on"
    assert said in notes
    assert said in lines[1]["notes"]
    assert "scheduler was None, is exponential from here on" in lines[1]["notes"]
    assert not lines[2]["notes"]


def test_a_decay_over_another_number_of_rounds_is_said(settings, tmp_path):
    keys, folder = settings | {"scheduler": "cosine"}, tmp_path / "run"
    fedray.run(keys, rounds=1, run_dir=folder)
    result = fedray.run(keys, rounds=2, resume=True, run_dir=folder)
    said = "rounds was 1, is 2 from here on: scheduler cosine goes by it"
    assert said in lines_of(result)[1]["notes"]


def test_what_only_parties_know_is_refused_before_round_1(settings, tmp_path):
    words = {"scheduler": "cosine", "scheduler_every": "step"}
    long = words | {"scheduler_args": {"warmup": 7}}
    with pytest.raises(JoinFailed) as caught:
        fedray.run(settings | long, run_dir=tmp_path / "long")
    # two rounds of 3 steps of party a; b takes 8
    told = str(caught.value)
    assert "warmup: 7 is longer than the run (6 steps, 3 in each round)" in told
    assert "party b" not in told
    with pytest.raises(JoinFailed, match="mixed_precision: float16 on a CPU"):
        fedray.run(settings, mixed_precision="float16", run_dir=tmp_path / "half")
    with pytest.raises(ConfigError, match="warmup: 3 is longer than the run"):
        fedray.run(settings, scheduler="cosine", scheduler_args={"warmup": 3})


def test_bfloat16_trains_and_weights_stay_float32(settings, tmp_path):
    exact = fedray.run(settings, run_dir=tmp_path / "exact")
    mixed = fedray.run(settings, mixed_precision="bfloat16", run_dir=tmp_path / "m")
    for name, array in mixed.weights().items():
        assert array.dtype == exact.weights()[name].dtype == "float32"
    assert mixed.loss == pytest.approx(exact.loss, rel=0.02)
    assert mixed.loss != exact.loss
