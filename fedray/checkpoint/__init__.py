"""One run's folder: config, history, and checkpoints that are whole or not there."""

from fedray.checkpoint.folder import Checkpoint, RunFolder
from fedray.checkpoint.hold import opened

__all__ = ["Checkpoint", "RunFolder", "opened"]
