"""Runs whose parties are edges, answered without a door by `PartyGroup` itself."""

import numpy as np
import pytest
from support.local_edge import local_door

import fedray
from fedray.checkpoint import RunFolder
from fedray.edges.plan import EdgeParty
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


def final_bits(folder):
    checkpoint, _ = RunFolder(folder).newest_checkpoint()
    return digest(checkpoint.weights)


@pytest.mark.parametrize("names", [(), ("b",)], ids=["all", "one"])
def test_edges_give_the_bits_of_parties_in_the_cluster(
    cluster, settings, tmp_path, names
):
    fedray.run(settings, run_dir=tmp_path / "parties")
    folder = tmp_path / "edges"
    with local_door("edges", folder, parties_of(settings, tmp_path)) as door:
        result = fedray.run(as_edges(settings, *names), run_dir=folder)
    assert final_bits(folder) == final_bits(tmp_path / "parties")
    assert {verdict.verdict for verdict in door.verdicts} == {"taken"}
    lines = result.history[-1].parties
    assert [(line.name, line.outcome) for line in lines] == [
        ("a", "fused"),
        ("b", "fused"),
    ]
    assert result.history[-1].evaluated == 40  # both parties' own test samples
    assert np.isfinite(result.history[-1].loss)
