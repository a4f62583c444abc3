"""Runs whose parties are edges, answered without a door by `PartyGroup` itself."""

import numpy as np
import pytest
from support.local_edge import local_door

import fedray
from fedray.checkpoint import RunFolder
from fedray.edges.plan import EdgeParty
from fedray.edges.protocol import Enrol
from fedray.edges.registry import Registry
from fedray.errors import Stopped
from fedray.weights import digest


def parties_of(settings, tmp_path):
    """Owners of the same data as the parties of a config, at edges."""
    architecture = settings.get("architecture", "")
    return [
        EdgeParty(
            party["name"], party["data"], "mnist_pytorch", code=architecture,
            folder=str(tmp_path / f"edge-{party['name']}"),
        )
        for party in settings["parties"]
    ]  # fmt: skip


def as_edges(settings, *names):
    """The config with some parties, or all, outside the cluster."""
    return settings | {
        "parties": [
            {"name": p["name"], "edge": True} if p["name"] in names or not names else p
            for p in settings["parties"]
        ]
    }


BITS = []  # of the run with both parties in the cluster: the same in all tests


def bits_of_parties(settings, tmp_path):
    """Final bits of the run with both parties in the cluster, which is made once."""
    if not BITS:
        fedray.run(settings, run_dir=tmp_path / "parties")
        BITS.append(final_bits(tmp_path / "parties"))
    return BITS[0]


def final_bits(folder):
    checkpoint, _ = RunFolder(folder).newest_checkpoint()
    return digest(checkpoint.weights)


@pytest.mark.parametrize("names", [(), ("b",)], ids=["all", "one"])
def test_edges_give_the_bits_of_parties_in_the_cluster(
    cluster, settings, tmp_path, names
):
    expected = bits_of_parties(settings, tmp_path)
    folder = tmp_path / "edges"
    with local_door("edges", folder, parties_of(settings, tmp_path)) as door:
        result = fedray.run(as_edges(settings, *names), run_dir=folder)
    assert final_bits(folder) == expected
    assert {verdict.verdict for verdict in door.verdicts} == {"taken"}
    lines = result.history[-1].parties
    assert [(line.name, line.outcome) for line in lines] == [
        ("a", "fused"),
        ("b", "fused"),
    ]
    assert result.history[-1].evaluated == 40  # both parties' own test samples
    assert np.isfinite(result.history[-1].loss)


def enrol(folder, n, key=7):
    """Enrol a population of edges in the registry of a run."""
    registry = Registry(folder)
    for i, invitation in enumerate(registry.invite(count=n)):
        hashed, public = f"{i + 1:064x}", f"{key * 1000 + i:064x}"
        registry.enrol(
            Enrol(
                invitation=invitation, public_key=public, token_hash=hashed,
                version="0.1.0",
            )
        )  # fmt: skip


def test_a_population_of_edges_trains_and_its_rounds_say_who(
    cluster, settings, digits, tmp_path
):
    folder = tmp_path / "population"
    enrol(folder, 4)
    data = {f"edge-{i}": digits(f"e{i}", 20, skip=20 * i) for i in range(4)}
    parties = [
        EdgeParty(
            name, path, "mnist_pytorch", code=settings["architecture"],
            folder=str(tmp_path / name),
        )
        for name, path in data.items()
    ]  # fmt: skip
    del settings["parties"]
    settings |= {
        "edges": {"min": 4, "per_round": 2},
        "test_data": digits("test", 1, n_test=50),
        "rounds": 4,
    }
    with local_door("population", folder, parties):
        result = fedray.run(settings, run_dir=folder)
    assert [report.fused for report in result.history] == [2, 2, 2, 2]
    chosen = [report.edges["chosen"] for report in result.history]
    assert all(report.edges["fused"] == report.edges["chosen"] for report in
               result.history)  # fmt: skip
    times = [n for ranges in chosen for a, b in ranges for n in range(a, b + 1)]
    assert sorted(times) == [0, 0, 1, 1, 2, 2, 3, 3]  # fair: each as often


@pytest.mark.parametrize("kind", ["group", "aggregator"])
def test_a_kill_while_edges_train_leaves_the_bits_as_they_are(
    cluster, settings, tmp_path, kind
):
    import ray

    from fedray import placement

    expected = bits_of_parties(settings, tmp_path)
    folder = tmp_path / "killed"
    names = {"group": placement.edge_actor, "aggregator": placement.aggregator_name}
    kills = []

    def kill(task):
        if task.kind == "train" and task.round == 2 and not kills:
            kills.append(task)
            actor = ray.get_actor(names[kind]("killed"), namespace="fedray")
            ray.kill(actor, no_restart=False)

    with local_door("killed", folder, parties_of(settings, tmp_path)) as door:
        door.on_task = kill
        result = fedray.run(as_edges(settings), run_dir=folder)
    assert kills
    assert final_bits(folder) == expected
    assert [report.fused for report in result.history] == [2, 2]


def test_a_run_that_was_stopped_is_resumed_with_the_same_bits(
    cluster, settings, tmp_path
):
    expected = bits_of_parties(settings, tmp_path)
    folder = tmp_path / "resumed"

    def stop(progress):
        if progress.round == 2:
            raise KeyboardInterrupt

    with local_door("resumed", folder, parties_of(settings, tmp_path)):
        with pytest.raises(Stopped):
            fedray.run(as_edges(settings), run_dir=folder, watch=stop)
        fedray.run(as_edges(settings), run_dir=folder, resume=True)
    assert final_bits(folder) == expected


def test_an_edge_that_never_comes_is_late_and_the_round_goes_on(
    cluster, settings, tmp_path
):
    folder = tmp_path / "absent"
    parties = parties_of(settings, tmp_path)[:1]
    settings |= {"rounds": 1, "quorum": 0.5, "deadline_s": 6.0, "round_timeout_s": 7.0}
    with local_door("absent", folder, parties):
        result = fedray.run(as_edges(settings), run_dir=folder)
    outcomes = {line.name: line.outcome for line in result.history[0].parties}
    assert outcomes["a"] == "fused"
    assert outcomes["b"].startswith("late: did not answer")


def test_edges_and_parties_send_to_one_buffer(cluster, settings, tmp_path):
    folder = tmp_path / "buffered"
    settings |= {"aggregation": "buffered", "buffer_size": 1, "rounds": 4}
    parties = parties_of(settings, tmp_path)
    with local_door("buffered", folder, parties) as door:
        result = fedray.run(as_edges(settings, "b"), run_dir=folder)
    assert [report.fused for report in result.history] == [1, 1, 1, 1]
    assert all(np.isfinite(report.loss) for report in result.history)
    assert {"join", "train"} <= {task.kind for task in door.edges["b"].tasks}
