"""The device that a model trains on, and arithmetic that repeats itself there."""

import os

import torch


def usable(device: str) -> str:
    """The device that was assigned, or the CPU where torch cannot use it.

    On a GPU this process then takes kernels that give the same bits each time, as a
    CPU does by itself: a round that is trained again must come out alike. Where torch
    has none it warns, and the bits may differ.
    """
    if device == "cpu" or not torch.cuda.is_available():
        return "cpu"
    # read when the first matrix product is made
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # we read none
    return device
