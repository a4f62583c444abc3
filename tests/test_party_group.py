"""Many parties in one actor: the same federation as with an actor for each."""

import gc
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from support.comparison import assert_close
from support.local_rounds import group_of

from fedray import fusion, placement, policy, run
from fedray.aggregator.data_changes import DataChanges
from fedray.aggregator.party_actors import PartyActors
from fedray.aggregator.round_record import Evaluation, RoundRecord
from fedray.config import FederationConfig, PartitionSpec
from fedray.messages import Outcome, PartyInfo, Rejection, Report, Update
from fedray.placement import Node

DRAWN = {"samples_per_party": 12, "replace": True}
PARTITION = {"samples_per_party": 30, "scheme": "dirichlet"}


@pytest.fixture
def many(settings):
    """Eight parties cut from the shipped digits."""
    del settings["parties"]
    return settings | {"partition": PARTITION, "num_parties": 8, "stacked": "false"}


def each_alone(settings: dict, parties: range) -> list[Update]:
    found = []
    for party in parties:
        group, weights = group_of(settings, range(party, party + 1))
        update = group.train(1, np.array([party]), weights)[1]
        found.append(pickle.loads(pickle.dumps(update)))
    return found


@pytest.mark.parametrize("rule", ["fedavg", "iter_avg"])
def test_a_group_sends_the_mean_of_what_its_parties_would_send(many, rule):
    many["fusion_algorithm"] = rule
    group, weights = group_of(many, range(8))
    report, update = group.train(1, np.array([1, 2, 5]), weights)
    alone = each_alone(many, range(8))
    chosen = [alone[i].weights for i in (1, 2, 5)]
    mean = {k: np.mean([w[k] for w in chosen], axis=0) for k in weights}
    assert (update.n_parties, update.n_samples) == (3, 90)
    assert_close(update.weights, mean)
    assert report.parties.tolist() == [1, 2, 5]
    assert report.n_samples.tolist() == [30, 30, 30]
    moved = [
        sum(((w[k] - weights[k]) ** 2).sum() for k in weights) ** 0.5 for w in chosen
    ]
    np.testing.assert_allclose(report.drift, moved, rtol=1e-5)
    assert np.isfinite(report.loss).all()


@pytest.mark.parametrize("rule", ["fedavg", "iter_avg", "fedadam"])
def test_a_stack_is_combined_whole(many, rule):
    many |= {"fusion_algorithm": rule, "num_parties": 40, "partition": DRAWN}
    alone, weights = group_of(many, range(40))
    stacked, _ = group_of(many | {"stacked": "true"}, range(40))
    asked = 1, np.arange(3, 40), weights
    expected, mean = alone.train(*asked)
    report, update = stacked.train(*asked)
    assert (update.n_parties, update.n_samples) == (37, 37 * 12)
    assert_close(update.weights, mean.weights)
    np.testing.assert_allclose(report.drift, expected.drift, rtol=1e-4)
    np.testing.assert_allclose(report.loss, expected.loss, rtol=1e-4)


def test_one_party_of_a_stack_that_is_not_finite_is_left_out_alone(many, monkeypatch):
    many |= {"num_parties": 40, "partition": DRAWN, "stacked": "true"}
    group, weights = group_of(many, range(40))
    poisoned, _ = group_of(many, range(40))
    train_each = poisoned.local_data.model.train_each

    def with_nan(*arguments):
        for losses, stack in train_each(*arguments):
            stack["1.weight"][5, 0, 0] = np.nan
            yield losses, stack

    monkeypatch.setattr(poisoned.local_data.model, "train_each", with_nan)
    report, update = poisoned.train(1, np.arange(40), weights)
    assert list(report.refused) == [5]
    _, expected = group.train(1, np.delete(np.arange(40), 5), weights)
    assert update.n_parties == expected.n_parties == 39
    assert_close(update.weights, expected.weights)


def test_a_rule_that_must_see_everyone_gets_every_update(many):
    group, weights = group_of(many, range(8))
    group.rule.associative = False
    _, *updates = group.train(1, np.array([0, 3]), weights)
    alone = each_alone(many, range(4))
    for update, party in zip(updates, (0, 3), strict=True):
        assert update.n_parties == 1
        assert all(
            (update.weights[k] == alone[party].weights[k]).all() for k in weights
        )


def test_a_party_that_sends_nan_is_left_out_and_named(many, tmp_path, trouble):
    trouble("nan")
    many["architecture"] = f"{tmp_path}/trouble.py:mlp"
    group, weights = group_of(many, range(8))
    report, update = group.train(1, np.arange(2, 6), weights)
    assert list(report.refused) == [2]
    assert "not finite" in report.refused[2].detail
    assert update.n_parties == 3
    assert all(np.isfinite(array).all() for array in update.weights.values())


def test_actors_of_one_site_share_the_test_samples(many):
    group, weights = group_of(many, range(4))
    whole = group.evaluate(weights).scores
    parts = [group.evaluate(weights, (i, 3)).scores for i in range(3)]
    assert whole.n_samples == sum(part.n_samples for part in parts) == 500
    assert policy.merge_scores(parts) == pytest.approx(policy.merge_scores([whole]))


@pytest.mark.usefixtures("cluster")
def test_a_federation_is_the_same_with_many_parties_in_an_actor(many, tmp_path):
    many |= {"party_fraction": 0.75, "rounds": 3}
    alone = run(many, run_dir=tmp_path / "a", parties_per_actor=1)
    shared = run(many, run_dir=tmp_path / "b", parties_per_actor=4)
    assert_close(shared.weights(), alone.weights())
    for ours, theirs in zip(shared.history, alone.history, strict=True):
        assert [(p.name, p.n_samples, p.outcome) for p in ours.parties] == [
            (p.name, p.n_samples, p.outcome) for p in theirs.parties
        ]
        assert [p.loss for p in ours.parties] == pytest.approx(
            [p.loss for p in theirs.parties], abs=1e-6
        )
        assert ours.accuracy == pytest.approx(theirs.accuracy)
        assert ours.bytes_moved < theirs.bytes_moved  # two models, not six


