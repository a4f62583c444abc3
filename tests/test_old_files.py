"""Runs and service folders written by an earlier fedray are listed and resumed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from support.waiting import wait_for

import fedray
from fedray.cli import main
from fedray.service.settings import Settings

OLD = Path(__file__).parent / "data" / "written-by-0.1.0"
TRAINED_ID = "a90ac60b84a645b659c3972234920e32"
WAITING_ID = "96ef0e4af61eedd5707436e2d357021d"
TEXT_FILES = {".yaml", ".json", ".jsonl"}


@pytest.fixture
def old_files(tmp_path: Path) -> Path:
    """A copy of what the earlier code wrote, with the paths of this machine in it."""
    folder = tmp_path / "old"
    shutil.copytree(OLD, folder, copy_function=shutil.copyfile)
    for file in folder.rglob("*"):
        if file.suffix in TEXT_FILES:
            text = file.read_text(encoding="utf-8")
            file.write_text(text.replace("@FOLDER@", str(folder)), encoding="utf-8")
    return folder


@pytest.mark.usefixtures("cluster")
def test_old_runs_are_listed(old_files, monkeypatch, capsys):
    home = old_files / "home"
    shutil.copytree(old_files / "runs", home / ".fedray" / "runs")
    monkeypatch.setenv("HOME", str(home))
    assert main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("adam", "digits", "text"):
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert "unfinished" in line
        assert "2 of 4" in line


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("name", ["digits", "adam", "text"])
def test_an_old_run_is_resumed_to_the_weights_that_the_old_code_reached(
    old_files, name
):
    folder = old_files / "runs" / name
    result = fedray.run(folder / "config.yaml", run_dir=folder, resume=True)
    assert [report.round for report in result.history] == [1, 2, 3, 4]
    assert {p.outcome for report in result.history for p in report.parties} == {"fused"}
    expected = np.load(old_files / f"{name}-after-round-4.npz")
    weights = result.weights()
    assert list(weights) == list(expected)
    for tensor in weights:
        np.testing.assert_allclose(weights[tensor], expected[tensor], atol=1e-5)
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "4 of 4 rounds done" in report


@pytest.mark.usefixtures("cluster")
def test_an_old_service_continues_where_it_was_killed(old_files):
    from fedray.service import http_server

    settings = Settings(root=str(old_files / "service"))
    listener = http_server.Listener("127.0.0.1", 0)
    running = http_server.start(settings, listener)
    try:
        url = f"{listener.url}/aggregators"

        def ended_state() -> dict | None:
            state = requests.get(f"{url}/{TRAINED_ID}", timeout=60).json()
            return None if state["state"] == "training" else state

        state = wait_for(ended_state, "the federation ends")
        assert (state["state"], state["round"]) == ("trained", 4), state
        answer = requests.get(f"{url}/{TRAINED_ID}/weights", timeout=60)
        (old_files / "model.pt").write_bytes(answer.content)
        waiting = requests.get(f"{url}/{WAITING_ID}", timeout=60).json()
        assert (waiting["state"], waiting["remaining_parties"]) == (
            "waiting for parties",
            1,
        )
    finally:
        running.stop()
    model, expected = (
        torch.load(file, weights_only=False).state_dict()  # both written here
        for file in (old_files / "model.pt", OLD / "service-after-round-4.pt")
    )
    assert list(model) == list(expected)
    for tensor in model:
        torch.testing.assert_close(model[tensor], expected[tensor], rtol=0, atol=1e-5)
