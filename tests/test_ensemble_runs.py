"""Runs of an ensemble in trouble, at half precision, and what is loaded of them."""

import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from support.cluster_runs import kill_once

import fedray
from fedray.checkpoint import RunFolder
from fedray.data import MnistPytorch
from fedray.errors import (
    DataError,
    JoinFailed,
    ModelFileError,
    RunFolderError,
    UnknownRun,
)
from fedray.federation import read_config
from fedray.federation.check import check

ROUNDS = 4
GATED = """
    import time
    from pathlib import Path
    from torch import nn

    class Gated(nn.Sequential):
        # 3 batches a round: in round 3 a member waits while the gate is shut
        n_batches = 0

        def forward(self, x):
            self.n_batches += self.training
            while self.n_batches == 8 and Path({gate!r}).exists():
                time.sleep(0.02)
            return super().forward(x)

    def mlp():
        return Gated(
            nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10)
        )
"""


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """Two torch members, one with momentum, and a gate in their round 3."""
    folder = tmp_path_factory.mktemp("alike")
    code = textwrap.dedent(GATED).format(gate=str(folder / "gate"))
    (folder / "mlp.py").write_text(code)
    (x, y), (x_test, y_test) = MnistPytorch("mnist").get_data()
    for i, name in enumerate("ab"):
        mine, tests = slice(48 * i, 48 * i + 40 + i), {"x_test": x_test[:40]}
        tests["y_test"] = y_test[:40]
        np.savez(folder / f"{name}.npz", x_train=x[mine], y_train=y[mine], **tests)
    np.savez(folder / "plain.npz", x=x[:40, 0])  # (40, 28, 28)
    return {
        "name": "alike",
        "fusion_algorithm": "ensemble",
        "architecture": f"{folder}/mlp.py:mlp",
        "optimizer": "optim.SGD",
        "learning_rate": 0.1,
        "batch_size": 16,
        "rounds": ROUNDS,
        "test_data": f"{folder}/a.npz",
        "parties": [
            {"name": "a", "data": f"{folder}/a.npz"},
            {"name": "b", "data": f"{folder}/b.npz",
             "optimizer_args": {"momentum": 0.9}},
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def home(cluster, alike, tmp_path_factory):
    """A home with one finished run, undisturbed."""
    folder = tmp_path_factory.mktemp("home")
    fedray.run(alike, run_dir=folder / ".fedray" / "runs" / "alike")
    return folder


@pytest.fixture
def peace(home):
    """The folder of that run."""
    return home / ".fedray" / "runs" / "alike"


def weights(folder) -> dict:
    return {member.name: member.weights for member in fedray.load(folder).members}


def test_an_aggregator_killed_between_members_ends_with_the_same_bits(
    alike, peace, tmp_path
):
    control = {"concurrency_group": "control"}  # answers while it runs a round
    kill, notes = kill_once("aggregator:run", lambda p: p.round == 3, **control), []
    gate = Path(alike["architecture"]).with_name("gate")
    gate.touch()

    def watch(progress):
        notes.extend(progress.notes)
        kill(progress)
        if kill.done:
            gate.unlink(missing_ok=True)

    result = fedray.run(alike, run_dir=tmp_path / "run", watch=watch)
    assert len(kill.done) == 1
    assert any(note.startswith("going on after round") for note in notes)
    rounds = [(line.round, line.group) for line in result.history]
    assert rounds == [(n, name) for n in range(1, ROUNDS + 1) for name in "ab"]
    mine, undisturbed = weights(tmp_path / "run"), weights(peace)
    for name in "ab":
        for key, array in undisturbed[name].items():
            np.testing.assert_array_equal(mine[name][key], array)
    told = (tmp_path / "run" / "ensemble.json").read_text()
    assert told == (peace / "ensemble.json").read_text()


def test_members_sent_as_float16_end_as_float32(alike, peace, tmp_path):
    narrow = fedray.run(alike, run_dir=tmp_path / "run", wire_dtype="float16")
    wide = RunFolder(peace).history()
    for mine, line in zip(narrow.history, wide, strict=True):
        assert 2 * mine.bytes_moved == line.bytes_moved > 0
    x = MnistPytorch("mnist").get_data()[1][0]
    of_halves, of_floats = fedray.load(tmp_path / "run"), fedray.load(peace)
    for mine in of_halves.members:
        assert {str(array.dtype) for array in mine.weights.values()} == {"float32"}
    told, wanted = of_halves.predict(x), of_floats.predict(x)
    assert np.abs(told - wanted).max() > 0  # they did travel as halves
    np.testing.assert_allclose(told, wanted, atol=0.02)


def test_a_run_is_loaded_by_name_folder_or_file(peace, home, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alike").mkdir()  # of that name, but no run: the run is meant
    x = MnistPytorch("mnist").get_data()[1][0][:8]
    by_folder, by_name = fedray.load(peace), fedray.load("alike")
    assert [member.name for member in by_name.members] == ["a", "b"]
    np.testing.assert_array_equal(by_name.predict(x), by_folder.predict(x))
    for name, told in by_folder.each(x).items():
        one = fedray.load(peace / f"global_model-{name}.pt")
        np.testing.assert_array_equal(one.predict(x), told)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    torch.save(net, tmp_path / "net.pt")
    by_hand = net(torch.as_tensor(x)).double().softmax(1).detach().numpy()
    np.testing.assert_allclose(fedray.load("net.pt").predict(x), by_hand, atol=1e-12)


def test_loading_errors_name_the_reason(peace, home, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(peace, tmp_path / "half")
    (tmp_path / "half" / "ensemble.json").unlink()
    lines = (peace / "history.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "half" / "history.jsonl").write_text("".join(lines[:5]))  # b lacks 3
    shutil.copytree(peace, tmp_path / "broken")
    (tmp_path / "broken" / "ensemble.json").write_text('{"members": [{"name": "a"}]}')
    (tmp_path / "empty").mkdir()
    torch.save({"w": torch.zeros(3)}, tmp_path / "arrays.pt")
    (tmp_path / "notes.txt").write_text("hello")
    for path, kind, told in [
        ("nope", UnknownRun, "no run 'nope' here; there are: alike"),
        ("no/such", RunFolderError, "there is no such folder"),
        ("none.pt", ModelFileError, "there is no such file"),
        ("empty", RunFolderError, "no run and no ensemble in it"),
        ("half", RunFolderError, f"2 of {ROUNDS} rounds are kept: let it end"),
        ("broken", RunFolderError, "its ensemble.json cannot be read.*it lacks"),
        ("notes.txt", ModelFileError, "neither of torch.save"),
        ("arrays.pt", ModelFileError, "arrays without their layers"),
    ]:
        with pytest.raises(kind, match=told):
            fedray.load(path)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"x": np.zeros((5, 1, 27, 28))}, r"samples of shape \[1, 27, 28\]"),
        ({"x": np.zeros(784)}, r"float64 of shape \[784\]"),
        ({"x": np.zeros((0, 1, 28, 28))}, r"float64 of shape \[0, 1, 28, 28\]"),
        ({"x": np.full((5, 784), np.nan)}, "NaN or infinity; needed finite samples"),
        ({"x_train": np.zeros((5, 784), int)}, "int64 of shape"),
        ({"y": np.zeros(5)}, "the keys 'y'; needed an array x or x_train"),
        (None, "not an npz; needed a whole npz"),
    ],
)
def test_unusable_distillation_data_is_reported_before_the_run(
    alike, tmp_path, arrays, told
):
    path = tmp_path / "unlabeled.npz"
    path.write_text("hello")
    if arrays:
        np.savez(path, **arrays)
    more = {"distill": alike["architecture"], "distill_data": str(path)}
    with pytest.raises(DataError, match=rf"distill_data {path}.*{told}"):
        fedray.run(alike | more, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


SMALL = """
    import numpy as np
    from torch import nn

    class Small:
        def __init__(self, path):
            self.path = path

        def get_data(self):
            with np.load(self.path) as file:
                x, y = file["x_train"][:, :, ::2, ::2], file["y_train"]
            return (x, y), (x, y)

    def mlp():
        return nn.Sequential(nn.Flatten(), nn.Linear(196, 10))
"""


def test_a_member_whose_samples_differ_cannot_join_and_is_named(
    cluster, alike, tmp_path
):
    (tmp_path / "small.py").write_text(textwrap.dedent(SMALL))
    a, b = alike["parties"]
    own = {"data_handler": f"{tmp_path}/small.py:Small"}
    b = b | own | {"architecture": f"{tmp_path}/small.py:mlp"}
    config = alike | {"parties": [a, b]}
    del config["test_data"]
    told = "b: its samples are [1, 14, 14], most others' [1, 28, 28]"
    with pytest.raises(JoinFailed) as error:
        fedray.run(config, run_dir=tmp_path / "run")
    assert told in str(error.value)
    (problem,) = check(read_config(config)).problems
    assert told in problem