@pytest.mark.usefixtures("cluster")
def test_an_actor_of_many_that_dies_trains_its_round_again(many, tmp_path, trouble):
    many["architecture"] = f"{tmp_path}/trouble.py:mlp"
    quiet = run(many, run_dir=tmp_path / "a", parties_per_actor=4)
    trouble("die")
    killed = run(many, run_dir=tmp_path / "b", parties_per_actor=4)
    assert not os.path.exists(tmp_path / "flag")  # it did die
    assert [line.fused for line in killed.history] == [8, 8]
    for name, array in quiet.weights().items():
        assert (array == killed.weights()[name]).all()


@pytest.mark.usefixtures("cluster")
def test_a_party_of_many_that_is_refused_is_a_line_in_the_record(
    many, tmp_path, trouble
):
    trouble("nan")
    many["architecture"] = f"{tmp_path}/trouble.py:mlp"
    result = run(many, run_dir=tmp_path / "a", parties_per_actor=4, max_refused=1)
    first, second = result.history
    assert (first.reported, first.fused, first.refused) == (8, 7, 1)
    (line,) = [line for line in first.parties if line.outcome != "fused"]
    assert "not finite" in line.outcome
    assert line.loss is None
    assert second.fused == 8


@pytest.mark.usefixtures("cluster")
def test_an_actor_logs_that_it_does_not_stack(many, tmp_path, mlp):
    import ray

    net = tmp_path / "drops.py"
    net.write_text(Path(mlp.partition(":")[0]).read_text().replace(
        "nn.ReLU()", "nn.ReLU(), nn.Dropout(0.1)"
    ))  # fmt: skip
    many |= {"architecture": f"{net}:mlp", "stacked": "auto", "rounds": 2}
    run(many, run_dir=tmp_path / "a", parties_per_actor=8)
    said = "not stacked (stacked: auto): layer 3, Dropout, is random"
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    found = [file.read_text().count(said) for file in logs.glob("worker-*.err")]
    assert sum(found) == 1


def record_of(n_parties: int, **settings) -> RoundRecord:
    config = FederationConfig(
        num_parties=n_parties, partition=PartitionSpec(), **settings
    )
    return RoundRecord(1, np.arange(n_parties), config)


def report_of(parties: np.ndarray, losses: np.ndarray) -> Report:
    ones = np.ones(len(parties))
    return Report(1, "n", parties, 10 * ones.astype(int), losses, ones, 2.0, 8)


def test_the_record_keeps_lines_up_to_a_bound_and_a_summary_beyond():
    record = record_of(6, history_parties=3)
    record.add_report(report_of(np.arange(5), np.array([1.0, 2, 3, 4, np.nan])))
    refused = {4: Rejection("non_finite", "not finite")}
    record.settle(np.arange(5), Outcome("fused"), refused)
    record.settle(np.array([5]), Outcome("late"))
    line = record.close(Evaluation(0.5, 0.9, 100, seconds=1.0), 3.0)
    assert [(p.name, p.outcome) for p in line.parties] == [
        ("party-0", "fused"),
        ("party-4", "refused: not finite"),  # those in trouble come first
        ("party-5", "late"),
    ]
    assert line.summary == {
        "n_samples": {"min": 10, "median": 10, "max": 10, "sum": 50},
        "loss": {"min": 1.0, "median": 2.5, "max": 4.0, "sum": 10.0},
        "drift": {"min": 1.0, "median": 1.0, "max": 1.0, "sum": 5.0},
        "seconds": {"min": 0.4, "median": 0.4, "max": 0.4, "sum": 2.0},
        "outcomes": {"fused": 4, "refused": 1, "late": 1},
    }
    assert (line.chosen, line.reported, line.fused, line.refused) == (6, 5, 4, 1)
    assert line.train_seconds == 2.0


def test_up_to_the_bound_every_party_has_its_line_and_there_is_no_summary():
    record = record_of(2, history_parties=2)
    record.add_report(report_of(np.arange(2), np.ones(2)))
    record.settle(np.arange(2), Outcome("fused"))
    line = record.close(Evaluation(), 1.0)
    assert len(line.parties) == 2
    assert line.summary is None


def objects_of_a_round(n_parties: int) -> int:
    """Objects that stay while driver and aggregator go through a round."""
    gc.collect()
    before = len(gc.get_objects())
    record = record_of(n_parties)
    pools = placement.place_partition(record.config, [Node("n", {}, 2, 0)])
    actors = PartyActors("r", "n", pools, {}, DataChanges(record.config))
    info = PartyInfo("n", "cpu", np.full(n_parties, 10), 0)
    actors.record_contact(pools[0].actors[0], info)
    items = actors.assign(record.chosen)
    for item in items:
        record.add_report(report_of(item.parties, np.ones(len(item.parties))))
        record.settle(item.parties, Outcome("fused"))
    rule = fusion.from_config(record.config, ())
    kept = record, pools, actors, items, rule, pickle.dumps(record.config)
    gc.collect()
    assert kept
    return len(gc.get_objects()) - before


def test_no_object_for_each_party_but_numbers():
    objects_of_a_round(100)  # imports and caches
    assert abs(objects_of_a_round(100_000) - objects_of_a_round(100)) < 50
