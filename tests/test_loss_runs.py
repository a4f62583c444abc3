"""Losses and outputs through the public doors: check, a run and its files, resuming."""

import json

import numpy as np
import pytest

import fedray
from fedray.errors import RunFolderError
from fedray.federation import read_config
from fedray.federation.check import check

CODE = """
import numpy as np
import torch
from torch import nn

class Tagger(nn.Module):
    "Token ids to an output of classes last, and a state beside it."
    def __init__(self):
        super().__init__()
        self.words, self.rnn = nn.Embedding(9, 4), nn.LSTM(4, 5, batch_first=True)
        self.end = nn.Linear(5, 3)
    def forward(self, ids):
        out, state = self.rnn(self.words(ids))
        return self.end(out), state

class Texts:
    def __init__(self, path): self.file = np.load(path)
    def get_data(self):
        pair = self.file["ids"], self.file["y"]
        return pair, pair

def focal(output, target, gamma=2.0):
    shares = output.log_softmax(-1).gather(-1, target[..., None])
    return -((1 - shares.exp()) ** gamma * shares).mean()
"""


@pytest.fixture
def config(tmp_path):
    """Two parties that count unlike numbers of labels."""
    (tmp_path / "code.py").write_text(CODE)
    rng = np.random.default_rng(0)
    for name, n_labels in (("few", 1), ("many", 5)):
        y = rng.integers(0, 3, (8, 5))
        y[:, n_labels:] = -100
        ids = rng.integers(0, 9, (8, 5))
        np.savez(tmp_path / f"{name}.npz", ids=ids, y=y)
    return {
        "architecture": f"{tmp_path}/code.py:Tagger",
        "data_handler": f"{tmp_path}/code.py:Texts",
        "parties": [
            {"name": name, "data": f"{tmp_path}/{name}.npz"} for name in ("few", "many")
        ],
        "rounds": 1,
        "learning_rate": 0.1,
    }


def test_parties_are_averaged_by_the_labels_that_count(config, tmp_path, cluster):
    settings = config | {
        "loss": "nn.CrossEntropyLoss",
        "loss_args": {"ignore_index": -100, "weight": [1, 2, 3]},
    }
    result = fedray.run(settings, run_dir=tmp_path / "run")
    files = [np.load(tmp_path / f"{name}.npz") for name in ("few", "many")]
    x = np.concatenate([file["ids"] for file in files])
    y = np.concatenate([file["y"] for file in files])
    pooled = fedray.load(tmp_path / "run").evaluate(x, y)
    assert (result.loss, result.accuracy) == pytest.approx(tuple(pooled[:2]), rel=1e-6)


def test_a_loss_of_ones_own_travels_and_is_kept(config, tmp_path, cluster):
    for name in ("few", "many"):
        file = dict(np.load(tmp_path / f"{name}.npz"))
        np.savez(tmp_path / f"{name}.npz", **file | {"y": np.abs(file["y"]) % 3})
    settings = config | {"loss": f"{tmp_path}/code.py:focal", "loss_args": {"gamma": 1}}
    checked = check(read_config(settings))
    assert checked.problems == []
    assert f"{tmp_path}/code.py:focal" in [entry["code"] for entry in checked.code]
    run_dir = tmp_path / "run"
    assert 0 < fedray.run(settings, run_dir=run_dir).loss < 3
    inputs = json.loads((run_dir / "inputs.json").read_text())
    assert "loss code.py" in inputs["digests"]
    (tmp_path / "code.py").write_text(CODE.replace("- shares.exp()", "+ shares"))
    with pytest.raises(RunFolderError, match=r"loss code\.py.*not what"):
        fedray.run(settings | {"rounds": 2}, run_dir=run_dir, resume=True)


def test_check_names_the_party_whose_targets_a_loss_of_ones_own_does_not_take(
    config, tmp_path, cluster
):
    file = dict(np.load(tmp_path / "many.npz"))
    np.savez(tmp_path / "many.npz", **file | {"y": np.abs(file["y"]) % 3})
    settings = config | {"loss": f"{tmp_path}/code.py:focal"}
    (problem,) = check(read_config(settings)).problems
    assert problem.startswith("party few:")
    assert f"from the loss {tmp_path}/code.py:focal" in problem
