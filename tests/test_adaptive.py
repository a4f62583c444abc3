"""Fuse only when the parties disagree: sketches, decisions, parties apart. No Ray."""

import pickle

import numpy as np
import pytest
from support.comparison import assert_close
from support.local_rounds import group_of

from fedray import policy
from fedray.config import FederationConfig, parse
from fedray.errors import ConfigError
from fedray.federation import read_config
from fedray.messages import Drift
from fedray.weights import sketch

PARTITION = {"samples_per_party": 30, "scheme": "dirichlet"}


@pytest.fixture
def apart(settings):
    """Eight parties cut from the shipped digits, fused when they disagree."""
    del settings["parties"]
    many = {"partition": PARTITION, "num_parties": 8, "stacked": "false"}
    return settings | many | {"aggregation": "adaptive"}


def model(rng, *shapes) -> dict[str, np.ndarray]:
    return {str(i): rng.normal(size=s).astype("f4") for i, s in enumerate(shapes)}


def test_a_sketch_is_linear_and_counts_only_the_named_tensors():
    rng = np.random.default_rng(0)
    u, v = (model(rng, (3000, 7), (5,), (11,)) for _ in range(2))
    zero = {name: np.zeros_like(array) for name, array in u.items()}
    mix = {name: 2 * u[name] - 3 * v[name] for name in u}
    ours = sketch(mix, zero, ["0", "1"], 4)
    parts = [sketch(each, zero, ["0", "1"], 4) for each in (u, v)]
    np.testing.assert_allclose(ours, 2 * parts[0] - 3 * parts[1], atol=1e-3)
    np.testing.assert_array_equal(ours, sketch(mix | {"2": v["2"]}, zero, "01", 4))
    assert (ours.shape, ours.dtype) == ((2048,), np.float32)
    moved = {name: u[name] + v[name] for name in u}
    np.testing.assert_allclose(sketch(moved, v, u, 4), sketch(u, zero, u, 4), atol=1e-3)


@pytest.mark.parametrize("kind", ["random", "one hot", "parallel rows", "every 2048th"])
def test_a_sketch_keeps_the_length_and_strays_no_further_than_it_says(kind):
    rng = np.random.default_rng(1)
    u = rng.normal(size=(12, 2048)).astype("f4")
    if kind == "one hot":
        u = np.eye(1, 20_000, 777, dtype="f4")
    if kind == "parallel rows":
        u = np.repeat(u[:1], 12, axis=0)  # the worst case of its proof
    if kind == "every 2048th":
        u = np.eye(1, 2048, dtype="f4").repeat(12, axis=0)
    weights, base = {"u": u}, {"u": np.zeros_like(u)}
    length = float((u.astype(float) ** 2).sum())
    found = [np.square(sketch(weights, base, "u", seed)).sum() for seed in range(600)]
    off = np.array(found) / length - 1
    bound = (6 / 2048) ** 0.5
    assert off.std() < 1.1 * bound
    assert abs(off.mean()) < 4 * bound / 600**0.5
    if kind == "one hot":
        assert abs(off).max() < 1e-6


def drift(share: float, *vectors: list[float]) -> Drift:
    """Of parties that weigh `share` each; short vectors are their own sketch."""
    u = np.array(vectors, np.float32)
    squares = share * float((u.astype(float) ** 2).sum())
    return Drift(share * len(u), squares, (share * u.sum(0)).astype(np.int8), 1.0)


@pytest.mark.parametrize(
    ("drifts", "estimate", "common"),
    [
        # by hand: mean of 9 and 16 is 12.5; the mean (1.5, 2) has 6.25
        ([drift(1, [3, 0]), drift(1, [0, 4])], 6.25, 6.25),
        ([drift(1, [3, 0], [0, 4])], 6.25, 6.25),  # in one actor
        # weights 1 and 3: mean square (9 + 48) / 4; mean (0.75, 3) has 9.5625
        ([drift(1, [3, 0]), drift(3, [0, 4])], 4.6875, 9.5625),
        ([drift(5, [1, 2]), drift(5, [1, 2])], 0.0, 5.0),
        (
            [Drift(1.0, 3.9, np.array([1, 0], np.int8), 2.0)],
            0.0,
            4.0,
        ),  # never below zero
    ],
)
def test_disagreement_is_the_variance_of_the_parties(drifts, estimate, common):
    assert policy.disagreement(drifts) == pytest.approx((estimate, common))


