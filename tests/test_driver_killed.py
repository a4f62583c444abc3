"""The driver is asked to stop: it does, and says how to go on. Killed: tests/chaos."""

import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from support.processes import FEDRAY, cluster_pids, wait_until_gone

from fedray.checkpoint import RunFolder

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("worker_server")]


@pytest.fixture
def config(settings, tmp_path):
    settings |= {"rounds": 60, "epochs": 5}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    return settings


def start(tmp_path, *words) -> subprocess.Popen:
    command = [*FEDRAY, "run", str(tmp_path / "c.yaml"),
               "--run-dir", str(tmp_path / "run"), *words]  # fmt: skip
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # in a background of a shell Ctrl-C is ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def wait_for_rounds(driver: subprocess.Popen, tmp_path, n_rounds: int) -> None:
    history = tmp_path / "run" / "history.jsonl"
    until = time.monotonic() + 600
    while time.monotonic() < until and driver.poll() is None:
        if history.exists() and history.read_text().count("\n") >= n_rounds:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {n_rounds} rounds: {driver.communicate(timeout=5)}")


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_cleanly_and_says_how_to_resume(config, tmp_path, sign):
    driver = start(tmp_path)
    wait_for_rounds(driver, tmp_path, 2)
    children = cluster_pids(driver.pid)
    driver.send_signal(sign)
    _, errors = driver.communicate(timeout=600)
    assert driver.returncode == 130
    assert "of 60 rounds, kept in" in errors
    assert "go on with --resume" in errors
    assert "Traceback" not in errors
    assert wait_until_gone(children) == {}
    assert (tmp_path / "run" / "report.html").exists()
    found, wrong = RunFolder(tmp_path / "run").newest_checkpoint()
    assert (found.round >= 2, wrong) == (True, [])
