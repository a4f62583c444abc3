"""What `fedray check` says of privacy before a run: epsilon, whose, against whom."""

import json

import pytest

from fedray import policy
from fedray.cli.run import _format_result
from fedray.config import parse
from fedray.errors import ConfigError
from fedray.federation.check import CheckResult, _privacy_entries
from fedray.messages import ProbeResult
from fedray.placement import ActorPool
from fedray.privacy.wording import how_many_times

CENTRAL = {"mechanism": "central", "delta": 1e-5, "clip_norm": 1.0}
SAMPLES = {"max_grad_norm": 1.0, "delta": 1e-5}


def config_of(n_parties=1000, **settings):
    values = {"model_file": "m.pt", "rounds": 60, "test_data": "t.npz", **settings}
    source = {"source": "d.npz", "scheme": "iid"}
    config, problems = parse({**values, "partition": source, "num_parties": n_parties})
    assert problems == []
    return config


def forecast(n_samples=(), **settings):
    (one,) = policy.forecast_privacy(config_of(**settings), n_samples)
    return one


def test_a_config_without_privacy_spends_none():
    config = config_of()
    assert policy.forecast_privacy(config) == policy.privacy_notes(config) == []


def test_noise_that_follows_from_epsilon_spends_it_whole():
    one = forecast(privacy={**CENTRAL, "epsilon": 2.0})
    assert one.unit == "party"
    assert 1.98 < one.epsilon <= 2.0
    first, against, words, *_ = one.lines()
    assert first == (
        "epsilon 2 at delta 1e-05 for each party after 60 rounds, noise multiplier "
        "15.44"
    )
    assert "not against the aggregator" in against
    assert "7.39 times as likely" in words  # e²
    assert "one in 100,000" in words
    assert one.warnings() == []


def test_noise_that_is_given_may_end_the_run_before_its_last_round():
    one = forecast(privacy={**CENTRAL, "epsilon": 2.0, "noise_multiplier": 5.0})
    assert one.last_round == 6  # 7 of z = 5 cost 2.12: Σ 1/z² = 0.28
    assert any("spent after round 6 of 60 rounds" in line for line in one.warnings())


@pytest.mark.parametrize("key", ["privacy", "dp_sgd"])
def test_a_limit_below_one_round_is_a_mistake(key):
    spec = {"privacy": CENTRAL, "dp_sgd": SAMPLES}[key]
    spec = spec | {"epsilon": 0.01, "noise_multiplier": 1.0}
    with pytest.raises(ConfigError, match=f"{key}.epsilon: 0.01 is less than one"):
        policy.forecast_privacy(config_of(**{key: spec}), [100])


def test_a_drawing_that_is_seen_protects_less():
    privacy = {**CENTRAL, "noise_multiplier": 2.0, "sampling": "poisson"}
    one = forecast(privacy=privacy, party_fraction=0.1)
    whole = forecast(privacy={**CENTRAL, "noise_multiplier": 2.0})
    assert one.epsilon < 3 < one.known_draws == whole.epsilon
    assert "outsiders alone" in one.lines()[1]
    assert f"{whole.epsilon:.4g}" in one.lines()[2]


def test_turns_may_be_known():
    privacy = {**CENTRAL, "epsilon": 2.0, "sampling": "cyclic"}
    one = forecast(privacy=privacy, party_fraction=0.1)
    assert one.noise_multiplier == pytest.approx(1.994, abs=0.001)  # one release
    assert "it may be known whose turn it is" in one.lines()[1]


@pytest.mark.parametrize(("n", "delta"), [(10, 0.02), (1000, 2e-4)])
def test_a_delta_that_is_no_protection_is_warned_of(n, delta):
    privacy = {**CENTRAL, "epsilon": 2.0, "delta": delta}
    (line, *_) = forecast(n_parties=n, privacy=privacy).warnings()
    assert f"delta {delta:g} is large with" in line
    assert f"{min(1e-3, 0.1 / n):.2g} or less" in line


def test_few_parties_are_told_to_use_dp_sgd():
    for n, is_few in ((5, True), (49, True), (50, False)):
        one = forecast(n_parties=n, privacy={**CENTRAL, "epsilon": 2.0})
        assert any("dp_sgd" in line for line in one.warnings()) == is_few


def test_an_epsilon_that_bounds_nothing_is_warned_of():
    one = forecast(privacy={**CENTRAL, "noise_multiplier": 0.1})
    assert any("bounds hardly anything" in line for line in one.warnings())


