"""Everyone adopts the best model: who is looked at, by whom, and what moves."""

from types import SimpleNamespace as Some
from unittest import mock

import numpy as np
import pytest
from support.comparison import assert_close
from support.local_rounds import group_of

import fedray
from fedray import fusion, policy
from fedray.aggregator.data_changes import DataChanges
from fedray.aggregator.party_actors import PartyActors, WorkItem
from fedray.aggregator.strategies.adopt_best import AdoptBest
from fedray.data import MnistPytorch
from fedray.errors import ConfigError, RoundFailed
from fedray.federation import read_config
from fedray.messages import Report, Scores, Update

MLP_BYTES = 4 * (784 * 16 + 16 + 16 * 10 + 10)


def reported(first: int, *scores: tuple, refused=()) -> Report:
    """Of neighbours in the config: (test samples, loss, accuracy) of each."""
    places = np.arange(first, first + len(scores))
    nothing = np.zeros(len(scores))
    whys = dict.fromkeys(refused, "not finite")
    table = np.array(scores, float)
    return Report(1, "n", places, nothing, nothing, nothing, 0.0, 0, whys, None, table)


NAN = float("nan")


@pytest.mark.parametrize(
    ("reports", "n_most", "places"),
    [
        # by accuracy; the same accuracy by loss; the same loss by config order
        ([reported(0, (9, 1, 0.5), (9, 1, 0.9)), reported(2, (9, 0.2, 0.5))], 3,
         [1, 2, 0]),
        ([reported(0, (9, 1, 0.5), (9, 1, 0.5), (9, 1, 0.5))], 2, [0, 1]),
        ([reported(0, (0, NAN, NAN), (9, 1, 0.1))], 8, [1]),  # no tests of its own
        ([reported(0, (9, NAN, NAN), (9, 5, 0.1), refused=[1])], 8, []),
        ([reported(0, (9, 3, NAN), (9, 2, NAN))], 8, [1, 0]),  # regression: by loss
    ],
)  # fmt: skip
def test_candidates_are_those_that_are_best_by_their_own_tests(reports, n_most, places):
    assert policy.candidates(reports, n_most) == places


def score(n: int, loss: float, accuracy: float | None) -> Scores:
    return Scores(n, loss, accuracy)


def test_the_others_tests_decide_weighed_by_their_number():
    judged = {
        4: [score(10, 0.5, 0.9), score(90, 0.5, 0.1)],  # 0.18 by hand
        2: [score(10, 0.5, 0.1), score(90, 0.5, 0.3)],  # 0.28
        7: [],  # nobody looked at it
        1: [score(10, float("nan"), 0.9)],
    }
    alike = dict.fromkeys(judged, 10)
    assert policy.ranking(judged, alike) == [2, 4]
    losses = {1: [score(5, 2.0, None)], 3: [score(5, 1.0, None)]}
    assert policy.ranking(losses, {1: 99, 3: 1}) == [3, 1]


def test_among_equals_the_one_with_more_samples_is_best():
    # by hand: of 100 tests 0.8 has a standard error of 0.04
    judged = {1: [score(100, 1.0, 0.8)], 2: [score(100, 1.0, 0.77)],
              3: [score(100, 1.0, 0.75)]}  # fmt: skip
    assert policy.ranking(judged, {1: 10, 2: 200, 3: 900}) == [2, 1, 3]
    assert policy.ranking(judged, {1: 10, 2: 10, 3: 900}) == [1, 2, 3]


@pytest.mark.parametrize(("adopt", "value"), [(1.0, 5.0), (0.25, 2.0)])
def test_adopting_replaces_or_mixes(adopt, value):
    rule = fusion.named("best_model", adopt=adopt)
    best = Update({"w": np.full(3, 5.0, "f4")}, 10)
    weights, _ = rule.step({"w": np.ones(3, "f4")}, fusion.combine(rule, [best]), {})
    assert (weights["w"] == value).all()  # by hand: 1 + 0.25 (5 − 1)
    assert weights["w"].dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"candidates": 9}, "candidates must be between 1 and 8, got 9"),
        ({"candidates": 0}, "candidates must be between 1 and 8"),
        ({"adopt": 0}, "adopt must be above 0 and at most 1, got 0"),
        ({"adopt": 1.5}, "adopt must be above 0 and at most 1, got 1.5"),
        ({"aggregation": "adaptive"}, "best_model takes none; choose from"),
    ],
)
def test_mistakes_are_config_errors(settings, changes, told):
    settings["fusion_algorithm"] = "best_model"
    with pytest.raises(ConfigError, match=told):
        read_config(settings | changes)


