"""A small network for 28 × 28 digits with batch norm: 784-32-10, logits out."""

from torch import nn


def mlp() -> nn.Module:
    """Build it; layer 4 is the classifier."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
