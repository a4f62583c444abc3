"""Parties that are slow, paused or hang: the round closes, none queues behind them."""

import os
import signal
import threading

import numpy as np
import pytest
import ray
from support.comparison import assert_close
from support.local_rounds import federation, fedray_rounds, train
from support.slow_party import add_slow_party

import fedray
from fedray.aggregator.party_actors import WorkItem
from fedray.aggregator.round import LateUpdate, PendingUpdate
from fedray.aggregator.stragglers import StragglerTracker, rebase
from fedray.config import parse
from fedray.messages import Update
from fedray.weights import RunningMean

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture
def slow(settings, digits, tmp_path):
    """Three parties, c of which trains no further while the file `hold` is there."""
    return add_slow_party(settings, digits, tmp_path)


def outcome(report, name: str) -> str:
    return next(party.outcome for party in report.parties if party.name == name)


def plain_round(settings, start, round, names):
    """One round of these parties alone, by plain calls."""
    _, parties, _ = federation(settings)
    mean = RunningMean()
    for name in names:
        update = train(parties[name], round, start)
        mean.add(update.weights, update.n_samples)
    return mean.mean


def test_more_are_asked_and_the_first_to_report_count(slow, settings, tmp_path):
    settings |= {"party_fraction": 0.67, "over_select": 1.5, "rounds": 2}
    result = fedray.run(settings, run_dir=tmp_path / "run")
    for report in result.history:
        assert (report.chosen, report.reported, report.fused) == (3, 2, 2)
    assert outcome(result.history[0], "c") == "late"
    # it is not asked again before it is done: no call queues behind another
    assert outcome(result.history[1], "c") == "late: still trains round 1"
    weights, _, _ = federation(settings)
    for round in (1, 2):
        weights = plain_round(settings, weights, round, "ab")
    assert_close(result.weights(), weights, 1e-6)


def test_a_late_update_counts_in_the_next_round_by_its_age(slow, settings, tmp_path):
    settings |= {"deadline_s": 8, "late": "next_round", "quorum": 0.5, "rounds": 3}

    def release(progress):
        if progress.round == 2:
            slow.unlink(missing_ok=True)

    result = fedray.run(settings, run_dir=tmp_path / "run", watch=release)
    told = [outcome(report, "c") for report in result.history]
    assert told == ["late", "fused: late, of round 1", "fused"]
    assert [report.fused for report in result.history] == [2, 3, 3]
    # by the definition: its step of round 1, by 1/√2, from the weights of round 2
    start, parties, _ = federation(settings)
    first = plain_round(settings, start, 1, "ab")
    late = train(parties["c"], 1, start).weights
    mean = RunningMean()
    for name, n_samples in {"a": 40, "b": 64}.items():
        mean.add(train(parties[name], 2, first).weights, n_samples)
    mean.add({k: first[k] + (late[k] - start[k]) / 2**0.5 for k in start}, 32)
    weights = plain_round(settings, mean.mean, 3, "abc")
    assert_close(result.weights(), weights, 1e-6)


def test_a_deadline_closes_the_round_and_the_timeout_kills_a_hung_party(
    trouble, settings, tmp_path
):
    trouble("hang")
    settings |= {"deadline_s": 10, "round_timeout_s": 10.2, "quorum": 0.5, "rounds": 4}
    history = fedray.run(settings, run_dir=tmp_path / "run").history
    outcomes = [sorted(p.outcome for p in report.parties) for report in history]
    assert outcomes[0] == ["fused", "late"]
    assert outcomes[-1] == ["fused", "fused"]  # behind the hung call it would be late


