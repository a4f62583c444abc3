"""The tutorial's network for 28 × 28 digits: 1.2M parameters, log-probabilities out."""

from torch import nn


def cnn() -> nn.Module:
    """Build it; the weights start as PyTorch draws them under the config's seed."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, 1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, 1),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Dropout2d(p=0.25),
        nn.Flatten(),
        nn.Linear(9216, 128),
        nn.ReLU(),
        nn.Dropout2d(p=0.5),
        nn.Linear(128, 10),
        nn.LogSoftmax(dim=1),
    )
