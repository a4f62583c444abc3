"""Patience with Ray on a slow machine: a node that starts is given ten minutes.

Ray gives it up after 30 s (its `ray._private.node` has no setting for that).
"""

import time
from contextlib import AbstractContextManager
from types import SimpleNamespace
from unittest import mock

PATIENCE = 20
CLOCK = SimpleNamespace(
    time=time.time, sleep=time.sleep, monotonic=lambda: time.monotonic() / PATIENCE
)


def patient_starts() -> AbstractContextManager:
    """Let nodes that this process starts meanwhile take `PATIENCE` times as long."""
    return mock.patch("ray._private.node.time", CLOCK)
