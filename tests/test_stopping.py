"""Early stopping, targets and the best round's model: by the history alone."""

import itertools
import json
import math
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import yaml
from support.cluster_runs import kill_once
from support.comparison import assert_close

import fedray
from fedray import cli, models, policy
from fedray.checkpoint import Checkpoint, RunFolder
from fedray.config import parse, read_overrides
from fedray.errors import ConfigError, RunFolderError
from fedray.federation import runs
from fedray.messages import RoundReport

LOSSES = (0.9, 0.5, 0.4, 0.45, 0.41, 0.42, 0.3, 0.2, 0.25, 0.1)
SCRIPTED = """
    import json
    from pathlib import Path

    import numpy as np

    SCORES = json.loads(Path({scores!r}).read_text())  # by the number of rounds trained

    class Scripted:
        def __init__(self):
            self.w = np.zeros(3)

        def get_weights(self):
            return {{"w": self.w}}

        def set_weights(self, weights):
            self.w = weights["w"]

        def train(self, data, context):
            self.w = self.w + 1
            return {{"loss": 1.0}}

        def evaluate(self, data, context):
            done = int(self.w[0])
            return {{"n_samples": 1, **(SCORES[done - 1] if done else SCORES[0])}}

        def predict(self, x):
            return np.full(len(x), self.w[0])
"""
HANDLER = """
    import numpy as np

    class Data:
        def __init__(self, path):
            self.has_tests = "untested" not in path

        def get_data(self):
            part = np.zeros((2, 1)), np.zeros(2)
            return part, (part if self.has_tests else None)
"""


@pytest.fixture
def scripted(tmp_path):
    """Settings of a run whose evaluations give what a list says, round by round."""

    def make(scores=LOSSES, **more):
        lines = [s if isinstance(s, dict) else {"loss": s} for s in scores]
        (tmp_path / "scores.json").write_text(json.dumps(lines))
        model, handler = tmp_path / "scripted.py", tmp_path / "handler.py"
        own = SCRIPTED.format(scores=str(tmp_path / "scores.json"))
        model.write_text(textwrap.dedent(own))
        handler.write_text(textwrap.dedent(HANDLER))
        return {
            "model_type": f"{model}:Scripted",
            "data_handler": f"{handler}:Data",
            "parties": [{"name": "a", "data": "a"}, {"name": "b", "data": "b"}],
            "rounds": len(scores),
            **more,
        }

    return make


def config_of(**settings):
    config, problems = parse({"model_file": "m.pt", "partition": {}, "num_parties": 2,
                              "rounds": 100, **settings})  # fmt: skip
    assert problems == []
    return config


def report(round, loss=0.0, accuracy=None, evaluated=1, **more):
    return RoundReport(
        round=round, chosen=2, reported=2, fused=2, aggregated=True, refused=0,
        loss=loss, accuracy=accuracy, bytes_moved=0, seconds=0.0, train_seconds=0.0,
        evaluate_seconds=0.0, evaluated=evaluated, **more,
    )  # fmt: skip


def rounds_of(losses):
    """Reports of these losses; None: not evaluated."""
    return [
        report(i, loss, evaluated=int(loss is not None))
        for i, loss in enumerate(losses, 1)
    ]


def last_round(config, reports):
    """After which round a run stops; None: it does not."""
    ends = (n for n in range(len(reports) + 1)
            if policy.stop_reason(config, reports[:n]))  # fmt: skip
    return next(ends, None)


@pytest.mark.parametrize(
    ("losses", "goal", "end"),
    [
        (LOSSES, {"patience": 3}, 6),  # 0.45, 0.41, 0.42 are no better than 0.4
        (LOSSES, {"patience": 4}, None),
        (LOSSES, {"patience": 1}, 4),
        (LOSSES, {"patience": 2, "min_delta": 0.2}, 4),  # 0.5: 0.4 is not 0.2 less
        ((1, 1, 1), {"patience": 2}, 3),  # equal is no improvement
        ((1, None, None, 1, None, 1), {"patience": 2}, 6),  # only evaluated ones count
        ((1, math.nan, 0.5, math.nan, math.inf), {"patience": 2}, 5),
        ((math.nan, math.nan), {"patience": 2}, 2),
        ((-math.inf, 1, 2, 3), {"patience": 2}, 4),  # infinity is no best
    ],
)
def test_early_stopping_waits_for_patience_evaluated_rounds(losses, goal, end):
    config = config_of(early_stopping={"metric": "loss", **goal})
    assert last_round(config, rounds_of(losses)) == end


