"""Secure aggregation on a real federation: the plain sum's bits, kills, refusals."""

import dataclasses
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from support.cluster_runs import BackgroundRun, kill
from support.comparison import assert_close
from support.local_rounds import federation, train
from support.secure_traps import Traps
from support.waiting import wait_for

import fedray
from fedray import fusion
from fedray.aggregator.node_combiner import CombineStep, combine_on_node
from fedray.aggregator.validation import UpdateValidator
from fedray.checkpoint import RunFolder
from fedray.errors import ConfigError, RoundFailed
from fedray.federation import join, leave
from fedray.fusion import MaskedSum
from fedray.messages import Update
from fedray.privacy.accounting import DISTRIBUTED, Plan
from fedray.privacy.grid import GRID, from_grid, n_coordinates, radius, to_grid
from fedray.secure_sum import FolderStorage, PartySide, ServerSide, Step, scale_weight
from fedray.secure_sum.vectors import (
    MASKED,
    VectorPlan,
    count_samples,
    fewest_parties,
    plan_sum,
)
from fedray.weights import Form, cast

pytestmark = pytest.mark.usefixtures("cluster")

SIZES = {"a": 40, "b": 64, "c": 21, "d": 33, "e": 50}


@pytest.fixture
def traps(tmp_path):
    """Traps for parties of the federations that `secure` makes."""
    return Traps(tmp_path)


@pytest.fixture
def secure(settings, digits, tmp_path, traps):
    """Settings of a federation of so many parties whose updates are masked."""

    def make(n_parties: int, **more) -> dict:
        names, skip = list(SIZES)[:n_parties], 0
        settings["parties"] = []
        for name in names:
            file = digits(name, SIZES[name], skip=skip)
            settings["parties"].append({"name": name, "data": file})
            skip += SIZES[name]
        own = {"secure_aggregation": True, "clip_norm": 2.0}
        own |= {"party_dir": str(tmp_path / "parties"), "data_handler": traps.handler}
        return settings | own | more

    return make


def plain_rounds(settings: dict, absent: dict | None = None) -> dict[str, np.ndarray]:
    """The same rounds without masks: integers of each party's step, summed, decoded.

    absent : by round the names of those that are not in the sum.
    """
    settings = settings | {"data_handler": "mnist_pytorch"}
    weights, parties, config = federation(settings)
    blueprint = next(iter(parties.values())).plan.blueprint
    rule = fusion.from_config(config, blueprint.parameters)
    state, n_parties = rule.init(weights), len(parties)
    least = fewest_parties(config, n_parties)
    sums = plan_sum(config, n_coordinates(weights), n_parties, least)
    plan, most_weight = VectorPlan(settings["clip_norm"], sums), sums.max_weight
    most = max(count_samples(config, SIZES[name]) for name in parties)
    for round in range(1, config.rounds + 1):
        total, weight = 0, 0
        for name, party in parties.items():
            if name in (absent or {}).get(round, ""):
                continue
            own = scale_weight(min(most, SIZES[name]), most, most_weight)
            update = train(party, round, weights)
            total = total + own * plan.encode(update.weights, weights).astype(object)
            weight += own
        mean = plan.decode(total.astype(np.int64), weights, weight)
        weights, state = rule.step(weights, Update(mean, 1, n_parties), state)
        weights = cast(weights, blueprint.round_schema(()))
    return blueprint.complete(weights)


def server_of(run_dir, round: int) -> ServerSide:
    """The aggregator's side of a round's last attempt, as it is on disk."""
    storage = FolderStorage(run_dir / "secure_sum" / "all")
    return ServerSide.restore(storage, round)


def sides_of(settings: dict) -> dict[str, PartySide]:
    """All parties as they are on disk, by name."""
    folders = sorted(Path(settings["party_dir"]).glob("*/secure_sum/*"))
    return {f.name: PartySide(f.name, FolderStorage(f)) for f in folders}


@pytest.mark.parametrize(("n_parties", "rule"), [(3, "fedavgm"), (5, "iter_avg")])
def test_the_global_model_is_that_of_the_plain_integer_sum(
    secure, tmp_path, n_parties, rule
):
    settings = secure(n_parties, fusion_algorithm=rule, rounds=2)
    result = fedray.run(settings, run_dir=tmp_path / "run")
    assert [report.fused for report in result.history] == [n_parties] * 2
    assert_close(result.weights(), plain_rounds(settings), 0)
    # keys and shares of round 2 rode on round 1: there was no second exchange
    assert server_of(tmp_path / "run", 2).attempt.number == 1


def test_a_party_that_is_killed_at_any_step_changes_nothing(secure, traps, tmp_path):
    places = ["KEYS-a-1", "MASKED-b-1", "SHARES-c-2", "MADE-a-2", "ALIVE-b-3"]
    places.append("REVEAL-c-4")
    traps.set("die", *places)
    settings = secure(3, rounds=4)
    result = fedray.run(settings, run_dir=tmp_path / "run")
    assert traps.sprung() == sorted(places)
    assert [report.fused for report in result.history] == [3] * 4
    assert_close(result.weights(), plain_rounds(settings), 0)


