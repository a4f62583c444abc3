"""Asynchronous fusion: weights of stale updates, leases, the virtual clock. No Ray."""

import json

import numpy as np
import pytest

from fedray import fusion
from fedray.aggregator.round_record import Evaluation, RoundRecord
from fedray.checkpoint.recorded_order import RecordedOrder, write_order
from fedray.config import lease_of, n_at_work, parse, step_size
from fedray.errors import RunFolderError
from fedray.fusion import RoundContext, StalenessWeights, staleness_weight
from fedray.messages import FUSED, LATE, Outcome, RoundReport, Update
from fedray.policy import Leases, Simulation, VirtualClock, slow_parties
from fedray.policy.buffered import MOST_LEASES

ALL_ALIKE = {"median_s": 1.0, "sigma": 0}


def buffered(n_parties: int, **settings):
    """A config of so many simulated parties."""
    words = {
        "model_file": "m.pt",
        "num_parties": n_parties,
        "partition": {},
        "aggregation": "buffered",
        "virtual_clock": ALL_ALIKE,
    }
    config, found = parse(words | settings)
    assert found == []
    return config


def simulation_of(config, slow=()) -> Simulation:
    return Simulation(Leases(config), VirtualClock(config, slow))


def play(config, n_steps: int, slow=(), simulation=None, start: int = 0):
    """Steps of a simulation: what each is made of, as (place, version)."""
    simulation = simulation or simulation_of(config, slow)
    everyone, steps = np.arange(config.num_parties), []
    for version in range(start, n_steps):
        simulation.begin_step(everyone)
        size = step_size(config, len(everyone))
        updates, _ = simulation.next_updates(size, version)
        steps.append([(one.place, one.version) for one in updates])
    return steps, simulation


# -- what an update counts


def step_of(normalise: str, rule: str = "iter_avg", counts=(1, 1, 1)) -> float:
    """Where three updates bring a weight of 10: steps of 3, 4 and 2, of τ = 0, 1, 3."""
    now = {"w": np.array([10.0], np.float32)}
    total = fusion.named(rule).accumulator(RoundContext(4, now))
    weights = StalenessWeights("sqrt", normalise)
    for then, sent, staleness, n in zip(
        (10.0, 8.0, 5.0), (13.0, 12.0, 7.0), (0, 1, 3), counts, strict=True
    ):
        base = {"w": np.array([then], np.float32)}
        update = Update({"w": np.array([sent], np.float32)}, n)
        weights.add(total, update, base, now, staleness)
    return float(total.result().weights["w"][0])


def test_an_update_counts_by_one_over_the_root_of_one_plus_its_staleness():
    assert [staleness_weight(t) for t in (0, 3, 8)] == [1, 1 / 2, 1 / 3]
    assert staleness_weight(8, "none") == 1


def test_a_step_by_weights_divides_by_what_the_updates_weigh():
    # A = 3 + 4/√2 + 2/2, W = 1 + 1/√2 + 1/2
    by_hand = 10 + (3 + 4 / 2**0.5 + 1) / (1 + 2**-0.5 + 0.5)
    assert step_of("weights") == pytest.approx(by_hand, rel=1e-6)


def test_a_step_by_count_divides_by_how_many_updates_there_are():
    by_hand = 10 + (3 + 4 / 2**0.5 + 1) / 3
    assert step_of("count") == pytest.approx(by_hand, rel=1e-6)


def test_samples_weigh_beside_staleness_with_fedavg():
    counts, s = (20, 10, 40), (1, 2**-0.5, 0.5)
    total = sum(n * w * u for n, w, u in zip(counts, s, (3, 4, 2), strict=True))
    by_weights = 10 + total / sum(n * w for n, w in zip(counts, s, strict=True))
    assert step_of("weights", "fedavg", counts) == pytest.approx(by_weights, rel=1e-6)
    by_count = 10 + total / 70
    assert step_of("count", "fedavg", counts) == pytest.approx(by_count, rel=1e-6)


def test_fresh_updates_give_the_bits_of_a_synchronous_mean():
    rng = np.random.default_rng(0)
    now = {"w": rng.normal(size=5).astype(np.float32), "n": np.array(3)}
    updates = [
        Update({"w": rng.normal(size=5).astype(np.float32), "n": np.array(n)}, n)
        for n in (3, 7)
    ]
    rule = fusion.named("fedavg")
    plain = fusion.combine(rule, updates).weights
    for normalise in ("weights", "count"):
        total = rule.accumulator(RoundContext(1, now))
        for update in updates:
            StalenessWeights("sqrt", normalise).add(total, update, now, now, 0)
        ours = total.result().weights
        assert all(ours[name].tobytes() == plain[name].tobytes() for name in plain)