def test_what_json_makes_of_nan_decides_as_nan_does():
    config = config_of(early_stopping={"metric": "loss", "patience": 2})
    told = rounds_of((1, math.nan, math.nan))
    read = [replace(one, loss=None) if math.isnan(one.loss) else one for one in told]
    assert policy.stop_reason(config, told) == policy.stop_reason(config, read)
    assert policy.stop_reason(config, told) == (
        "loss has not improved on 1 of round 1 in 2 evaluated rounds"
    )


def test_more_of_an_accuracy_is_better_and_a_given_mode_is_taken():
    shares = [report(i, 1.0, a) for i, a in enumerate((0.5, 0.6, 0.7, 0.6, 0.7), 1)]
    config = config_of(early_stopping={"metric": "accuracy", "patience": 2})
    assert last_round(config, shares) == 5
    own = config_of(model_type="m.py:M", model_file=None,
                    keep_best={"metric": "cost", "mode": "min"})  # fmt: skip
    costs = [report(i, metrics={"cost": c}) for i, c in enumerate((3, 1, 2), 1)]
    assert policy.best_report(own.keep_best, costs).round == 2


@pytest.mark.parametrize(
    ("target", "values", "end"),
    [
        ({"metric": "loss", "value": 0.4}, LOSSES, 3),  # 0.4 reaches it
        ({"metric": "loss", "value": 0.05}, LOSSES, None),
        ({"metric": "accuracy", "value": 0.7}, (0.1, 0.69, 0.7, 0.1), 3),
        ({"metric": "accuracy", "value": 0.7}, (math.nan, math.inf, 0.1), None),
        ({"metric": "loss", "value": 1}, (2, -math.inf, None, 1), 4),
    ],
)
def test_a_target_is_reached_by_its_value_or_a_better_one(target, values, end):
    config = config_of(target=target)
    reports = [
        report(i, v, v, evaluated=int(v is not None)) for i, v in enumerate(values, 1)
    ]
    assert last_round(config, reports) == end


def test_a_limit_of_time_ends_with_the_first_round_that_fuses_after_it():
    config = config_of(max_training_s=10)
    fused = report(3, evaluated=0)
    apart = replace(fused, aggregated=False)
    assert policy.stop_reason(config, [fused], 9.9) == ""
    assert policy.stop_reason(config, [apart], 10.0) == ""
    assert policy.stop_reason(config, [fused], 10.0) == policy.describe_time_limit(10)
    assert policy.stop_reason(config_of(), [fused], 1e9) == ""


