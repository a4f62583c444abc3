"""The global model on each party's own tests, and beside training alone."""

import json

import numpy as np
import pytest
from support.local_rounds import federation, fedray_rounds, group_of
from test_custom_models import HANDLER, MEAN

import fedray
from fedray import policy, report
from fedray.aggregator.party_actors import with_rate
from fedray.config import parse
from fedray.errors import ConfigError
from fedray.messages import PartyScores, Scores

TESTS = {"a": 30, "b": 10}


@pytest.fixture
def tested(settings, digits):
    """The two parties, with tests of their own."""
    settings["parties"] = [
        {"name": name, "data": digits(name, 40 + 24 * i, n_test=n, skip=40 * i)}
        for i, (name, n) in enumerate(TESTS.items())
    ]
    return settings


def scores_of(places, sums, n_samples):
    """Losses of parties that two actors measured in parts."""
    own = PartyScores.zeros(np.array(n_samples))
    own.loss[:], own.loss_weight[:] = sums, n_samples
    return Scores(by_party=own._replace(parties=np.array(places)))


def test_what_actors_measured_of_one_party_adds_up():
    parts = [
        scores_of([3, 5], [6.0, 1.0], [3, 1]),
        scores_of([5, 7], [3.0, 8.0], [1, 2]),
    ]
    own = policy.merge_parties([Scores(), *parts])
    assert own.parties.tolist() == [3, 5, 7]
    assert own.n_samples.tolist() == [3, 2, 2]
    assert own.mean_losses().tolist() == [2.0, 2.0, 4.0]  # by hand
    assert np.isnan(own.accuracies()).all()
    assert policy.merge_parties([Scores()]) is None


@pytest.mark.parametrize(
    ("n", "worst"),
    [(2, 1.0), (10, 1.0), (11, 1.5), (25, 2.0)],  # the mean of 1, 1, 2 and 3 parties
)
def test_the_worst_tenth_is_a_mean_of_parties_rounded_up(n, worst):
    own = PartyScores.zeros(np.full(n, 4))
    own.loss[:], own.loss_weight[:] = -np.arange(1, n + 1), 1
    own.right[:], own.answers[:] = np.arange(1, n + 1), n
    found = policy.spreads(own)
    assert found["loss"]["worst_tenth"] == -worst
    assert found["accuracy"]["worst_tenth"] == pytest.approx(worst / n)
    assert found["accuracy"]["min"] == 1 / n
    assert found["accuracy"]["median"] == pytest.approx((n + 1) / 2 / n)
    assert found["accuracy"]["max"] == 1


def test_a_single_party_and_those_without_a_number_have_no_spread():
    own = PartyScores.zeros(np.array([3, 3]))
    own.loss[:], own.loss_weight[:] = [1.0, np.nan], 1
    assert policy.spreads(own) == {}
    assert policy.spreads(None) == {}


def test_of_many_parties_those_that_do_worst_have_lines():
    own = PartyScores.zeros(np.full(4, 2))
    own.right[:], own.answers[:] = [1, 2, 0, 2], 2
    own.loss[:], own.loss_weight[:] = [1, 1, 1, 3], 1
    assert policy.worst_rows(own, 3).tolist() == [0, 2, 3]
    assert policy.worst_rows(own, 9).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("stacked", ["true", "false"])
def test_a_party_alone_is_a_federation_of_it_alone(settings, stacked, monkeypatch):
    from fedray.party import personal

    monkeypatch.setattr(personal, "CHUNK_BYTES", 3 * 13_000 * 4)  # three at a time
    del settings["parties"]
    settings |= {
        "partition": {"samples_per_party": 30}, "num_parties": 8, "rounds": 3,
        "stacked": stacked, "proximal_mu": 0.5, "compare": "local",
    }  # fmt: skip
    group, weights = group_of(settings, range(8))
    _, update = group.train(1, np.arange(8), weights)
    found = group.compare(np.arange(1, 8), weights, update.weights, 3)
    shared = group.evaluate(update.weights).scores.by_party
    shared_now, alone_now = found.by_model["global"], found.by_model["alone"]
    assert shared_now.parties.tolist() == alone_now.parties.tolist()
    np.testing.assert_allclose(shared_now.loss, shared.loss[1:], rtol=1e-6)
    plain, _ = group_of(settings | {"proximal_mu": 0.0}, range(8))
    for row in (0, 6):
        party, own = alone_now.parties[row : row + 1], weights
        for number in (1, 2, 3):
            own = plain.train(number, party, own)[1].weights
        alone = plain.evaluate(own, parties=party).scores.by_party
        assert alone_now.loss[row] == pytest.approx(alone.loss[0], rel=1e-4)
        assert alone_now.right[row] == alone.right[0]


