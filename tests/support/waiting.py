"""Waiting for a condition, with patience of minutes: other work may slow a machine."""

import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 600.0


def wait_for(
    condition: Callable[[], Any], what: str = "", timeout_s: float = PATIENCE_S
) -> Any:
    """Call it again and again; returns its first value that is true.

    Raises
    ------
    TimeoutError
        After `timeout_s` seconds: what was waited for, and the last value.
    """
    until = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s, but {value!r}")
        time.sleep(0.02)
    return value