def test_the_best_round_is_the_first_of_equal_ones_and_never_nan():
    goal = config_of(keep_best="loss").keep_best
    assert policy.best_report(goal, rounds_of((2, math.nan, 1, 1, None))).round == 3
    assert policy.best_report(goal, rounds_of((math.nan, None))) is None


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("early_stopping={metric: f1_macro}",
         "early_stopping.metric: f1_macro is not measured: add it to metrics: "
         "[f1_macro]"),
        ("target={metric: m.py:mine, value: 1}",
         "target.metric: m.py:mine is not measured: add it to metrics: [m.py:mine]"),
        ("keep_best=acuracy",
         "keep_best.metric: there is no 'acuracy', measured are loss, accuracy; did "
         "you mean accuracy?"),
        ("keep_best=f1_scroe",
         "keep_best.metric: there is no 'f1_scroe', measured are loss, accuracy; did "
         "you mean f1? Then add it to metrics: [f1]"),
        ("keep_best={metric: loss, mode: max}",
         "keep_best.mode is max, but less loss is better: leave mode out"),
        ("early_stopping={metric: accuracy, mode: min}",
         "early_stopping.mode is min, but more accuracy is better: leave mode out"),
        ("target={metric: accuracy, value: 90}",
         "target.value of accuracy is a share from 0 to 1, got 90"),
        ("target={metric: accuracy}", "target.value is missing"),
        ("target={value: 1}", "target.metric is missing"),
        ("early_stopping={patience: 0}",
         "early_stopping.patience must be between 1 and 10000000, got 0"),
        ("early_stopping={patience: 2.5}",
         "early_stopping.patience must be a whole number, got 2.5"),
        ("early_stopping={min_delta: -1}",
         "early_stopping.min_delta must be at least 0, got -1.0"),
        ("early_stopping={metric: loss, mode: less}",
         "unknown early_stopping mode 'less'; choose from ['max', 'min']"),
        ("early_stopping=loss", "early_stopping must be a mapping, got 'loss'"),
        ("keep_best=[loss]", "keep_best must be a mapping, got ['loss']"),
        ("target={metric: loss, value: .inf}",
         "target.value must be a finite number, got inf"),
        ("early_stopping={metric: loss, patiens: 3}",
         "unknown key 'early_stopping.patiens'; did you mean "
         "'early_stopping.patience'?"),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_round_1(words, problem):
    values, found = read_overrides([words])
    base = {"model_file": "m.pt", "partition": {}, "num_parties": 2}
    assert found + parse({**base, **values})[1] == [problem]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"evaluate_every": 0, "keep_best": "loss"}, "evaluate_every: 0"),
        ({"evaluate_every": 0, "target": {"metric": "loss", "value": 1}},
         "evaluate_every: 0"),
        ({"model_type": "doc2vec", "fusion_algorithm": "doc2vec", "model_file": None,
          "early_stopping": {}}, "early_stopping has no effect with model_type: doc2"),
        ({"fusion_algorithm": "ensemble", "partition": None, "keep_best": "loss",
          "parties": [{"name": "a", "data": "a"}, {"name": "b", "data": "b"}]},
         "keep_best has no effect with fusion_algorithm: ensemble"),
        ({"personal": ("head.*",), "keep_best": "loss"},
         "keep_best does not go with personal: parties' own layers train on"),
        ({"model_type": "m.py:M", "model_file": None, "keep_best": "f1"},
         "keep_best.mode is missing: say whether min or max of f1 is better"),
    ],
)  # fmt: skip
def test_where_nothing_would_be_judged_it_is_refused_by_name(settings, problem):
    base = {"model_file": "m.pt", "partition": {}, "num_parties": 2}
    found = parse({**base, **settings})[1]
    assert len(found) == 1
    assert problem in found[0]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"keep_best": "f1_macro", "metrics": ["f1_macro"]}, ""),
        ({"target": {"metric": "f2", "value": 1, "mode": "max"},
          "metrics": ["m.py:f2"]}, ""),
        ({"target": {"metric": "m.py:f2", "value": 1, "mode": "min"},
          "metrics": ["m.py:f2"]}, ""),
        ({"keep_best": "m.py:f2", "metrics": ["m.py:f2"]},
         "keep_best.mode is missing: say whether min or max of f2 is better"),
        ({"keep_best": "confusion_matrix", "metrics": ["confusion_matrix"]},
         "keep_best.metric: confusion_matrix is no single number: take another metric"),
    ],
)  # fmt: skip
def test_metrics_of_the_config_may_be_goals(words, problem):
    base = {"model_file": "m.pt", "partition": {}, "num_parties": 2}
    assert parse({**base, **words})[1] == ([problem] if problem else [])


def test_accuracy_of_a_model_of_values_is_an_error_before_anything_runs(tmp_path):
    (tmp_path / "m.py").write_text(
        "from torch import nn\n\ndef line():\n    return nn.Linear(3, 1)\n"
    )
    config, _ = parse({"architecture": f"{tmp_path}/m.py:line", "loss": "mse_loss",
                       "num_parties": 2, "partition": {},
                       "early_stopping": {"metric": "accuracy"}})  # fmt: skip
    with pytest.raises(ConfigError) as error:
        models.read(config)
    assert str(error.value).startswith(
        "early_stopping.metric: accuracy is not measured: loss mse_loss is of "
    )


def test_a_patience_that_no_round_is_left_for_is_noted():
    goal = {"early_stopping": {"patience": 3}}
    assert policy.goal_notes(config_of(rounds=5, **goal)) == []
    assert policy.goal_notes(config_of(rounds=4, **goal)) == [
        "early_stopping.patience is 3, and 4 of 4 rounds are evaluated: it cannot stop "
        "early"
    ]
    assert policy.goal_notes(config_of(rounds=8, evaluate_every=3, **goal)) == [
        "early_stopping.patience is 3, and 3 of 8 rounds are evaluated: it cannot stop "
        "early"
    ]


