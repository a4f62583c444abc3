"""A federation whose parties are `fedray edge` processes, through a real door."""

import contextlib
import runpy
from pathlib import Path

import pytest
import ray
import torch
from support.edge_runs import HANDLER
from support.forked_edges import forked_edges

import fedray
from fedray.checkpoint import RunFolder
from fedray.edge_door import DoorSettings
from fedray.edges.registry import Registry
from fedray.service.settings import Settings
from fedray.weights import digest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def door(cluster, tmp_path):
    """URL of a door on the session's cluster."""
    with DoorSettings(port=0).listening() as listener:
        service = DoorSettings(port=0).start(Settings(root=str(tmp_path)), listener)
        try:
            yield listener.url
        finally:
            ray.kill(service.server)
            with contextlib.suppress(Exception):
                ray.get(service.run_ref)


@pytest.fixture
def tutorial(tmp_path, digits):
    """The tutorial's federation, but fewer samples, epochs and rounds."""
    file = tmp_path / "torch_mnist_cnn.pt"
    torch.manual_seed(0)
    model = runpy.run_path(str(ROOT / "jobs" / "mnist_cnn.py"))["cnn"]()
    torch.save(model, file)
    return {
        "name": "tutorial", "model_file": str(file), "rounds": 2, "learning_rate": 1.0,
        "optimizer": "optim.Adadelta", "loss": "nll_loss", "data_handler": HANDLER,
        "parties": [
            {"name": "hospital-a", "data": digits("a", n_train=100)},
            {"name": "hospital-b", "data": digits("b", n_train=60, skip=100)},
        ],
        "party_dir": str(tmp_path / "parties"),
    }  # fmt: skip


def final_bits(folder) -> bytes:
    checkpoint, _ = RunFolder(folder).newest_checkpoint()
    return digest(checkpoint.weights)


def test_the_tutorials_federation_has_the_same_bits_with_edges(
    cluster, door, tutorial, tmp_path
):
    fedray.run(tutorial, run_dir=tmp_path / "in-cluster")
    folder = tmp_path / "outside"
    names = [party["name"] for party in tutorial["parties"]]
    own = [{"name": name, "edge": True} for name in names]
    with forked_edges() as edges:
        pids = []
        for party in tutorial["parties"]:
            (invitation,) = Registry(folder).invite(party["name"])
            state, log = tmp_path / party["name"], tmp_path / f"{party['name']}.log"
            words = ["--url", door, "--invitation-file", "-", "--state-dir", state]
            words += ["--data", party["data"], "--data-handler", HANDLER]
            pids.append(edges.start(words, log, invitation))
        result = fedray.run({**tutorial, "parties": own}, run_dir=folder)
        codes = [edges.wait(pid) for pid in pids]
    for name in names:
        print((tmp_path / f"{name}.log").read_text())
    assert final_bits(folder) == final_bits(tmp_path / "in-cluster")
    outcomes = [line.outcome for line in result.history[-1].parties]
    assert outcomes == ["fused", "fused"]
    assert codes == [0, 0]