def test_an_aggregator_that_is_killed_while_shares_come_finishes_the_attempt(
    secure, traps, tmp_path
):
    traps.set("hold", "REVEAL-c-2")
    settings, folder = secure(3, rounds=3), tmp_path / "run"
    run = BackgroundRun(settings, folder, rounds=3)
    wait_for(lambda: "REVEAL-c-2" in traps.sprung(), "c holds back its shares")
    wait_for(lambda: server_of(folder, 2)._answers[Step.REVEAL], "others reveal")
    kill("aggregator:run", concurrency_group="control")
    traps.release("REVEAL-c-2")
    run.thread.join()
    assert run.error is None
    assert server_of(folder, 2).attempt.number == 1
    assert [line.fused for line in run.result.history] == [3, 3, 3]
    assert_close(run.result.weights(), plain_rounds(settings), 0)
    for side in sides_of(settings).values():
        assert_refuses_round(side, server_of(folder, 2).attempt)


def assert_refuses_round(side: PartySide, attempt) -> None:
    """It joins no other attempt of a round that was opened."""
    other = dataclasses.replace(attempt, number=attempt.number + 1)
    storage = None
    server = ServerSide(other, storage)
    (request,) = [r for name, r in server.requests().items() if name == side.name]
    with pytest.raises(fedray.FedrayError, match="was opened"):
        side.answer(request)


def test_drop_outs_at_each_step(secure, traps, tmp_path):
    traps.set("fail", "KEYS-b-1", "MASKED-d-2", "ALIVE-e-3", "REVEAL-a-4")
    settings = secure(5, rounds=4, quorum=0.5)
    result = fedray.run(settings, run_dir=tmp_path / "run")
    absent = {1: "b", 2: "d"}
    assert [report.fused for report in result.history] == [4, 4, 5, 5]
    assert_close(result.weights(), plain_rounds(settings, absent), 0)


def test_one_drop_out_too_many_opens_nothing(secure, traps, tmp_path):
    traps.set("fail", "MASKED-c-2")
    settings, folder = secure(3, rounds=3, quorum=0.5), tmp_path / "run"
    with pytest.raises(RoundFailed, match="2 of 3 needed parties"):
        fedray.run(settings, run_dir=folder)
    assert {side.opened_round for side in sides_of(settings).values()} == {1}
    assert not server_of(folder, 2).is_opened
    result = fedray.run(settings, run_dir=folder, resume=True)
    assert [line.fused for line in result.history] == [3, 3, 3]
    assert server_of(folder, 2).attempt.number == 1  # the vectors of a and b again
    assert_close(result.weights(), plain_rounds(settings), 0)


def test_noise_of_all_parties_is_in_the_sum_and_each_opening_counts(secure, tmp_path):
    z, delta, clip = 0.5, 1e-3, 2.0
    noise = {"mechanism": "distributed", "noise_multiplier": z, "delta": delta}
    settings = secure(3, rounds=4, fusion_algorithm="iter_avg")
    limit = Plan(3, DISTRIBUTED).epsilon(z, delta)
    settings["privacy"] = noise | {"clip_norm": clip, "epsilon": limit * 1.001}
    del settings["clip_norm"]
    folder = tmp_path / "run"
    history = fedray.run(settings, run_dir=folder).history
    assert [line.fused for line in history] == [3] * 3
    assert history[-1].stop_reason.startswith("budget_spent")
    for line in history:
        spent = Plan(line.round, DISTRIBUTED).epsilon(z, delta)
        assert line.privacy["epsilon"] == pytest.approx(spent)
    # round 2 from the weights of round 1: what is not the plain mean is the noise
    plain = settings | {"secure_aggregation": False}
    del plain["privacy"]
    _, parties, _ = federation(plain | {"data_handler": "mnist_pytorch"})
    noised = RunFolder(folder, 9)
    first = noised.checkpoint_of(2).weights
    grids = [
        to_grid(train(party, 3, first).weights, first, clip).values.astype(np.int64)
        for party in parties.values()
    ]
    mean = from_grid(first, sum(grids), clip, 3)
    unit = clip / (radius(n_coordinates(first)) * 3)  # of the grid, in weights
    last = noised.checkpoint_of(3).weights
    steps = np.concatenate([(last[k] - mean[k]).ravel() for k in first]) / unit
    assert steps.std() == pytest.approx(z * GRID, rel=0.02)
    assert abs(steps.mean()) < 4 * z * GRID / len(steps) ** 0.5