# -- leases


def test_as_many_parties_are_at_work_as_concurrency_says_each_once():
    leases = Leases(buffered(20, buffer_size=4, concurrency=8))
    leases.begin_step(np.arange(20))
    first = leases.draw(0)
    assert len(set(first)) == 8
    assert leases.draw(0) == []
    leases.end(first[0])
    (other,) = leases.draw(0)
    assert other not in first  # one update of a party in a step
    leases.give_up(first[1])
    (another,) = leases.draw(0)  # may be asked again at once: its update was lost
    assert another not in {*first, other} - {first[1]}


def test_a_party_whose_leases_all_run_out_is_not_asked_for_ever():
    config = buffered(2, buffer_size=2, lease_s=0.5)  # trainings take 1 s
    simulation = simulation_of(config)
    simulation.begin_step(np.arange(2))
    updates, others = simulation.next_updates(2, 0)
    assert updates == []
    assert len(others) == simulation.n_expired == 2 * MOST_LEASES
    assert simulation.clock.now_s == 0.5 * MOST_LEASES


def test_who_has_left_is_not_waited_for_and_not_asked():
    config = buffered(4, buffer_size=2, concurrency=4)
    simulation = simulation_of(config)
    simulation.begin_step(np.arange(4))
    simulation.next_updates(2, 0)
    simulation.begin_step(np.array([0, 2]))
    updates, _ = simulation.next_updates(2, 1)
    assert {one.place for one in updates} == {0, 2}
    assert {one.place for one in simulation.clock.arrivals} <= {0, 2}


def test_defaults_follow_the_number_of_parties():
    few, many = buffered(4), buffered(1000)
    assert (step_size(few, 4), n_at_work(few, 4)) == (4, 4)
    assert (step_size(many, 1000), n_at_work(many, 1000)) == (10, 100)
    assert lease_of(many) == many.round_timeout_s
    assert step_size(buffered(10), 3) == 3  # seven have left


# -- the virtual clock


def test_a_slow_party_comes_with_the_weights_of_its_start():
    # c takes 2.5 s and the others 1 s: steps at 1 s, 2 s, and one with c at 3 s
    config = buffered(3, buffer_size=2, virtual_clock={**ALL_ALIKE, "slow": [0.3, 2.5]})
    steps, simulation = play(config, 3, slow=[2])
    assert sorted(steps[0]) == [(0, 0), (1, 0)]
    assert sorted(steps[1]) == [(0, 1), (1, 1)]
    assert steps[2][0] == (2, 0)  # two steps old
    assert steps[2][1][1] == 2
    assert simulation.clock.now_s == 3.0


def test_an_update_older_than_max_staleness_is_dropped_and_its_party_asked_again():
    clock = {**ALL_ALIKE, "slow": [0.3, 2.5]}
    config = buffered(3, buffer_size=2, max_staleness=1, virtual_clock=clock)
    simulation = simulation_of(config, [2])
    everyone = np.arange(3)
    dropped = []
    for version in range(3):
        simulation.begin_step(everyone)
        updates, others = simulation.next_updates(2, version)
        assert all(one.place != 2 for one in updates)
        dropped += [(one.place, one.version, one.is_lost) for one in others]
    assert dropped == [(2, 0, False)]
    assert simulation.leases.version_of[2] == 2  # asked again at 2.5 s, from weights 2


def test_a_lost_update_ends_with_its_lease_and_frees_the_place():
    clock = {**ALL_ALIKE, "lost": 0.9}
    config = buffered(50, buffer_size=5, concurrency=5, lease_s=3, virtual_clock=clock)
    simulation = simulation_of(config)
    simulation.begin_step(np.arange(50))
    updates, others = simulation.next_updates(5, 0)
    assert len(updates) == 5
    assert all(one.is_lost for one in others)
    assert simulation.n_expired == len(others) > 5
    assert {one.at_s % 1 for one in [*updates, *others]} == {0.0}  # 3 s or 1 s each


