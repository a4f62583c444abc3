"""Parties that join a federation while it trains, and parties that leave one."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedray import federation
from fedray.errors import (
    CallRefused,
    ClusterError,
    JoinFailed,
    PlacementError,
    RunFolderError,
    UnknownRun,
)
from fedray.service import store as states
from fedray.service import training
from fedray.service.store import TRAINING

STARTS_S = 30.0  # from /train to an aggregator that takes calls
AGAIN = "GET /aggregators/{id} tells its state; try again in a moment."
MEND = "Mend the party and POST /start-party again; the training goes on without it."


def join(folder: Path, party: dict[str, Any]) -> int:
    """Let a party into the training that is under way; its first round.

    Raises
    ------
    CallRefused, ConfigError
        And the training goes on without it.
    """
    return _asked(folder, lambda: federation.join(str(folder), party).round)


def leave(folder: Path, party: str) -> int:
    """Let a party go; the last round that it may have a part in."""
    return _asked(folder, lambda: federation.leave(str(folder), party))


def _asked(folder: Path, ask: Callable[[], int]) -> int:
    until = time.monotonic() + STARTS_S
    while True:
        try:
            return ask()
        except (JoinFailed, PlacementError) as error:
            told = training.told(error, folder)["detail"]
            raise CallRefused(502, told, MEND) from None
        except (UnknownRun, RunFolderError, ClusterError):
            is_training = states.load(folder).state == TRAINING
            if not is_training or time.monotonic() > until:
                told = "The training has only begun, or is about to end."
                raise CallRefused(409, told, AGAIN) from None
        time.sleep(0.2)
