"""One run's folder: config, history, and checkpoints that are whole or not there."""

from fedray.checkpoint.run_folder import Checkpoint, RunFolder
from fedray.checkpoint.run_lock import (
    held,
    is_held,
    opened,
    runs_folder,
    with_changes,
    write_config,
)

__all__ = [
    "Checkpoint",
    "RunFolder",
    "held",
    "is_held",
    "opened",
    "runs_folder",
    "with_changes",
    "write_config",
]