def test_times_are_log_normal_around_the_median():
    clock = {"median_s": 3.0, "sigma": 0.7, "lost": 0.2}
    config = buffered(2, virtual_clock=clock)
    drawn = [VirtualClock(config).time_of(0, number) for number in range(4000)]
    logs = np.log([seconds for seconds, _ in drawn])
    assert np.mean(logs) == pytest.approx(np.log(3), abs=0.05)
    assert np.std(logs) == pytest.approx(0.7, abs=0.03)
    assert np.mean([is_lost for _, is_lost in drawn]) == pytest.approx(0.2, abs=0.03)


def test_the_share_of_slow_parties_is_exact_and_theirs_for_good():
    clock = {**ALL_ALIKE, "slow": [0.1, 20]}
    config = buffered(100, virtual_clock=clock)
    slow = slow_parties(config, np.arange(100))
    assert len(slow) == 10
    assert slow == slow_parties(config, np.arange(100))
    assert slow != slow_parties(
        buffered(100, seed=1, virtual_clock=clock), np.arange(100)
    )
    assert slow_parties(buffered(100), np.arange(100)) == []


def test_the_same_config_gives_the_same_order_and_another_seed_another():
    words = {"virtual_clock": {"sigma": 1.0, "slow": [0.2, 5], "lost": 0.1}}
    steps, _ = play(buffered(30, buffer_size=4, **words), 20, slow=[1, 2])
    assert steps == play(buffered(30, buffer_size=4, **words), 20, slow=[1, 2])[0]
    assert (
        steps != play(buffered(30, buffer_size=4, seed=1, **words), 20, slow=[1, 2])[0]
    )
    ages = [v - version for v, step in enumerate(steps) for _, version in step]
    assert min(ages) == 0 < max(ages) <= 20
    for step in steps:
        assert len({place for place, _ in step}) == 4


@pytest.mark.parametrize("stop", [1, 7, 19])
def test_a_simulation_goes_on_after_a_crash_with_the_same_order(stop):
    config = buffered(30, buffer_size=4, virtual_clock={"sigma": 1.0, "lost": 0.1})
    whole, _ = play(config, 20)
    first, before = play(config, stop)
    arrays = {name: array.copy() for name, array in before.to_arrays().items()}
    again = simulation_of(config)
    again.restore(arrays)
    rest, _ = play(config, 20, simulation=again, start=stop)
    assert first + rest == whole


def test_thousands_of_parties_are_planned_in_a_moment():
    config = buffered(
        5000, buffer_size=100, concurrency=2000, virtual_clock={"sigma": 1.0}
    )
    steps, simulation = play(config, 30)
    assert all(len(step) == 100 for step in steps)
    assert len(simulation.leases.version_of) >= 1900


# -- the record of a step


def test_a_record_lists_those_alone_who_have_sent_or_were_given_up():
    config = buffered(6, buffer_size=2)
    record = RoundRecord(3, np.arange(6), config)
    record.n_wanted = 2
    record.settle(np.array([1, 4]), Outcome(FUSED))
    record.settle(np.array([5]), Outcome(LATE, detail="no update"))
    record.note_arrivals([[4, 0], [1, 2]], expired=1, virtual_s=7.5)
    report = record.close(Evaluation(), 1.0)
    assert [line.name for line in report.parties] == ["party-1", "party-4", "party-5"]
    assert (report.chosen, report.fused) == (3, 2)
    assert (report.staleness, report.expired, report.virtual_s) == (1.0, 1, 7.5)
    assert RoundReport.from_json(report.to_json()) == report
    assert report.to_json()["order"] == [[4, 0], [1, 2]]


def test_a_synchronous_round_has_nothing_of_it_in_its_line():
    record = RoundRecord(1, np.arange(2), buffered(2))
    line = record.close(Evaluation(), 1.0).to_json()
    assert not {"order", "staleness", "expired", "virtual_s"} & line.keys()


