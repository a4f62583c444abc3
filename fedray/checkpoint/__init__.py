"""Checkpoints of a run in its folder: config, history, atomic saves, locking."""

from fedray.checkpoint.run_folder import Checkpoint, RunFolder
from fedray.checkpoint.run_lock import (
    is_locked,
    lock_folder,
    open_run_folder,
    runs_folder,
    with_membership_changes,
    write_config,
)

__all__ = [
    "Checkpoint",
    "RunFolder",
    "is_locked",
    "lock_folder",
    "open_run_folder",
    "runs_folder",
    "with_membership_changes",
    "write_config",
]
