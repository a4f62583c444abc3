"""The same federation twice: in peace, and with its actors and driver killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import ray
import yaml
from support.comparison import assert_close
from support.waiting import PATIENCE_S

import fedray
from fedray.checkpoint import RunFolder

TESTS = Path(__file__).parent.parent
DRIVER = Path(__file__).with_name("drivers") / "killing_driver.py"
SAME = ("loss", "accuracy", "metrics", "learning_rate", "plateau", "fused")
ALL = ("party", "aggregator", "driver")


def assert_kills_change_nothing(
    settings: dict, folder: Path, party: str = "a", victims: tuple[str, ...] = ALL
) -> fedray.Result:
    """Run it in peace and with these killed; the same bits, round by round.

    party : whose process is killed. The run in peace is returned.
    """
    whole = fedray.run(settings, run_dir=folder / "whole")
    config, run_dir = folder / "killed.yaml", folder / "killed"
    config.write_text(yaml.safe_dump(settings))
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    address = ray.get_runtime_context().gcs_address
    env = {**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": path}
    command = [sys.executable, str(DRIVER), str(config), str(run_dir), party, *victims]
    done = subprocess.run(
        command,
        env=env,
        timeout=PATIENCE_S,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    killed = fedray.run(settings, run_dir=run_dir, resume=True)
    for group in RunFolder(folder / "whole").groups():
        assert_close(killed.weights(group), whole.weights(group), 0)
    ours, theirs = (RunFolder(folder / name).history() for name in ("killed", "whole"))
    for field in SAME:
        assert [getattr(line, field) for line in ours] == [
            getattr(line, field) for line in theirs
        ], field
    assert killed.comparison == whole.comparison
    return whole
