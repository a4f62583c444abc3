"""When a training that takes more time than it may is given up."""

from types import SimpleNamespace

import numpy as np
import pytest

from fedray import policy
from fedray.checkpoint import Checkpoint, RunFolder
from fedray.errors import CallRefused, LimitReached
from fedray.federation.memory_estimate import ModelBytes, party_bytes, run_bytes
from fedray.messages import RoundReport
from fedray.service import lifecycle, store, training_limits
from fedray.service.demands import check_demand, check_room, demand_of, party_demand
from fedray.service.scheduler import Scheduler
from fedray.service.settings import Settings
from fedray.service.store import State
from fedray.service.training_limits import (
    GRACE_S,
    START_S,
    TimeLimit,
    record_time_limit,
)
from fedray.service.training_queue import Demand


@pytest.fixture
def clock(monkeypatch):
    own = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(training_limits.time, "monotonic", lambda: own.now)
    return own


def rounds(*seconds):
    return SimpleNamespace(reports=[SimpleNamespace(seconds=s) for s in seconds])


def test_a_round_that_hangs_is_given_up_soon_after_the_time_is_over(clock):
    limit = TimeLimit(100)
    clock.now += 30
    assert not limit.check(rounds(30))
    clock.now += 70 + 29
    assert not limit.check(rounds())  # within the longest round so far
    clock.now += 1.1
    assert limit.check(rounds())
    assert limit.is_over


def test_a_training_that_never_gets_to_round_1_is_given_up_too(clock):
    limit = TimeLimit(100)
    clock.now += 100 + START_S - 0.1
    assert not limit.check(rounds())
    clock.now += 0.2
    assert limit.check(rounds())


def test_short_rounds_have_a_little_more_time_than_their_own(clock):
    limit = TimeLimit(100)
    assert not limit.check(rounds(*[1] * 100))
    clock.now += GRACE_S - 0.1
    assert not limit.check(rounds())
    clock.now += 0.2
    assert limit.check(rounds())


def test_rounds_before_a_restart_count(clock):
    limit = TimeLimit(100)
    limit.check(rounds(40, 40))  # of the history
    clock.now += 20 + 40 - 0.1
    assert not limit.check(rounds())
    clock.now += 0.2
    assert limit.check(rounds())


def test_without_a_limit_nothing_is_given_up(clock):
    limit = TimeLimit(None)
    clock.now += 1e9
    assert not limit.check(rounds())


def federation(n_parties=2, whole=1 << 20, **changes):
    state = State("0" * 32, "ann", {"num_parties": n_parties}, n_parties)
    state.model_bytes = {"whole": whole, "trained": whole}
    for name, value in changes.items():
        setattr(state, name, value)
    return state


def party(i, **more):
    return {"name": f"party-{i}", "data": f"/{i}", "data_handler": "h"} | more


def test_a_demand_counts_who_is_there_and_who_has_yet_to_join():
    model = ModelBytes(1 << 20, 1 << 20)
    parties = [party(0, data_bytes=7), party(1, left=3), party(2)]
    state = federation(4, parties=parties)
    memory = run_bytes("pytorch", model, [7, 0, 0])
    assert demand_of(state) == Demand(1, 3, memory)
    memory = party_bytes("pytorch", model, 9)
    assert party_demand(state, party(4, data_bytes=9)) == Demand(0, 1, memory)


def test_a_model_of_words_is_as_large_as_that_of_the_party_with_most_of_them():
    sizes = [{"whole": n, "trained": n} for n in (5 << 20, 9 << 20)]
    parties = [party(i, model_bytes=size) for i, size in enumerate(sizes)]
    state = federation(parties=parties, model_bytes={})
    state.settings["model_type"] = "doc2vec"
    model = ModelBytes(9 << 20, 9 << 20)
    assert demand_of(state).memory == run_bytes("doc2vec", model, [0, 0])


def test_refusals_name_the_limit_the_numbers_and_what_to_change():
    check_demand(federation(), Settings(max_memory_per_federation=4 << 30))
    with pytest.raises(CallRefused) as refusal:
        check_demand(federation(), Settings(max_memory_per_federation=800 << 20))
    assert refusal.value.status == 413  # 202 + 206 + 2 * 205 MiB are 858 MB
    assert "of 2 parties needs about 858 MB" in refusal.value.detail
    assert "839 MB here (max_memory_per_federation)" in refusal.value.detail
    assert "smaller model" in refusal.value.hint
    with pytest.raises(CallRefused) as refusal:
        check_demand(federation(9), Settings(max_party_processes=8))
    assert refusal.value.status == 422
    assert "9 parties" in refusal.value.detail
    assert "8 run here (max_party_processes)" in refusal.value.detail


