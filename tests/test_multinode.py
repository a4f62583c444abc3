"""Parties on nodes of their own: placement, bytes on the wire, nodes that die.

One process runs every scene on three nodes (support/drivers/three_nodes.py); the files
that it wrote are looked at here. By hand: a model is 784·64 + 64 + 64·10 + 10 = 50,890
floats of 4 bytes.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from support.processes import ray_folder, remaining_pids, running_process

from fedray import load, run
from fedray.checkpoint import RunFolder
from fedray.messages import RoundReport
from fedray.weights import Weights

ROOT = Path(__file__).parent.parent
MODEL = 50_890 * 4  # bytes
pytestmark = pytest.mark.slow


class Played:
    """What the scenes left behind."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.facts = json.loads((folder / "facts.json").read_text())
        self.where = self.facts["where"]

    def rounds(self, name: str) -> list[RoundReport]:
        return RunFolder(self.folder / name).history()

    def moved(self, name: str) -> list[int]:
        return [report.bytes_moved for report in self.rounds(name)]

    def nodes(self, name: str) -> list[dict[str, str]]:
        return [{p.name: p.node for p in r.parties} for r in self.rounds(name)]

    def weights(self, name: str) -> Weights:
        return RunFolder(self.folder / name).last_checkpoint().weights

    def seen(self, actor: str) -> list[dict]:
        """One line for every process that read this actor's data."""
        text = (self.folder / f"{actor}.seen").read_text()
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    log = folder / "log"
    with ray_folder() as ray_tmp:
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        env = {**os.environ, "RAY_TMPDIR": str(ray_tmp), "PYTHONPATH": path}
        env.pop("RAY_ADDRESS", None)
        script = ROOT / "tests" / "support" / "drivers" / "three_nodes.py"
        command = [sys.executable, str(script), str(folder)]
        with running_process(command, log, env=env, cwd=folder) as driver:
            code = driver.wait(timeout=3600)
        assert code == 0, log.read_text()[-5000:]
        assert remaining_pids(ray_tmp) == set(), "processes outlived the scenes"
    return Played(folder)


def same(a: Weights, b: Weights) -> bool:
    return list(a) == list(b) and all(np.array_equal(a[k], b[k]) for k in a)


def test_each_party_runs_on_the_node_with_its_label(played):
    a, b = played.where["a"], played.where["b"]
    assert played.nodes("spread-0") == [{"a": a, "b": b}] * 2
    assert played.nodes("pair-0") == [{"a1": a, "b1": b, "a2": a}] * 3
    # said by the actors themselves, not by their reports
    assert [played.seen(f"party-pair-0-{n}")[0]["node"] for n in ("a1", "b1")] == [a, b]


def test_the_aggregator_runs_on_the_drivers_node(played):
    assert [s["node"] for s in played.seen("aggregator-pair-0")] == [
        played.where["driver"]
    ]


def test_a_party_gets_a_gpu_only_where_its_node_has_one(played):
    assert [s["gpus"] for s in played.seen("party-spread-0-a")] == [[]]
    assert [s["gpus"] for s in played.seen("party-spread-0-b")] == [[0]]
    assert [s["gpus"] for s in played.seen("aggregator-pair-0")] == [[]]
    assert (
        played.rounds("spread-0")[-1].fused == 2
    )  # Ray believes in it, torch has none


def test_a_party_alone_on_its_node_costs_one_model_each_way_a_round(played):
    # round 1: weights to two nodes, two updates back, new weights to two nodes to test
    # round 2: trains on the weights that were tested, so two updates, and two to test
    assert played.moved("spread-0") == [6 * MODEL, 4 * MODEL]


def test_parties_of_one_node_share_a_broadcast_and_send_one_model(played):
    # three parties on two nodes, tested at the aggregator: two models there, two back
    assert played.moved("pair-0") == [4 * MODEL] * 3
    assert [report.fused for report in played.rounds("pair-0")] == [3] * 3


def test_ray_counts_as_many_bytes_between_nodes_as_the_history_says(played):
    received = played.facts["pair"]["received"]
    expected = {"driver": 3 * 2 * MODEL, "a": 3 * MODEL, "b": 3 * MODEL}  # 3 rounds
    for role, n_bytes in expected.items():
        # Ray's own words around a model are some 400 bytes
        assert n_bytes <= received[played.where[role]] <= n_bytes * 1.01, role


def test_eight_parties_on_two_nodes_send_two_models(played):
    (report,) = played.rounds("float32")
    assert (report.fused, report.bytes_moved) == (8, 4 * MODEL)  # two there, two back
    received = played.facts["eight"]["float32"]
    for role, n_models in {"driver": 2, "a": 1, "b": 1}.items():
        n_bytes = n_models * MODEL
        assert n_bytes <= received[played.where[role]] <= n_bytes * 1.02, role


def test_sixteen_bits_halve_what_travels(played):
    (report,) = played.rounds("bfloat16")
    assert (report.fused, report.bytes_moved) == (8, 2 * MODEL)
    received = played.facts["eight"]["bfloat16"]
    for role in ("a", "b"):  # Ray sends less than 100 KiB in its replies, not counted
        assert MODEL / 2 <= received[played.where[role]] <= MODEL / 2 * 1.02, role


