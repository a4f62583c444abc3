"""Runs `fedray` as a command whose own cluster has its workers forked.

``python fedray_command.py serve ...`` is ``python -m fedray serve ...`` but for the
program that a raylet starts a worker by: see worker_server.py, whose server must run.
"""

import runpy
import sys
from pathlib import Path

from ray._private import ray_constants
from slow_machine import patient_starts

HERE = Path(__file__).parent

if __name__ == "__main__":
    ray_constants.SETUP_WORKER_FILENAME = str(HERE / "worker_launcher.py")
    with patient_starts():
        sys.path.remove(str(HERE))
        runpy.run_module("fedray", run_name="__main__", alter_sys=True)