def test_a_party_that_joins_later_needs_room_beside_all_trainings():
    own = Settings(max_party_processes_per_client=4, max_party_processes=6)
    used = {"ann": Demand(1, 3), "bob": Demand(1, 2)}
    check_room("ann", Demand(0, 1), used, own)
    check_room("cid", Demand(0, 1), used, own)
    for client, more, limit in (
        ("ann", 2, "max_party_processes_per_client"),
        ("cid", 2, "max_party_processes"),
    ):
        with pytest.raises(LimitReached) as refusal:
            check_room(client, Demand(0, more), used, own)
        assert refusal.value.limit == limit
        assert refusal.value.status == 429


def queued(root, id, n_parties):
    (root / ".incoming").mkdir(exist_ok=True)
    state = federation(n_parties, id=id, state=store.QUEUED, queued=float(id[0]))
    state.parties = [party(i) for i in range(n_parties)]
    return store.create(root, state, None)


def test_what_lower_limits_leave_no_turn_for_fails_and_holds_up_nobody(
    tmp_path, monkeypatch
):
    started = []
    start = lambda folder, settings: started.append(folder)  # noqa: E731
    monkeypatch.setattr(lifecycle, "start_training", start)
    large, small = queued(tmp_path, "1" * 32, 4), queued(tmp_path, "2" * 32, 2)
    own = Settings(root=str(tmp_path), max_party_processes=3)
    Scheduler(own).start_trainings()
    assert started == [small]
    state = store.read(large)
    assert state.state == store.FAILED
    assert state.error is not None
    assert state.error["status"] == 422
    assert "(max_party_processes)" in state.error["detail"]


def test_one_training_that_cannot_start_holds_up_no_other(tmp_path, monkeypatch):
    started = []

    def start(folder, settings):
        if folder == busy:
            raise CallRefused(503, "Another call is changing this federation.", "")
        started.append(folder)

    monkeypatch.setattr(lifecycle, "start_training", start)
    busy, other = queued(tmp_path, "1" * 32, 2), queued(tmp_path, "2" * 32, 2)
    Scheduler(Settings(root=str(tmp_path))).start_trainings()
    assert started == [other]


def test_a_training_starts_by_what_its_folder_says_not_by_what_it_said(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(lifecycle.federation_actor, "get_or_start", lambda folder: None)
    scheduler = Scheduler(Settings(root=str(tmp_path), max_trainings=1))
    first, second = queued(tmp_path, "1" * 32, 2), queued(tmp_path, "2" * 32, 2)
    scheduler.start_trainings()
    states = [store.read(folder).state for folder in (first, second)]
    assert states == [store.TRAINING, store.QUEUED]
    assert store.read(first).run_limits["max_training_s"] == 7 * 86400
    with store.changing(first) as state:
        state.state, state.ended = store.TRAINED, 5.0
    scheduler.start_trainings()
    assert store.read(second).state == store.TRAINING


def report(round, **more):
    return RoundReport(
        round=round, chosen=2, reported=2, fused=2, aggregated=True, refused=0,
        loss=0.5, accuracy=None, bytes_moved=0, seconds=1.0, train_seconds=0.5,
        evaluate_seconds=0.1, evaluated=1, **more,
    )  # fmt: skip


def test_a_run_that_is_given_up_says_so_in_its_last_line(tmp_path):
    run = RunFolder(tmp_path)
    assert record_time_limit(tmp_path, 60) == ""  # no round is done
    for round in (1, 2):
        weights = {"w": np.full(2, round, np.float32)}
        run.save(Checkpoint(round, weights, {}, report(round)))
    reason = record_time_limit(tmp_path, 60)
    assert reason == policy.describe_time_limit(60)
    assert [line.stop_reason for line in run.history()] == ["", reason]
    checkpoint, _ = run.newest_checkpoint()
    assert checkpoint.weights["w"].tolist() == [2, 2]
    stopped = report(3, stop_reason="loss has not improved")
    run.save(Checkpoint(3, checkpoint.weights, {}, stopped))
    assert record_time_limit(tmp_path, 60) == stopped.stop_reason
