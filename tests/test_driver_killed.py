"""The driver dies, or is asked to stop: `--resume` ends with the same bits."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from test_reference import assert_close, fedray_rounds

from fedray.checkpoint import RunFolder

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture
def config(settings, tmp_path):
    settings |= {"rounds": 60, "epochs": 5}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    return settings


def start(tmp_path, *words) -> subprocess.Popen:
    command = [sys.executable, "-m", "fedray", "run", str(tmp_path / "c.yaml"),
               "--run-dir", str(tmp_path / "run"), *words]  # fmt: skip
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_rounds(driver: subprocess.Popen, tmp_path, n_rounds: int) -> None:
    history = tmp_path / "run" / "history.jsonl"
    until = time.monotonic() + 240
    while time.monotonic() < until and driver.poll() is None:
        if history.exists() and history.read_text().count("\n") >= n_rounds:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {n_rounds} rounds: {driver.communicate(timeout=5)}")


def descendants(pid: int) -> set[int]:
    found, todo = set(), [pid]
    while todo:
        parent = todo.pop()
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            children = {int(child) for child in task.read_text().split()}
            todo += children - found
            found |= children
    return found


def still_there(pids: set[int]) -> dict[int, bytes]:
    """Living processes and their names; Ray's two agents notice a minute later."""
    alive = {}
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            name = Path(f"/proc/{pid}/cmdline").read_bytes()
            if name and b"EnvAgent" not in name and b"DashboardAgent" not in name:
                alive[pid] = name
    return alive


def wait_until_gone(pids: set[int]) -> dict[int, bytes]:
    until = time.monotonic() + 60
    while still_there(pids) and time.monotonic() < until:
        time.sleep(0.2)
    return still_there(pids)


def test_a_killed_driver_resumes_to_the_same_bits(config, tmp_path):
    driver = start(tmp_path)
    wait_for_rounds(driver, tmp_path, 3)
    children = descendants(driver.pid)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    assert wait_until_gone(children) == {}, "processes outlived their driver"
    done = len(RunFolder(tmp_path / "run").history())
    assert 3 <= done < 60
    again = start(tmp_path, "--resume")
    told, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert "going on after round" in told
    folder = RunFolder(tmp_path / "run")
    assert [report.round for report in folder.history()] == list(range(1, 61))
    assert_close(folder.newest()[0].weights, fedray_rounds(config), 0)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(config, tmp_path, sign):
    driver = start(tmp_path)
    wait_for_rounds(driver, tmp_path, 2)
    children = descendants(driver.pid)
    driver.send_signal(sign)
    _, errors = driver.communicate(timeout=180)
    assert driver.returncode == 130
    assert "of 60 rounds, kept in" in errors
    assert "go on with --resume" in errors
    assert "Traceback" not in errors
    assert wait_until_gone(children) == {}
    assert (tmp_path / "run" / "report.html").exists()
    found, wrong = RunFolder(tmp_path / "run").newest()
    assert (found.round >= 2, wrong) == (True, [])