def test_a_party_paused_for_ten_seconds_changes_no_bit(settings, tmp_path):
    settings |= {"rounds": 10, "epochs": 2}
    paused = []

    def pause(progress):
        if not paused and progress.round:
            call = ray.get_actor("party:run:a").__ray_call__
            paused.append(ray.get(call.remote(lambda self: os.getpid())))
            os.kill(paused[0], signal.SIGSTOP)
            threading.Timer(10, os.kill, (paused[0], signal.SIGCONT)).start()

    result = fedray.run(settings, run_dir=tmp_path / "run", watch=pause)
    assert paused
    assert [report.fused for report in result.history] == [2] * 10
    assert_close(result.weights(), fedray_rounds(settings), 0)


class Sent:
    def __init__(self, **weights):
        self.weights = weights


def test_an_update_two_rounds_late_counts_by_one_over_root_three():
    then, now = Sent(w=np.array([1.0]), n=np.array(3)), Sent(w=np.array([10.0]), n=3)
    now.weights["n"] = np.array(5)
    late = LateUpdate(None, 4, then)
    sent = Update({"w": np.array([4.0]), "n": np.array(4)}, 7)
    update = rebase(sent, late, now, 6)
    np.testing.assert_allclose(update.weights["w"], 10 + 3 / 3**0.5, rtol=1e-6)
    assert (update.weights["n"], update.n_samples) == (4, 7)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("over_select", 0.9, "over_select must be between 1 and 100"),
        ("deadline_s", 0, "deadline_s must be above 0"),
        ("late", "never", "unknown late 'never'"),
    ],
)
def test_impossible_straggler_settings_are_config_errors(settings, key, value, told):
    _, found = parse(settings | {key: value})
    assert any(told in problem for problem in found)


@pytest.mark.parametrize(
    "keys", [{"aggregation": "adaptive"}, {"fusion_algorithm": "best_model"}]
)
def test_the_quorum_is_of_the_reports_wanted_and_not_of_all_that_were_asked(
    keys, settings, digits, tmp_path
):
    names = [f"p{i}" for i in range(8)]
    settings["parties"] = [
        {"name": name, "data": digits(name, 24, skip=24 * i)}
        for i, name in enumerate(names)
    ]
    settings |= {"party_fraction": 0.5, "over_select": 1.5, "party_cpus": 0.25}
    history = fedray.run(settings, run_dir=tmp_path / "run", **keys).history
    assert [report.round for report in history] == [1, 2]
    for report in history:
        assert report.chosen == 6
        assert 4 <= report.reported <= 6  # actors answer while others are taken in


class Restarts:
    """Stands for the party actors; keeps which were restarted, and with which calls."""

    def __init__(self):
        self.actors, self.stop = {"shared": None}, threading.Event()
        self.restarted = []

    def restart(self, name, calls):
        self.restarted.append((name, list(calls)))


def late_call(name: str, place: int, asked_at: float = float("inf")) -> PendingUpdate:
    item = WorkItem("shared", "node", np.array([place]), False)
    return PendingUpdate(item, name, 1, Sent(), asked_at)


def tracker_of(*calls: PendingUpdate) -> StragglerTracker:
    config, _ = parse({"late": "next_round", "quorum": 0.5})
    tracker = StragglerTracker(config, Restarts())
    for call in calls:
        tracker.add(call)
    return tracker


def test_late_calls_of_two_groups_to_one_actor_are_both_folded_by_their_own():
    first, second = late_call("a", 3), late_call("b", 4)
    tracker = tracker_of(first, second)
    assert tracker.busy_actors() == {"shared": 1}
    assert tracker.late_parties(np.array([3, 5])).tolist() == [3]
    assert tracker.take_due(np.array([3, 5]), round=2) == [first]
    assert tracker.busy_actors() == {"shared": 1}  # with the other group's
    assert tracker.take_due(np.array([4]), round=2) == [second]
    assert tracker.busy_actors() == {}


def test_an_actor_that_hangs_is_restarted_once_with_all_its_calls_cancelled():
    tracker = tracker_of(late_call("a", 3, asked_at=-1e9), late_call("b", 4))
    tracker.sweep()
    assert tracker.actors.restarted == [("shared", ["a", "b"])]
    assert tracker.busy_actors() == {}
