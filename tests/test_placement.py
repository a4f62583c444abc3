"""Which party sits where, as a pure function of labels and cores. No cluster."""

import pytest

from fedray import placement
from fedray.errors import PlacementError
from fedray.messages import Here
from fedray.placement import Node, seat_all


def node(name: str, cpus: float = 2, gpus: float = 0, **labels: str) -> Node:
    return Node(name, {"ray.io/node-id": name, **labels}, cpus, gpus)


def test_a_label_pins_a_party_and_without_one_it_sits_with_the_driver():
    nodes = [node("head"), node("n1", site="a"), node("n2", site="b")]
    seats = seat_all({"x": {"site": "b"}, "y": {"site": "a"}, "z": {}}, nodes)
    assert {name: seat.node for name, seat in seats.items()} == {
        "x": "n2", "y": "n1", "z": "head",
    }  # fmt: skip
    assert seats["x"].labels == {"site": "b"}
    assert seats["z"].labels == {}


def test_parties_cut_from_one_data_set_spread_by_cores():
    nodes = [node("head", 1), node("n1", 3)]
    wanted = {f"party-{i}": {} for i in range(4)}
    seats = seat_all(wanted, nodes, spread=True)
    assert [seat.node for seat in seats.values()].count("n1") == 3
    assert all(seat.n_cpus == 1 for seat in seats.values())


@pytest.mark.parametrize(
    ("cores", "n_parties", "share"),
    [(2, 2, 1), (4, 2, 1), (2, 3, 0.6666), (2, 32, 0.0625)],
)
def test_a_party_gets_its_part_of_the_cores_and_never_more_than_one(
    cores, n_parties, share
):
    wanted = {str(i): {} for i in range(n_parties)}
    seats = seat_all(wanted, [node("head", cores)])
    assert {seat.n_cpus for seat in seats.values()} == {share}


def test_gpus_go_only_to_parties_on_nodes_that_have_them():
    nodes = [node("head"), node("g", gpus=1, site="g"), node("c", site="c")]
    wanted = {"a": {"site": "g"}, "b": {"site": "g"}, "c": {"site": "c"}}
    seats = seat_all(wanted, nodes)
    assert [seat.n_gpus for seat in seats.values()] == [0.5, 0.5, 0]
    assert seat_all({"a": {"site": "g"}}, nodes)["a"].n_gpus == 1


def test_party_cpus_overrides_the_share():
    seats = seat_all({"a": {}, "b": {}}, [node("head")], party_cpus=0.25)
    assert {seat.n_cpus for seat in seats.values()} == {0.25}


def test_a_label_that_nobody_carries_is_named_with_those_there_are():
    nodes = [node("head"), node("n1", site="a")]
    with pytest.raises(PlacementError) as caught:
        seat_all({"x": {"site": "z"}}, nodes)
    told = str(caught.value)
    assert "party x: wanted site: z" in told
    assert "2 nodes: head (no label); n1 (site: a)" in told
    assert "ray.io" not in told


@pytest.mark.parametrize(("gpu_ids", "device"), [([], "cpu"), ([0], "cuda")])
def test_the_device_follows_what_ray_assigned(monkeypatch, gpu_ids, device):
    class Context:
        def get_node_id(self):
            return "n"

    monkeypatch.setattr(placement.ray, "get_gpu_ids", lambda: gpu_ids)
    monkeypatch.setattr(placement.ray, "get_runtime_context", Context)
    assert placement.here() == Here("n", device)


@pytest.mark.parametrize(
    ("device", "available", "used"),
    [("cpu", True, "cpu"), ("cuda", True, "cuda"), ("cuda", False, "cpu")],
)
def test_a_gpu_that_torch_cannot_use_is_left_alone(
    monkeypatch, device, available, used
):
    import torch

    from fedray.models.pytorch.model import usable

    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert usable(device) == used


@pytest.mark.parametrize(
    ("n_gpus", "n_parties", "share"),
    [(2, 3, 0.5), (4, 6, 0.5), (2, 2, 1), (1, 3, 0.3333)],
)
def test_no_party_gets_parts_of_two_gpus(n_gpus, n_parties, share):
    wanted = {str(i): {} for i in range(n_parties)}
    seats = seat_all(wanted, [node("head", gpus=n_gpus)])
    assert {seat.n_gpus for seat in seats.values()} == {share}