def test_samples_of_the_smallest_party_are_in_most_batches():
    samples = {**SAMPLES, "noise_multiplier": 1.0}
    config = config_of(n_parties=2, dp_sgd=samples, batch_size=50, rounds=15)
    small, large, both = (
        policy.forecast_privacy(config, n)[0] for n in ([500], [5000], [5000, 500])
    )
    assert small == both
    assert large.epsilon < small.epsilon
    assert small.unit == "sample"
    assert "but the party itself" in small.against


def test_samples_are_not_counted_before_data_is_read():
    one = forecast(dp_sgd={**SAMPLES, "epsilon": 3.0}, n_parties=2)
    assert one.epsilon is None
    assert one.lines()[0] == (
        "epsilon at most 3 at delta 1e-05 for each sample; it depends on the parties' "
        "sample counts"
    )


def test_both_are_told_of_a_run_that_has_both():
    config = config_of(
        privacy={**CENTRAL, "epsilon": 2.0}, dp_sgd={**SAMPLES, "epsilon": 3.0}
    )
    units = [one.unit for one in policy.forecast_privacy(config, [100])]
    assert units == ["party", "sample"]


def test_an_adaptive_clip_norm_needs_enough_parties_for_its_noise():
    privacy = {**CENTRAL, "clip_norm": "adaptive", "noise_multiplier": 5.0}
    assert forecast(n_parties=51, privacy=privacy).epsilon > 0
    with pytest.raises(ConfigError, match="adaptive"):
        policy.forecast_privacy(config_of(n_parties=50, privacy=privacy))


def test_masks_alone_are_said_to_bound_nothing():
    parties = [{"name": f"p{i}", "data": "/d.npz"} for i in range(3)]
    values = {"parties": parties, "model_file": "m.pt", "test_data": "t.npz"}
    masked = {"secure_aggregation": True, "clip_norm": 1.0}
    config, problems = parse(values | masked)
    assert problems == []
    note = policy.privacy_notes(config)[0]
    assert "has no bound" in note
    both = config.with_changes(dp_sgd={**SAMPLES, "epsilon": 2.0})
    assert not any("has no bound" in note for note in policy.privacy_notes(both))


@pytest.mark.parametrize(
    ("epsilon", "times"),
    [(0.0, "1"), (0.1, "1.11"), (2.0, "7.39"), (8.0, "2,980"), (900.0, None)],
)
def test_epsilon_is_put_into_words(epsilon, times):
    assert how_many_times(epsilon) == times


def test_notes_say_that_parties_weigh_equally_and_that_nothing_is_scored():
    privacy = {**CENTRAL, "epsilon": 2.0}
    notes = policy.privacy_notes(config_of(privacy=privacy, test_data=None))
    assert ["equally" in notes[0], "no test_data" in notes[1]] == [True, True]
    other = config_of(privacy=privacy, fusion_algorithm="iter_avg")
    assert policy.privacy_notes(other) == []


def pool_of(name, n_parties):
    return ActorPool(range(n_parties), (name,), None)


def probe_of(n_train):
    return ProbeResult("n", "cpu", n_train, 0, "", "", 0)


def test_a_check_counts_the_samples_of_the_party_that_has_fewest():
    samples = {**SAMPLES, "noise_multiplier": 1.0}
    config = config_of(n_parties=12, dp_sgd=samples)
    pools = [pool_of("a", 10), pool_of("b", 2), pool_of("c", 1)]
    probes = {"a": probe_of(5000), "b": probe_of(2000)}  # c could not be looked at
    (entry,), problems = _privacy_entries(config, pools, probes)
    assert (entry["n"], problems) == (500, [])
    result = CheckResult(privacy=[entry]).to_json()
    shown = list(_format_result(result))
    assert f"privacy  {entry['lines'][0]}" in shown
    assert json.loads(json.dumps(result)) == result


def test_a_check_of_a_run_without_privacy_has_nothing_of_it():
    result = CheckResult().to_json()
    assert "privacy" not in result
    assert not any("privacy" in line for line in _format_result(result))


def test_noise_that_cannot_be_made_is_a_problem_of_the_check():
    privacy = {**CENTRAL, "clip_norm": "adaptive", "noise_multiplier": 5.0}
    config = config_of(n_parties=20, privacy=privacy)
    entries, (problem,) = _privacy_entries(config, [], {})
    assert entries == []
    assert "needs above 50 parties a round, 20 are expected" in problem
