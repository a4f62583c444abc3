"""A small network for 28 × 28 digits: 784-64-10, 50,890 parameters, logits out."""

from torch import nn


def mlp() -> nn.Module:
    """Build it; the weights start as PyTorch draws them under the config's seed."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