@pytest.mark.parametrize("rates", [{}, {1: 0.1, 2: 0.01}], ids=["config", "plateau"])
def test_own_models_that_nothing_pulls_are_those_trained_alone(
    settings, tmp_path, rates
):
    del settings["parties"]
    settings |= {
        "partition": {"samples_per_party": 30}, "num_parties": 3, "ditto_lambda": 0.0,
        "party_dir": str(tmp_path), "compare": "local",
    }  # fmt: skip
    group, weights = group_of(settings, range(3))
    trained = weights
    for number in (1, 2):
        call = with_rate(rates.get(number), "train", number, np.arange(3), trained)
        trained = getattr(group, call[0])(*call[1:])[1].weights
    models = group.compare(np.arange(3), weights, trained, 2, rates).by_model
    assert models.keys() == {"global", "own", "alone"}
    np.testing.assert_array_equal(models["own"].loss, models["alone"].loss)
    np.testing.assert_array_equal(models["own"].right, models["alone"].right)
    assert (models["global"].loss != models["alone"].loss).all()


def test_layers_that_stay_at_their_party_are_trained_alone_too(settings, tmp_path):
    del settings["parties"]
    settings |= {
        "partition": {"samples_per_party": 30}, "num_parties": 3, "compare": "local",
        "party_dir": str(tmp_path),
    }  # fmt: skip
    group, weights = group_of(settings, range(3))
    plain = group.compare(np.arange(3), weights, weights, 2).by_model["alone"]
    group, _ = group_of(settings | {"personal": ["3.*"]}, range(3))
    shared = {name: weights[name] for name in group.plan.blueprint.round_schema(())}
    own = {name: weights[name] for name in group.plan.blueprint.personal}
    ask = "compare", np.arange(3), shared, shared, 2
    alone = group.with_frozen(own, *ask).by_model["alone"]
    assert own
    np.testing.assert_array_equal(alone.loss, plain.loss)


def test_few_parties_have_a_line_each_and_all_are_counted():
    columns = {
        "party": ["a", "b", "c"], "n_samples": [1, 1, 1],
        "alone_loss": [1.0, 2.0, 3.0], "global_loss": [2.0, 1.0, None],
        "own_loss": [0.5, 2.0, 1.0],
        "alone_accuracy": [None] * 3, "global_accuracy": [None] * 3,
    }  # fmt: skip
    lines = list(report.comparison_lines({"round": 4, "columns": columns}))
    assert [line.split() for line in lines[1:4]] == [
        ["a", "1.0000", "2.0000", "0.5000"],
        ["b", "2.0000", "1.0000", "2.0000"],
        ["c", "3.0000", "-", "1.0000"],
    ]
    better = "after round 4, by loss, the {} is better than training alone for {}"
    assert lines[4:] == [
        better.format("global model", "1 of 2 parties, worse for 1"),
        better.format("own model", "2 of 3 parties, worse for 0"),
    ]
    assert list(report.comparison_lines({})) == []
    assert list(report.comparison_lines({"round": 1, "columns": {}})) == []
    many = {name: values * 7 for name, values in columns.items()}
    assert len(list(report.comparison_lines({"round": 4, "columns": many}))) == 2


def alone(settings, name):
    """Loss and accuracy of a federation of one party, as plain calls."""
    own = [party for party in settings["parties"] if party["name"] == name]
    settings = settings | {"parties": own}
    return federation(settings)[1][name].evaluate(fedray_rounds(settings)).scores.means