def test_a_round_that_was_opened_is_taken_from_its_files_or_skipped(secure, tmp_path):
    settings, folder = secure(3), tmp_path / "run"
    second = fedray.run(settings, run_dir=folder, rounds=2).weights()
    first = RunFolder(folder).checkpoint_of(1).weights
    shutil.rmtree(folder / "checkpoints" / "round-00002")
    again = fedray.run(settings, run_dir=folder, rounds=2, resume=True)
    assert_close(again.weights(), second, 0)  # nobody was asked
    assert again.history[1].fused == 3
    shutil.rmtree(folder / "checkpoints" / "round-00002")
    shutil.rmtree(folder / "secure_sum")
    last = fedray.run(settings, run_dir=folder, rounds=3, resume=True)
    assert [(r.round, r.fused) for r in last.history] == [(1, 3), (2, 0), (3, 3)]
    assert_close(RunFolder(folder).checkpoint_of(2).weights, first, 0)
    line = last.history[1]
    assert not line.aggregated
    assert "another attempt of it was opened" in line.skipped
    assert {p.outcome.split(":")[0] for p in line.parties} == {"failed"}


def test_a_run_that_is_stopped_while_shares_come_finishes_the_attempt_when_resumed(
    secure, traps, tmp_path
):
    traps.set("hold", "REVEAL-c-2")
    settings, folder = secure(3, rounds=3), tmp_path / "run"
    run = BackgroundRun(settings, folder, rounds=3)
    wait_for(lambda: "REVEAL-c-2" in traps.sprung(), "c holds back its shares")
    wait_for(lambda: server_of(folder, 2)._answers[Step.REVEAL], "others reveal")
    run.stop()
    result = fedray.run(settings, run_dir=folder, resume=True)
    assert server_of(folder, 2).attempt.number == 1
    assert [line.fused for line in result.history] == [3, 3, 3]
    assert_close(result.weights(), plain_rounds(settings), 0)


def test_groups_and_parties_that_come_and_go_have_sums_of_their_own(secure, tmp_path):
    settings = secure(5, rounds=4, groups={"by": "region"}, wire_dtype="bfloat16")
    for party, region in zip(settings["parties"], "nnsss", strict=True):
        party["fields"] = {"region": region}
    settings["parties"].append(settings["parties"][4] | {"name": "f", "joined": 2})
    settings["parties"][2]["left"] = 4
    result = fedray.run(settings, run_dir=tmp_path / "run")
    fused = {(line.round, line.group): line.fused for line in result.history}
    assert [fused[i, "n"] for i in (1, 2, 3, 4)] == [2] * 4
    assert [fused[i, "s"] for i in (1, 2, 3, 4)] == [3, 4, 4, 3]
    plain = settings | {"secure_aggregation": False}
    del plain["clip_norm"]
    plain = fedray.run(plain, run_dir=tmp_path / "plain")
    for group in ("n", "s"):  # weights are rounded to 1/256 of the greatest
        assert_close(result.weights(group), plain.weights(group), 5e-3)


def test_masked_vectors_are_added_on_their_node_in_the_memory_of_one():
    rule, size, most = MaskedSum(), 1 << 20, np.uint32(2**32 - 1)
    form = Form((size,), "uint32")
    validator = UpdateValidator({MASKED: form}, "float32")
    step = CombineStep(rule, validator, [None] * 9, is_last=True)
    row = Update({MASKED: np.full(size, most)}, 1)
    tracemalloc.start()
    combined, refused = combine_on_node._function(step, {}, None, None, *[row] * 9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused == {}
    assert (combined.weights[MASKED] == np.uint32(2**32 - 9)).all()  # 9 times -1
    assert peak < 2.5 * row.weights[MASKED].nbytes


def test_parties_leave_and_join_a_run_but_never_so_many_that_too_few_are_left(
    secure, digits, tmp_path
):
    run = BackgroundRun(secure(4), tmp_path / "run")
    try:
        run.wait_for_round(1)
        leave("run", "d")
        run.wait_for_note("d has left")
        too_few = "2 parties would be left, and a sum needs 3"
        with pytest.raises(ConfigError, match=too_few):
            leave("run", "c")
        join("run", {"name": "e", "data": digits("e", 50, skip=300)})
        round = run.wait_for_note("e has joined")
        run.wait_for_round(round + 1)
    finally:
        history = run.stop()
    assert history[0].fused == 4
    assert history[-1].fused == 4
    assert [p.name for p in history[-1].parties] == ["a", "b", "c", "e"]


def test_a_sum_that_cannot_be_opened_is_tried_again_then_skipped_and_counts(
    secure, traps, tmp_path
):
    settings, folder = secure(3, rounds=3, clip_norm=None), tmp_path / "run"
    settings["privacy"] = {
        **{"mechanism": "distributed", "noise_multiplier": 0.5},
        **{"delta": 1e-3, "clip_norm": 2.0},
    }
    traps.set("fail", "REVEAL-c-2")
    with pytest.raises(RoundFailed, match="no sum of enough parties"):
        fedray.run(settings, run_dir=folder)
    assert server_of(folder, 2).is_opened
    traps.set("fail", "REVEAL-c-2")
    history = fedray.run(settings, run_dir=folder, resume=True).history
    assert [line.fused for line in history] == [3, 0, 3]
    assert "operator.jsonl" in history[1].skipped
    assert "2 of 3 needed parties" in (folder / "operator.jsonl").read_text()
    assert [line.privacy["releases"] for line in history] == [1, 2, 3]