def test_goals_are_written_as_they_were_given_and_may_change_on_resume():
    config = config_of(keep_best="accuracy", early_stopping={"patience": 2})
    assert config.to_dict()["keep_best"] == {"metric": "accuracy"}
    assert parse(config.to_dict())[0] == parse(yaml.safe_load(
        yaml.safe_dump(config.to_dict())))[0]  # fmt: skip
    assert parse(config.to_dict())[0].goals() == config.goals()


def test_the_best_checkpoint_stays_while_older_and_newer_ones_go(tmp_path):
    folder = RunFolder(tmp_path, keep=2)
    for round, best in zip(range(1, 7), (1, 2, 3, 3, 3, 6), strict=True):
        weights = {"w": np.full(2, round)}
        folder.save(Checkpoint(round, weights, {}, report(round)), {best})
        if round == 5:
            assert folder.saved_rounds() == [3, 4, 5]
            assert folder.checkpoint_of(3).weights["w"].tolist() == [3, 3]
    assert folder.saved_rounds() == [5, 6]


def test_a_run_that_falls_back_to_its_best_checkpoint_keeps_what_it_saves_then(
    tmp_path,
):
    folder = RunFolder(tmp_path, keep=2)
    for round in range(1, 10):
        folder.save(Checkpoint(round, {"w": np.zeros(2)}, {}, report(round)), {3})
    for round in (8, 9):
        (folder.checkpoints / f"round-{round:05d}" / "weights.npz").write_bytes(b"")
    restored, damage = folder.newest_checkpoint()
    assert (restored.round, len(damage)) == (3, 2)
    folder.rewind(restored)
    folder.save(Checkpoint(4, {"w": np.zeros(2)}, {}, report(4)), {3})
    assert folder.newest_checkpoint()[0].round == 4


# --- whole runs, of a class that gives the scores of a list


def weights_of(path) -> list:
    return fedray.load(path).predict(np.zeros((1, 1))).ravel().tolist()


@pytest.mark.usefixtures("cluster")
def test_a_run_stops_keeps_the_best_and_says_so_everywhere(scripted, tmp_path, capsys):
    file, folder = tmp_path / "c.yaml", tmp_path / "run"
    settings = scripted(early_stopping={"metric": "loss", "patience": 3},
                        keep_best="loss")  # fmt: skip
    file.write_text(yaml.safe_dump(settings))
    assert cli.main(["run", str(file), "--run-dir", str(folder)]) == 0
    reason = "loss has not improved on 0.4 of round 3 in 3 evaluated rounds"
    lines = capsys.readouterr().out.splitlines()
    at = lines.index(f"  training stopped after round 6: {reason}")
    assert lines[at - 1].lstrip().startswith("6 of 10")
    assert f"best     {folder}/global_model_best.npz: round 3, loss 0.4" in lines
    history = [json.loads(x) for x in (folder / "history.jsonl").open()]
    assert [line.get("stop_reason", "") for line in history] == [""] * 5 + [reason]
    page = (folder / "report.html").read_text()
    assert f"Training stopped after round 6: {reason}." in page
    assert "round 3, loss 0.4" in page
    (state,) = runs.read_past(str(folder))
    assert (state.stage, state.round, state.rounds) == ("ended", 6, 10)
    assert reason in state.reason
    assert weights_of(folder) == [6]  # trained so many rounds
    assert fedray.load(folder, best=True).predict(np.zeros((1, 1))).ravel() == [3]
    assert weights_of(folder / "global_model_best.npz") == [3]
    assert (folder / "global_model_best.safetensors").exists()
    with pytest.raises(ConfigError, match="has ended: training stopped after round 6"):
        fedray.federation.join(str(folder), {"name": "c", "data": "c"})


