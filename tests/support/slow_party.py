"""A party that trains no further while a file is there."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SLOW = """
    import os, time
    import torch
    from torch import nn

    class Slow(nn.Module):
        # waits while a file is there, in the party whose first pixel is a half; not in
        # the step that joining tries, which is drawn from the config's seed
        def forward(self, x):
            mine = self.training and torch.initial_seed() != 0
            mine = mine and float(x.flatten()[0]) == 0.5
            while mine and os.path.exists({hold!r}):
                time.sleep(0.05)
            return x

    def mlp():
        return nn.Sequential(
            Slow(), nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10)
        )
"""


def add_slow_party(
    settings: dict[str, Any], digits: Callable[..., str], folder: Path
) -> Path:
    """Add c to the parties of some settings; the file that holds it, which is there."""
    hold = folder / "hold"
    (folder / "slow.py").write_text(textwrap.dedent(SLOW.format(hold=str(hold))))
    settings["architecture"] = f"{folder}/slow.py:mlp"
    file = dict(np.load(digits("c", 32, skip=104)))
    file["x_train"] = file["x_train"].copy()
    file["x_train"][:, 0, 0, 0] = 0.5
    np.savez(folder / "c.npz", **file)
    settings["parties"].append({"name": "c", "data": str(folder / "c.npz")})
    hold.touch()
    return hold