def test_when_a_round_fuses():
    config = FederationConfig(rounds=9, aggregation="adaptive", max_rounds_apart=4)
    for since, round, estimate, fuses in [
        (1, 1, 0.0, True),  # the first
        (2, 2, 1.0, False),
        (2, 2, 1.1, True),
        (2, 4, 0.5, False),
        (2, 5, 0.5, True),  # four rounds apart
        (8, 9, 0.0, True),  # the last
        (2, 3, float("nan"), True),
    ]:
        assert policy.must_fuse(config, since, round, estimate, 1.0) is fuses


@pytest.mark.parametrize(
    ("estimate", "common", "times"),
    [
        (3.0, 3.0, 5.0),  # by hand: half was common, 2 × 2.5
        (9.0, 3.0, 5 / 3),  # a quarter was
        (0.0, 3.0, 80.0),  # all was: below 2 √(2 / 2048) = 1/16 of 3 a sketch sees none
        (1.0, 0.0, 0.0),
        (0.0, 0.0, 0.0),
    ],
)
def test_unlike_parties_may_drift_less(estimate, common, times):
    config = FederationConfig(aggregation="adaptive")
    assert policy.growth(config, estimate, common) == pytest.approx(times)


def test_what_parties_may_disagree_goes_with_what_one_round_makes_them():
    config = FederationConfig(aggregation="adaptive")
    assert policy.threshold(config, 3.0, (2.0, 4.0), 10.0) == pytest.approx(6.0)
    assert policy.threshold(config, 3.0, (0.5, 4.0), 10.0) == pytest.approx(1.5)
    # by hand: 1/16 of 64 and of 320 cannot be told from none
    assert policy.threshold(config, 3.0, (0.5, 64.0), 10.0) == pytest.approx(12.0)
    assert policy.threshold(config, 3.0, (0.5, 4.0), 320.0) == pytest.approx(20.0)
    outright = FederationConfig(drift_threshold=0.25)
    assert policy.threshold(outright, 3.0, (2.0, 4.0), 320.0) == 0.25


def alone(settings, party: int, rounds: range, weights: dict) -> dict:
    """One party's weights after these rounds, each trained from the last one's."""
    group, _ = group_of(settings, range(party, party + 1))
    for round in rounds:
        update = group.train(round, np.array([party]), weights)[1]
        weights = {name: array.copy() for name, array in update.weights.items()}
    return weights


@pytest.mark.parametrize("rule", ["fedavg", "iter_avg"])
def test_parties_train_on_from_their_own_weights_and_report_their_drift(apart, rule):
    apart["fusion_algorithm"] = rule
    group, weights = group_of(apart, range(8))
    parties, seed = np.array([1, 4, 6]), apart.get("seed", 0)
    for round in (3, 4, 5):
        report = group.train(round, parties, weights, None, 3)
        assert (report.round, report.parties.tolist()) == (round, [1, 4, 6])
    ends = [alone(apart, party, range(3, 6), weights) for party in parties]
    u = [{k: end[k] - weights[k] for k in weights} for end in ends]
    lengths = [sum(float((a.astype(float) ** 2).sum()) for a in each.values())
               for each in u]  # fmt: skip
    p = 30.0 if rule == "fedavg" else 1.0
    assert report.drifted.share == 3 * p
    assert report.drifted.squares == pytest.approx(p * sum(lengths), rel=1e-5)
    np.testing.assert_allclose(report.drift, np.sqrt(lengths), rtol=1e-5)
    sums = sum(sketch(end, weights, weights, seed) for end in ends)
    step = report.drifted.step
    assert step == pytest.approx(p * abs(sums).max() / 127, rel=1e-5)
    far = abs(report.drifted.sketch - p * sums).max()
    assert step / 4 < far <= step / 2 + 1e-5 * p  # rounded to the nearest level
    _, update = group.update(5, parties, weights, None, 3)
    mean = {k: np.mean([end[k] for end in ends], axis=0) for k in weights}
    assert_close(update.weights, mean)
    assert (update.n_samples, update.n_parties) == (90, 3)


def test_weights_that_were_lost_are_trained_again_to_the_same_bits(apart):
    parties = np.arange(2, 5)

    def after(*calls) -> tuple:
        group, weights = group_of(apart, range(8))
        for round, since in calls:
            group.train(round, parties, weights, None, since)
        return pickle.loads(pickle.dumps(group.update(5, parties, weights, None, 3)))

    report, whole = after((3, 3), (4, 3), (5, 3))
    for calls in [(), [(3, 3)], [(5, 3)], [(3, 3), (3, 3), (4, 3), (4, 3), (5, 3)],
                  [(6, 3)], [(4, 4), (5, 4)]]:  # fmt: skip
        again, update = after(*calls)
        for name, array in whole.weights.items():
            assert (array == update.weights[name]).all(), calls
        assert again.loss.tolist() == report.loss.tolist()
        assert (again.drifted.sketch == report.drifted.sketch).all()