@pytest.mark.usefixtures("cluster")
def test_a_stopped_run_that_is_resumed_stays_unless_its_goals_are_changed(
    scripted, tmp_path
):
    settings = scripted(early_stopping={"patience": 3}, keep_best="loss")
    first = fedray.run(settings, run_dir=tmp_path / "run")
    assert (len(first.history), first.best_model.name) == (6, "global_model_best.npz")
    notes = []
    again = fedray.run({**settings, "rounds": 20}, run_dir=tmp_path / "run",
                       resume=True, watch=lambda p: notes.extend(p.notes))  # fmt: skip
    assert again.history == first.history
    assert again.stop_reason == first.stop_reason
    told = f"{first.stop_reason}; change early_stopping or target to go on from there"
    assert told in notes
    notes.clear()
    changed = {**settings, "early_stopping": {"patience": 4}}
    longer = fedray.run(changed, run_dir=tmp_path / "run", resume=True,
                        watch=lambda p: notes.extend(p.notes))  # fmt: skip
    assert [one.stop_reason for one in longer.history] == [""] * 10
    assert any("going on after round 6, where it had stopped" in n for n in notes)
    assert (longer.stop_reason, longer.best[None].round) == ("", 10)
    assert longer.weights(best=True)["w"].tolist() == [10, 10, 10]
    without = fedray.run(scripted(), run_dir=tmp_path / "run", resume=True)
    assert without.best_model is None
    assert not list((tmp_path / "run").glob("global_model_best*"))
    with pytest.raises(RunFolderError, match="has no best model"):
        without.load(best=True)


@pytest.mark.usefixtures("cluster")
def test_each_group_stops_by_itself_and_has_its_own_best_model(scripted, tmp_path):
    scores = [{"loss": loss} for loss in LOSSES]
    settings = scripted(scores, keep_best="loss", early_stopping={"patience": 2},
                        groups={"by": "site"}, rounds=7)  # fmt: skip
    # the party of north begins further on in the list: 0.45, 0.41, 0.42, 0.3, ...
    text = (tmp_path / "scripted.py").read_text()
    north = "done = int(self.w[0]) + (3 if data[0][0, 0] and self.w[0] else 0)"
    (tmp_path / "scripted.py").write_text(text.replace("done = int(self.w[0])", north))
    handler = (tmp_path / "handler.py").read_text()
    (tmp_path / "handler.py").write_text(handler.replace(
        "np.zeros((2, 1)), np.zeros(2)", "np.full((2, 1), self.north), np.zeros(2)"
    ).replace("self.has_tests =", 'self.north = "north" in path\n        '
              "self.has_tests ="))  # fmt: skip
    settings["parties"] = [
        {"name": "a", "data": "south-a", "fields": {"site": "south"}},
        {"name": "b", "data": "north-b", "fields": {"site": "north"}},
    ]
    result = fedray.run(settings, run_dir=tmp_path / "run")
    ends = {one.group: one.round for one in result.history if one.stop_reason}
    assert ends == {"south": 5}
    south = [one.loss for one in result.history if one.group == "south"]
    north = [one.loss for one in result.history if one.group == "north"]
    assert south == list(LOSSES[:5])
    assert north == list(LOSSES[3:])
    files = {group: best.file.name for group, best in result.best.items()}
    assert files == {
        "south": "global_model_best-south.npz",
        "north": "global_model_best-north.npz",
    }
    assert result.best["south"].round == 3
    assert weights_of(result.best["south"].file) == [3]
    assert result.best["north"].round == 7
    (state,) = runs.read_past(str(tmp_path / "run"))
    assert (state.stage, state.round) == ("ended", 7)
    again = fedray.run(settings, run_dir=tmp_path / "run", resume=True)
    for group in ("south", "north"):
        first, second = (
            [one for one in each.history if one.group == group]
            for each in (result, again)
        )
        assert first == second


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("where", ["check", "run"])
def test_without_tests_a_goal_is_an_error_before_round_1(scripted, tmp_path, where):
    settings = scripted(keep_best="loss", early_stopping={"patience": 2})
    settings["parties"] = [{"name": n, "data": f"untested-{n}"} for n in "ab"]
    told = (
        "early_stopping and keep_best: nothing would be evaluated, since no party "
        "has test samples: give test_data, or test samples in the parties' data"
    )
    if where == "check":
        from fedray.federation.check import check

        assert check(fedray.federation.read_config(settings)).problems == [told]
        return
    with pytest.raises(ConfigError) as error:
        fedray.run(settings, run_dir=tmp_path / "run")
    assert str(error.value) == told
    assert RunFolder(tmp_path / "run").history() == []