# -- the config


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"quorum": 0.5}, "quorum does not go with aggregation: buffered: a step is"),
        ({"deadline_s": 3}, "deadline_s does not go with aggregation: buffered: there"),
        ({"party_fraction": 0.5}, "concurrency says how many train at a time"),
        ({"over_select": 1.3, "party_fraction": 0.5}, "over_select does not go with"),
        ({"late": "next_round"}, "late does not go with aggregation: buffered"),
        ({"fusion_algorithm": "krum"}, "only a mean can weigh them; take one of"),
        ({"fusion_algorithm": "scaffold"}, "fusion_algorithm: scaffold: its updates"),
        ({"fusion_algorithm": "fednova"}, "fusion_algorithm: fednova: its updates"),
        ({"fusion_algorithm": "best_model"}, "fusion_algorithm: best_model: its"),
        ({"fusion_algorithm": "ensemble"}, "fusion_algorithm: ensemble: its updates"),
        (
            {"model_type": "doc2vec", "fusion_algorithm": "doc2vec"},
            "model_type: doc2vec, whose rows are added up",
        ),
        ({"personal": ["*bias"]}, "personal does not go with aggregation: buffered"),
        ({"ditto_lambda": 0.1}, "ditto_lambda does not go with aggregation: buffered"),
        (
            {"attack": {"kind": "alie", "parties": ["party-1"]}},
            "attack does not go with aggregation: buffered",
        ),
        (
            {"privacy": {"mechanism": "central", "epsilon": 8.0, "delta": 1e-3,
                         "clip_norm": 1.0}},
            "aggregation: buffered does not go with privacy.mechanism: central",
        ),
        (
            {"secure_aggregation": True, "clip_norm": 1.0},
            "aggregation: buffered does not go with secure_aggregation: true",
        ),
        ({"buffer_size": 11}, "buffer_size is 11, but there are 10 parties"),
        ({"concurrency": 11}, "concurrency is 11, but there are 10 parties"),
        ({"virtual_clock": None}, "with a partition needs virtual_clock"),
        ({"virtual_clock": {"slow": [0.1]}}, "like [0.1, 20], got (0.1,)"),
        ({"virtual_clock": {"slow": [0.1, 0.5]}}, "a factor from 1 on"),
        ({"virtual_clock": {"lost": 1.0}}, "virtual_clock.lost must be between 0 and"),
        ({"virtual_clock": {"median_s": 0}}, "virtual_clock.median_s must be above 0"),
        ({"staleness": "linear"}, "unknown staleness 'linear'"),
        ({"buffer_size": 0}, "buffer_size must be between 1 and"),
        ({"max_staleness": -1}, "max_staleness must be between 0 and"),
        ({"lease_s": 0}, "lease_s must be above 0"),
        ({"aggregation": "always"}, "virtual_clock has no effect with aggregation"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_the_reason(settings, told):
    words = {
        "model_file": "m.pt",
        "num_parties": 10,
        "partition": {},
        "aggregation": "buffered",
        "virtual_clock": ALL_ALIKE,
    }
    _, found = parse(words | settings)
    assert any(told in problem for problem in found), found


@pytest.mark.parametrize(
    "order", [[[0, 2]], [[0, -1]], [[-1, 0]], [[0.5, 0]], [[True, 0]], [[0]], 7, None]
)
def test_an_order_that_cannot_have_been_is_no_order(order, tmp_path):
    write_order(tmp_path, [])
    assert RecordedOrder.read(tmp_path, None) == RecordedOrder()
    line = json.dumps({"round": 2, "group": None, "order": order})
    (tmp_path / "replay.jsonl").write_text(line + "\n")
    with pytest.raises(RunFolderError, match=r"its replay.jsonl is damaged"):
        RecordedOrder.read(tmp_path, None)


def test_an_order_says_from_which_weights_later_updates_are_trained():
    order = RecordedOrder({1: [(0, 0), (1, 0)], 2: [(2, 0), (0, 1)], 3: [(1, 0)]})
    assert order.later_versions(1) == [0, 1]
    assert order.later_versions(2) == [0]
    assert order.later_versions(3) == []


def test_edges_that_are_combined_before_the_aggregator_sees_them_do_not_go_with_it():
    words = {"model_file": "m.pt", "edges": {"min": 2}, "aggregation": "buffered"}
    _, found = parse(words)
    assert any("aggregation: buffered does not go with edges" in p for p in found)


def test_a_lease_of_real_parties_ends_before_they_are_restarted():
    parties = [{"name": n, "data": f"/{n}.npz"} for n in "ab"]
    words = {"model_file": "m.pt", "parties": parties, "aggregation": "buffered"}
    assert parse(words | {"lease_s": 30})[1] == []
    _, found = parse(words | {"lease_s": 700})
    assert any("lease_s: 700 has no effect with round_timeout_s" in p for p in found)


def test_a_config_of_asynchronous_fusion_is_read_back_as_it_was_written():
    clock = {"median_s": 2.0, "sigma": 1.0, "slow": [0.1, 20], "lost": 0.05}
    config = buffered(20, buffer_size=5, lease_s=60, virtual_clock=clock)
    again, found = parse(config.to_dict())
    assert found == []
    assert again.virtual_clock == config.virtual_clock
    assert again.to_dict() == config.to_dict()
