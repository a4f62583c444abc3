"""PyTorch models: whole modules, state_dicts, .safetensors, architectures."""

from fedray.config import FederationConfig
from fedray.models.base import answer, files_missing
from fedray.models.pytorch import optimizers
from fedray.models.pytorch.build import read, read_file, write
from fedray.models.pytorch.distill import distill
from fedray.models.pytorch.model import TorchModel

WRITES = (".pt", ".safetensors")
SUFFIX = ".pt"
make = TorchModel

__all__ = [
    "SUFFIX",
    "WRITES",
    "answer",
    "distill",
    "make",
    "problems",
    "read",
    "read_file",
    "write",
]


def problems(config: FederationConfig) -> list[str]:
    """Everything wrong with optimizer, loss, model_file and architecture."""
    return optimizers.problems(config) + files_missing(config)