def test_half_the_bytes_give_almost_the_same_weights(played):
    whole, halves = played.weights("float32"), played.weights("bfloat16")
    for name in whole:
        # a step is rounded to 8 bits, and so are the weights that parties start from
        np.testing.assert_allclose(halves[name], whole[name], rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", ["spread", "pair"])
def test_two_runs_on_the_same_placement_give_the_same_bits(played, name):
    assert same(played.weights(f"{name}-0"), played.weights(f"{name}-1"))


@pytest.mark.parametrize("name", ["spread", "pair"])
def test_three_nodes_give_the_weights_of_one_node(played, name, cluster, tmp_path):
    settings = json.loads((played.folder / f"{name}.json").read_text())
    for party in settings["parties"]:
        del party["labels"]
    alone = run(settings, run_dir=tmp_path / f"{name}-alone").weights()
    spread = played.weights(f"{name}-0")
    assert list(alone) == list(spread)
    for key, array in alone.items():
        np.testing.assert_allclose(array, spread[key], rtol=0, atol=1e-6)


def test_members_of_an_ensemble_train_where_their_data_is(played, cluster, tmp_path):
    lines, where = played.rounds("members"), played.where
    seen = [(line.group, line.parties[0].node) for line in lines]
    assert seen == [("a", where["a"]), ("b", where["b"])] * 2
    # to its own node, back, and nowhere else: the aggregator has the test samples
    assert played.moved("members") == [2 * MODEL] * 4
    settings = json.loads((played.folder / "members.json").read_text())
    for party in settings["parties"]:
        del party["labels"]
    alone = run(settings, run_dir=tmp_path / "alone")
    assert alone.accuracy == played.facts["members"]["together"][1]
    for mine, other in zip(
        load(tmp_path / "alone").members, load(played.folder / "members").members,
        strict=True,
    ):  # fmt: skip
        for key, array in mine.weights.items():
            np.testing.assert_allclose(array, other.weights[key], rtol=0, atol=1e-6)


def test_a_killed_party_restarts_on_its_node_and_the_round_continues(played):
    assert (played.folder / "party-killed-a.sprung").exists()
    seen = played.seen("party-killed-a")
    assert len({s["pid"] for s in seen}) == 2
    assert [s["node"] for s in seen] == [played.where["a"]] * 2
    assert [report.fused for report in played.rounds("killed")] == [2, 2]
    assert same(played.weights("killed"), played.weights("spread-0"))


def test_a_run_continues_when_a_node_with_the_label_replaces_a_lost_one(played):
    b, moves = played.where["b"], played.facts["moved"]
    old, new = moves["removed"], moves["added"]
    assert [report.fused for report in played.rounds("moved")] == [3, 3, 3]
    # in round 2 a1 had reported before its node was lost, a2 had not
    assert played.nodes("moved") == [
        {"a1": old, "b1": b, "a2": old},
        {"a1": old, "b1": b, "a2": new},
        {"a1": new, "b1": b, "a2": new},
    ]


def test_a_replaced_node_changes_no_bit_of_the_outcome(played):
    # a1's update of round 2 was lost with its node and made again on the new one
    assert same(played.weights("moved"), played.weights("pair-0"))
    # round 2 also sends the weights to the new node; then all is as before
    assert played.moved("moved") == [4 * MODEL, 5 * MODEL, 4 * MODEL]


def test_after_a_node_is_replaced_still_one_model_a_node_reaches_the_aggregator(played):
    received = played.facts["moved"]["received"]
    assert 6 * MODEL <= received <= 6 * MODEL * 1.01  # 3 rounds, 2 nodes, Ray's count


def test_over_rest_each_party_reads_its_data_on_the_node_with_its_label(played):
    a, b = played.where["a"], played.where["b"]
    assert played.facts["served"]["nodes"] == [{"party-0": a, "party-1": b}] * 2


def test_a_label_of_no_node_is_an_error_within_placement_timeout(played):
    facts, where = played.facts["missing"], played.where
    assert facts["kind"] == "PlacementError"
    assert "party c: wanted fedray-party: c" in facts["told"]
    labels = {"driver": "no label"}
    labels |= {name: f"fedray-party: {name}, site: shared" for name in ("a", "b")}
    for role, shown in labels.items():
        assert f"{where[role][:8]} ({shown})" in facts["told"]
    assert 2 <= facts["seconds"] < 15  # placement_timeout_s=2


def test_a_node_that_joins_late_is_waited_for(played):
    assert played.facts["late"]["seat"] == played.facts["late"]["node"]


def test_a_node_without_fedray_is_named_in_the_error(played):
    facts = played.facts["broken"]
    assert facts["kind"] == "PlacementError"
    assert (
        f"party d: wanted an actor that starts on node {facts['node'][:8]}"
        in (facts["told"])
    )
    assert "Is the same fedray installed there as here?" in facts["told"]


def test_nodes_that_share_a_label_take_parties_by_their_cores(played):
    # two cores on b, one on a: two thirds of the parties, whatever Ray would pack
    b, a = played.where["b"], played.where["a"]
    assert played.facts["twins"] == {"t0": [b, b], "t1": [b, b], "t2": [a, a]}


def test_the_order_of_nodes_comes_from_their_cores_not_from_their_ids(played):
    order = [played.where[role] for role in ("driver", "b", "a")]
    assert played.where["order"] == order


def test_a_party_joins_on_the_node_with_its_label(played):
    first = played.facts["joined"]["round"]
    nodes = played.nodes("joined")
    assert first > 1
    assert nodes[0] == {"a": played.where["a"]}
    assert nodes[first - 1] == {"a": played.where["a"], "c": played.where["b"]}
    # it came in with a GPU: no other party was on that node
    assert [s["gpus"] for s in played.seen("party-joined-c")] == [[0]]