def test_fusing_after_one_round_is_fusing_always(apart):
    group, weights = group_of(apart, range(8))
    plain, _ = group_of(apart | {"aggregation": "always"}, range(8))
    report = group.train(1, np.arange(8), weights, None, 1)
    _, ours = group.update(1, np.arange(8), weights, None, 1)
    expected, theirs = plain.train(1, np.arange(8), weights)
    for name, array in theirs.weights.items():
        assert (array == ours.weights[name]).all()
    assert report.loss.tolist() == expected.loss.tolist()


@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_stacked_parties_start_from_their_own_weights(apart, mu):
    drawn = {"samples_per_party": 12, "replace": True}
    apart |= {"num_parties": 12, "partition": drawn, "proximal_mu": mu}
    made = []
    for stacked in ("false", "true"):
        group, weights = group_of(apart | {"stacked": stacked}, range(12))
        for round in (1, 2, 3):
            report = group.train(round, np.arange(12), weights, None, 1)
        made.append((report, group.update(3, np.arange(12), weights, None, 1)[1]))
    (expected, theirs), (report, ours) = made
    assert_close(ours.weights, theirs.weights, 2e-6)
    np.testing.assert_allclose(report.drift, expected.drift, rtol=1e-4)
    np.testing.assert_allclose(report.loss, expected.loss, rtol=1e-4)


def test_the_proximal_pull_is_toward_the_last_fusion(apart):
    far, near = (
        group_of(apart | {"proximal_mu": mu}, range(1))[0] for mu in (0.0, 8.0)
    )
    _, weights = group_of(apart, range(1))
    drifts = []
    for group in (far, near):
        for round in range(1, 9):
            report = group.train(round, np.arange(1), weights, None, 1)
        drifts.append(report.drift[0])
    assert drifts[1] < drifts[0] / 3  # toward each round's start it would go on


def test_a_party_that_is_not_finite_is_left_out_and_named(apart, tmp_path, trouble):
    trouble("nan")
    apart["architecture"] = f"{tmp_path}/trouble.py:mlp"
    group, weights = group_of(apart, range(8))
    parties = np.arange(2, 6)
    report = group.train(1, parties, weights, None, 1)
    assert list(report.refused) == [2]
    assert "not finite" in report.refused[2].detail
    assert report.drifted.share == 3 * 30
    assert np.isfinite(report.drifted.sketch).all()
    report, update = group.update(1, parties, weights, None, 1)
    assert (list(report.refused), update.n_parties) == ([2], 3)


def test_groups_of_parties_keep_their_weights_apart_from_each_other(apart):
    group, weights = group_of(apart, range(8))
    other, _ = group_of(apart, range(8))
    for round in (1, 2):
        group.train(round, np.arange(4), weights, None, 1)
        group.train(round, np.arange(4, 8), weights, None, 1)
        other.train(round, np.arange(4, 8), weights, None, 1)
    ours = group.update(2, np.arange(4, 8), weights, None, 1)[1]
    theirs = other.update(2, np.arange(4, 8), weights, None, 1)[1]
    assert all((ours.weights[k] == theirs.weights[k]).all() for k in weights)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"aggregation": "sometimes"}, r"aggregation.*choose from.*'adaptive'"),
        ({"drift_tolerance": 0}, "drift_tolerance must be above 0"),
        ({"drift_tolerance": "nan"}, "drift_tolerance must be a finite number"),
        ({"drift_threshold": -1}, "drift_threshold must be at least 0"),
        ({"max_rounds_apart": 0}, "max_rounds_apart must be between 1"),
        ({"aggregation": "always", "max_rounds_apart": 3}, "is for aggregation: adap"),
        ({"late": "next_round"}, "late: next_round does not go with aggregation: adap"),
        ({"drift_treshold": 1}, "did you mean 'drift_threshold'"),
    ],
)
def test_mistakes_are_config_errors(apart, changes, told):
    with pytest.raises(ConfigError, match=told):
        read_config(apart | changes)


@pytest.mark.parametrize("rule", ["median", "krum", "best_model"])
def test_adaptive_refuses_rules_that_take_no_mean(apart, rule):
    told = f"{rule} takes none; choose from.*'fedavg'.*'iter_avg'"
    with pytest.raises(ConfigError, match=told):
        read_config(apart | {"fusion_algorithm": rule, "n_hostile": None})
    assert parse(apart)[1] == []