@pytest.mark.usefixtures("cluster")
def test_a_run_shows_both_by_party_and_the_same_when_it_is_resumed(
    tested, tmp_path, capsys
):
    first = fedray.run(tested, run_dir=tmp_path / "first", compare="local")
    columns = first.comparison["columns"]
    assert first.comparison["round"] == 2
    assert (columns["party"], columns["n_samples"]) == (["a", "b"], [30, 10])
    for i, name in enumerate(TESTS):
        loss, accuracy = alone(tested, name)
        assert columns["alone_loss"][i] == pytest.approx(loss, rel=1e-6)
        assert columns["alone_accuracy"][i] == accuracy
    tests = json.loads((first.folder / "history.jsonl").read_text().splitlines()[-1])
    assert tests["tests"]["loss"] == columns["global_loss"]
    n = columns["n_samples"]
    accuracy = np.dot(columns["global_accuracy"], n) / sum(n)
    assert accuracy == pytest.approx(first.accuracy)
    assert tests["spread"]["accuracy"]["max"] == max(columns["global_accuracy"])
    page = first.report.read_text()
    assert "Models compared, by party" in page
    assert "Tests by party" in page

    fedray.run(tested, run_dir=tmp_path / "later", rounds=1)
    later = fedray.run(tested, run_dir=tmp_path / "later", resume=True, compare="local")
    assert later.comparison == first.comparison


@pytest.mark.usefixtures("cluster")
def test_without_any_tests_the_run_does_not_start(settings, digits, tmp_path):
    settings["parties"] = [{"name": "a", "data": digits("a", 40, n_test=0)}]
    with pytest.raises(ConfigError, match="compare: local: no party has test samples"):
        fedray.run(settings, run_dir=tmp_path / "run", compare="local")


@pytest.mark.parametrize(
    "changes",
    [
        {"test_data": "tests.npz"},
        {"fusion_algorithm": "ensemble"},
        {"fusion_algorithm": "doc2vec", "model_type": "doc2vec"},
    ],
)
def test_a_comparison_that_means_nothing_is_refused_by_name(settings, changes):
    _, problems = parse(settings | changes | {"compare": "local"})
    assert any("compare has no effect" in str(problem) for problem in problems)


KILLED = """
import os, signal
import ray

class Killed(Mean):
    "Ends a process as party b trains for the third time: alone, after two rounds."

    def train(self, data, context):
        if context.party == "b":
            with open({file!r}, "a") as file:
                file.write("trained\\n")
                n_trained = file.tell() // len("trained\\n")
            if n_trained == 3 and {victim!r} == "party":
                os.kill(os.getpid(), signal.SIGKILL)
            if n_trained == 3:
                actor = ray.get_actor("aggregator:run", namespace="fedray")
                ray.kill(actor, no_restart=False)
        return super().train(data, context)
"""


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("victim", ["party", "aggregator"])
def test_whoever_is_killed_meanwhile_the_numbers_are_the_same(tmp_path, victim):
    file = tmp_path / "trainings"
    for name, n, mean in (("a", 8, 2.0), ("b", 4, 8.0)):
        np.save(tmp_path / f"{name}.npy", np.full(n, mean))
    code = MEAN + KILLED.format(file=str(file), victim=victim)
    (tmp_path / "mean.py").write_text(code)
    (tmp_path / "numbers_file.py").write_text(HANDLER)
    result = fedray.run(
        model_type=f"{tmp_path}/mean.py:Killed",
        data_handler=f"{tmp_path}/numbers_file.py:Numbers",
        parties=[{"name": n, "data": str(tmp_path / f"{n}.npy")} for n in "ab"],
        rounds=2,
        learning_rate=0.5,
        compare="local",
        party_dir=str(tmp_path / "parties"),
        run_dir=tmp_path / "run",
    )
    assert len(file.read_text().splitlines()) > 4
    # by hand: alone a goes to 1, 1.5 and b to 4, 6; together to 1.75, then 2.625
    assert result.comparison == {
        "round": 2,
        "columns": {
            "party": ["a", "b"],
            "n_samples": [2, 2],
            "alone_loss": [0.5, 2.0],
            "global_loss": [0.625, 5.375],
            "alone_accuracy": [None, None],
            "global_accuracy": [None, None],
        },
    }
