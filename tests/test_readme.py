"""What the README shows is run."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import fedray
from fedray import fusion
from fedray.cli import main
from fedray.config import parse

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_yaml_is_a_config_without_mistakes():
    text, _ = blocks("yaml")
    config, found = parse(yaml.safe_load(text))
    assert found == []
    assert config.parties[0].labels == {"fedray-party": "hospital-a"}


@pytest.mark.usefixtures("cluster")
def test_the_three_lines_of_python_run(monkeypatch, tmp_path, capsys):
    run, few = fedray.run, {"samples_per_party": 20}
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(
        fedray, "run", lambda path, rounds: run(path, rounds=rounds, partition=few),
        raising=False,
    )  # fmt: skip
    code, _, _ = blocks("python")  # the last is run by test_service.py
    exec(code, {})
    accuracy, model = capsys.readouterr().out.split()
    assert 0 <= float(accuracy) <= 1
    assert model == str(tmp_path / ".fedray/runs/mnist_fedavg/global_model.pt")


def test_split_and_fuse_run_as_shown(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), f"{name}.pt")
    shown = [line.split("#")[0] for line in README.splitlines()]
    words = [shlex.split(line) for line in shown if line.startswith("fedray ")]
    ran = [main(line[1:]) for line in words if line[1] in ("split", "fuse")]
    assert ran == [0, 0]
    assert len(np.load("data_party1.npz")["x_train"]) == 500
    assert Path("c.pt").exists()


def test_every_fusion_algorithm_is_in_the_table():
    section = README.split("\n## Fusion algorithms\n")[1].split("\n## ")[0]
    _, *rows = [line for line in section.splitlines() if line.startswith("| `")]
    named = re.findall(r"`(\w+)`", " ".join(row.split("|")[1] for row in rows))
    assert set(named) == set(fusion.FUSIONS)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_ensemble_runs_as_shown(monkeypatch, tmp_path, digits):
    monkeypatch.chdir(tmp_path)
    for name in ("mnist_cnn.py", "mnist_mlp.py", "mnist_keras.py"):
        shutil.copy(ROOT / "jobs" / name, name)
    for i, name in enumerate(("a", "b", "c", "test")):
        digits(name, 64, skip=64 * i)
    x = np.load("test.npz")["x_train"]
    np.savez("unlabeled.npz", x=x)
    _, text = blocks("yaml")
    Path("ensemble.yaml").write_text(text.replace("rounds: 5", "rounds: 1"))
    _, code, _ = blocks("python")
    found = {"x": x}
    exec(code, found)
    assert found["together"].predict(x).shape == (64, 10)
    assert 0 <= found["result"].accuracy <= 1
    kept = fedray.load("kept")
    assert (kept.classes(x) == found["together"].classes(x)).all()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_tutorial_federation_reads_88_of_100_held_out_digits(tmp_path):
    result = fedray.run(ROOT / "jobs" / "mnist_fedavg.yaml", run_dir=tmp_path / "run")
    assert len(result.history) == 5
    assert result.history[-1].evaluated == 1000
    assert result.accuracy >= 0.88