@pytest.mark.usefixtures("cluster")
def test_a_number_that_a_class_does_not_give_is_an_error_after_round_1(
    scripted, tmp_path
):
    settings = scripted(keep_best={"metric": "f1", "mode": "max"})
    with pytest.raises(ConfigError) as error:
        fedray.run(settings, run_dir=tmp_path / "run")
    assert str(error.value) == (
        "keep_best.metric: the evaluation of round 1 gives no 'f1', it gives loss: "
        "name one of these, then go on with --resume"
    )
    result = fedray.run({**settings, "keep_best": "loss"}, run_dir=tmp_path / "run",
                        resume=True)  # fmt: skip
    assert result.best[None].round == 10


@pytest.mark.usefixtures("cluster")
def test_a_run_whose_parts_are_killed_stops_at_the_same_round(scripted, tmp_path):
    settings = scripted(early_stopping={"patience": 3}, keep_best="loss",
                        keep_checkpoints=1, fusion_algorithm="fedavgm")  # fmt: skip
    # as rounds go, not as weights do; and slow enough to be killed within a round
    text = (tmp_path / "scripted.py").read_text()
    text = text.replace("int(self.w[0])", "context.round")
    slow = "import time; time.sleep(0.05)\n        self.w = self.w + context.seed % 7"
    (tmp_path / "scripted.py").write_text(text.replace("self.w = self.w + 1", slow))
    straight = fedray.run(settings, run_dir=tmp_path / "straight")
    assert straight.best[None].round == 3
    victims = {2: "aggregator:run", 4: "party:run:a", 6: "aggregator:run"}
    deaths = [kill_once(victim, lambda p, n=round: p.round == n)
              for round, victim in victims.items()]  # fmt: skip
    killed = fedray.run(settings, run_dir=tmp_path / "run",
                        watch=lambda p: [death(p) for death in deaths])  # fmt: skip
    assert any(death.done for death in deaths)
    assert killed.stop_reason == straight.stop_reason
    assert [one.loss for one in killed.history] == list(LOSSES[:6])
    for best in (False, True):
        assert_close(killed.weights(best=best), straight.weights(best=best), 0)
    assert killed.best[None].round == 3


@pytest.mark.usefixtures("cluster")
def test_parties_that_train_apart_stop_with_a_round_that_fuses(scripted, tmp_path):
    goals = {"early_stopping": {"patience": 1}, "keep_best": "loss"}
    settings = scripted((0.9, 0.1, 0.5, 0.2, 0.6, 0.7, 0.8, 0.9), **goals,
                        aggregation="adaptive", max_rounds_apart=2)  # fmt: skip
    result = fedray.run(settings, run_dir=tmp_path / "run")
    assert [one.aggregated for one in result.history] == [
        True,
        False,
        True,
        False,
        True,
    ]
    # rounds 1, 3 and 5 are evaluated: 0.9, 0.5, 0.6
    assert [one.loss for one in result.history] == [0.9, None, 0.5, None, 0.6]
    assert result.history[-1].stop_reason
    assert result.best[None].round == 3
    assert result.weights()["w"].tolist() == [5, 5, 5]


@pytest.mark.usefixtures("cluster")
def test_members_of_an_ensemble_stop_one_by_one(settings, tmp_path):
    settings |= {"fusion_algorithm": "ensemble", "rounds": 4,
                 "target": {"metric": "loss", "value": 100}}  # fmt: skip
    settings["parties"][1]["learning_rate"] = 1e-9
    result = fedray.run(settings, run_dir=tmp_path / "run")
    assert [(one.group, one.round) for one in result.history] == [("a", 1), ("b", 1)]
    assert all(one.stop_reason for one in result.history)
    assert len(fedray.load(tmp_path / "run").members) == 2


def test_stopping_twice_is_stopping_once():
    """Whatever part of a run is repeated, it stops at the same round."""
    config = config_of(early_stopping={"patience": 3, "min_delta": 0.01})
    for losses in itertools.product((0.1, 0.2, None), repeat=6):
        reports = rounds_of(losses)
        end = last_round(config, reports)
        if end is not None:
            again = [replace(one, stop_reason="") for one in reports[:end]]
            assert policy.stop_reason(config, again)
            assert not any(policy.stop_reason(config, again[:n]) for n in range(end))
