"""Which party sits where, as a pure function of labels and cores. No cluster."""

import pytest

from fedray.config import FederationConfig, PartitionSpec, PartySpec
from fedray.errors import PlacementError
from fedray.messages import ActorLocation
from fedray.placement import (
    Node,
    Placement,
    actors,
    place_parties,
    place_partition,
    scheduling,
)


def node(name: str, cpus: float = 2, gpus: float = 0, **labels: str) -> Node:
    return Node(name, {"ray.io/node-id": name, **labels}, cpus, gpus)


def test_a_label_pins_a_party_and_without_one_it_runs_on_the_drivers_node():
    nodes = [node("head"), node("n1", site="a"), node("n2", site="b")]
    placements = place_parties({"x": {"site": "b"}, "y": {"site": "a"}, "z": {}}, nodes)
    assert {name: placed.node_id for name, placed in placements.items()} == {
        "x": "n2", "y": "n1", "z": "head",
    }  # fmt: skip
    assert placements["x"].labels == {"site": "b"}
    assert placements["z"].labels == {}


def pools_of(n_parties: int, *nodes: Node, **settings) -> list:
    spec = PartitionSpec()
    config = FederationConfig(num_parties=n_parties, partition=spec, **settings)
    return [
        (pool.parties, pool.actors, pool.placement)
        for pool in place_partition(config, [*nodes])
    ]


def test_parties_of_a_partition_are_spread_by_cpus():
    pools = pools_of(4, node("head", 1), node("n1", 3))
    assert [(list(parties), placed.node_id) for parties, _, placed in pools] == [
        ([0], "head"), ([1], "n1"), ([2], "n1"), ([3], "n1"),
    ]  # fmt: skip
    assert [names for _, names, _ in pools] == [(f"party-{i}",) for i in range(4)]
    assert all(placed.n_cpus == 1 for *_, placed in pools)


def test_a_single_party_runs_on_the_drivers_node():
    ((_, _, placed),) = pools_of(1, node("head", 2), node("n1", 8))
    assert placed.node_id == "head"


def test_past_one_party_per_cpu_parties_share_an_actor_per_cpu():
    pools = pools_of(100, node("head", 2), node("n1", 3))
    assert pools == [
        (range(40), ("party-0-39.1", "party-0-39.2"), Placement("head", {}, 1, 0)),
        (range(40, 100), tuple(f"party-40-99.{i}" for i in (1, 2, 3)),
         Placement("n1", {}, 1, 0)),
    ]  # fmt: skip


def test_parties_per_actor_sets_how_many_parties_share_an_actor():
    ((_, names, placed),) = pools_of(10, node("head", 2), parties_per_actor=4)
    assert (len(names), placed.n_cpus) == (3, 0.6666)
    assert len(pools_of(10, node("head", 2), parties_per_actor=1)) == 10


def test_a_node_with_gpus_has_one_actor_per_gpu():
    ((_, names, placed),) = pools_of(100, node("head", 16, gpus=2))
    assert (len(names), placed.n_gpus) == (2, 1)


def test_party_cpus_limits_the_number_of_shared_actors():
    ((_, names, placed),) = pools_of(100, node("head", 16), party_cpus=4)
    assert (len(names), placed.n_cpus) == (4, 4)


@pytest.mark.parametrize(
    ("cores", "n_parties", "share"),
    [(2, 2, 1), (4, 2, 1), (2, 3, 0.6666), (2, 32, 0.0625)],
)
def test_a_party_gets_an_even_share_of_the_cpus_and_at_most_one(
    cores, n_parties, share
):
    wanted = {str(i): {} for i in range(n_parties)}
    placements = place_parties(wanted, [node("head", cores)])
    assert {placed.n_cpus for placed in placements.values()} == {share}


def test_gpus_go_only_to_parties_on_nodes_that_have_them():
    nodes = [node("head"), node("g", gpus=1, site="g"), node("c", site="c")]
    wanted = {"a": {"site": "g"}, "b": {"site": "g"}, "c": {"site": "c"}}
    placements = place_parties(wanted, nodes)
    assert [placed.n_gpus for placed in placements.values()] == [0.5, 0.5, 0]
    assert place_parties({"a": {"site": "g"}}, nodes)["a"].n_gpus == 1


def test_party_cpus_overrides_the_even_share():
    placements = place_parties({"a": {}, "b": {}}, [node("head")], party_cpus=0.25)
    assert {placed.n_cpus for placed in placements.values()} == {0.25}


def test_a_missing_label_is_named_with_the_existing_ones():
    nodes = [node("head"), node("n1", site="a")]
    with pytest.raises(PlacementError) as caught:
        place_parties({"x": {"site": "z"}}, nodes)
    message = str(caught.value)
    assert "party x: wanted site: z" in message
    assert "2 nodes: head (no label); n1 (site: a)" in message
    assert "ray.io" not in message


@pytest.mark.parametrize(("gpu_ids", "device"), [([], "cpu"), ([0], "cuda")])
def test_the_device_is_cuda_only_if_ray_assigned_a_gpu(monkeypatch, gpu_ids, device):
    class Context:
        def get_node_id(self):
            return "n"

        def get_worker_id(self):
            return "w"

    monkeypatch.setattr(actors.ray, "get_gpu_ids", lambda: gpu_ids)
    monkeypatch.setattr(actors.ray, "get_runtime_context", Context)
    assert actors.locate_actor() == ActorLocation("n", device, "w")


@pytest.mark.parametrize(
    ("device", "available", "used"),
    [("cpu", True, "cpu"), ("cuda", True, "cuda"), ("cuda", False, "cpu")],
)
def test_a_gpu_that_torch_cannot_use_is_not_used(monkeypatch, device, available, used):
    import torch

    from fedray.models.torch_common import usable_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        assert usable_device(device) == used
        # the same bits each time, where they would not come by themselves
        assert torch.are_deterministic_algorithms_enabled() == (used == "cuda")
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("n_gpus", "n_parties", "share"),
    [(2, 3, 0.5), (4, 6, 0.5), (2, 2, 1), (1, 3, 0.3333)],
)
def test_no_party_gets_parts_of_two_gpus(n_gpus, n_parties, share):
    wanted = {str(i): {} for i in range(n_parties)}
    placements = place_parties(wanted, [node("head", gpus=n_gpus)])
    assert {placed.n_gpus for placed in placements.values()} == {share}


def test_a_node_that_has_not_joined_is_waited_for_and_the_wait_is_told(monkeypatch):
    joined, calls = [Node("n1", {}, 2, 0)], []

    def poll(stage, waited_s, timeout_s):
        calls.append((stage, timeout_s))
        joined.append(Node("n2", {"fedray-party": "x"}, 2, 0))

    monkeypatch.setattr(scheduling, "nodes", lambda: joined)
    party = PartySpec(name="a", data="d", labels={"fedray-party": "x"})
    config = FederationConfig(parties=(party,), num_parties=1)
    (pool,) = scheduling.wait_for_placement(60, config, poll=poll)
    assert pool.placement.node_id == "n2"
    assert calls == [("party a waits for a node with fedray-party: x", 60)]