def test_a_party_reports_its_models_score_on_its_own_tests(settings):
    del settings["parties"]
    partition = {"samples_per_party": 30}
    settings |= {"fusion_algorithm": "best_model", "partition": partition}
    group, weights = group_of(settings | {"num_parties": 4}, range(4))
    parties = np.array([1, 3])
    report = group.train(1, parties, weights, None, 1)
    for i, party in enumerate(parties.tolist()):
        update = group.candidate(1, parties, weights, party)
        assert (update.n_samples, update.n_parties) == (30, 1)
        own = group.evaluate(update.weights, (0, 1), parties[i : i + 1]).scores
        assert report.scores[i].tolist() == [own.n_samples, own.loss, own.accuracy]
        others = group.judge(update, weights, np.delete(parties, i)).scores
        assert others.loss != own.loss


@pytest.mark.parametrize(
    ("rate", "call"),
    [
        (None, ("candidate",)),
        (0.1, ("with_learning_rate", 0.1, "candidate")),
    ],
)
def test_who_is_asked_for_a_candidate_gets_what_travels_once(settings, rate, call):
    config, handle = read_config(settings), mock.MagicMock()
    actors = PartyActors("run", "here", [], {"a": handle}, DataChanges(config))
    actors.frozen = Some(ref_of=lambda actor: f"frozen of {actor}")
    item = WorkItem("a", "here", np.array([0]), True)
    model = Some(last_broadcast=Some(ref="global"), learning_rate=rate)
    strategy = AdoptBest(config, Some(actors=actors))
    strategy._ask_for(Some(round=3, model=model), [0], [item])
    asked = handle.with_frozen.options.return_value.remote.call_args.args
    assert asked == ("frozen of a", *call, 3, item.parties, "global", 0)


@pytest.mark.usefixtures("cluster")
def test_the_best_models_travel_and_nothing_else(settings, digits, tmp_path):
    names = {"a": 20, "b": 400, "c": 20, "d": 20}
    settings["parties"] = [
        {"name": name, "data": digits(name, n, n_test=50, skip=500 * i)}
        for i, (name, n) in enumerate(names.items())
    ]
    settings |= {"fusion_algorithm": "best_model", "candidates": 2, "rounds": 3}
    fedray.run(settings, run_dir=tmp_path / "run", rounds=2)
    result = fedray.run(settings, run_dir=tmp_path / "run", resume=True)
    assert [line.best for line in result.history] == ["b"] * 3
    first, second, _ = result.history
    assert sorted(p.outcome for p in second.parties) == ["apart"] * 3 + ["fused"]
    # the best to the aggregator, the broadcast; on one node no candidate travels
    assert second.bytes_moved == 2 * MLP_BYTES
    assert first.bytes_moved == 3 * MLP_BYTES  # and the start model
    alone = settings | {
        "parties": settings["parties"][1:2],
        "fusion_algorithm": "fedavg",
    }
    del alone["candidates"]
    own = fedray.run(alone, run_dir=tmp_path / "alone")
    assert_close(result.weights(), own.weights(), 0)  # b, trained on and on


@pytest.mark.usefixtures("cluster")
def test_without_test_samples_no_model_is_best(settings, digits, tmp_path):
    settings["parties"][0]["data"] = digits("a", 40, n_test=0)
    settings["parties"][1]["data"] = digits("b", 40, n_test=0)
    settings["fusion_algorithm"] = "best_model"
    with pytest.raises(RoundFailed, match="no party has test samples that tell how"):
        fedray.run(settings, run_dir=tmp_path / "run")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_everyone_rises_to_the_party_with_twenty_times_the_data(settings, tmp_path):
    (x, y), (x_test, y_test) = MnistPytorch("mnist").get_data()
    ends = np.cumsum([0, 1600, *[80] * 7])
    parties = []
    for i in range(8):
        train, test = slice(*ends[i : i + 2]), slice(i * 60, i * 60 + 60)
        path = tmp_path / f"party{i}.npz"
        np.savez(path, x_train=x[train], y_train=y[train],
                 x_test=x_test[test], y_test=y_test[test])  # fmt: skip
        parties.append({"name": f"p{i}", "data": str(path)})
    test = tmp_path / "test.npz"
    np.savez(
        test, x_train=x[:1], y_train=y[:1], x_test=x_test[500:], y_test=y_test[500:]
    )
    settings |= {"parties": parties, "rounds": 10, "seed": 1, "test_data": str(test)}
    settings["placement_timeout_s"] = 300

    def accuracy(name: str, **changes) -> float:
        return fedray.run(settings | changes, run_dir=tmp_path / name).accuracy

    large = accuracy("large", parties=parties[:1])
    small = accuracy("small", parties=parties[1:2])
    shared = accuracy("shared", fusion_algorithm="best_model")
    assert shared >= large - 0.01
    assert shared > small + 0.1
