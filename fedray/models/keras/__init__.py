"""Keras models on the torch backend: .keras and .h5 files, architectures."""

from fedray.config import FederationConfig
from fedray.models.base import answer, files_missing
from fedray.models.keras import optimizers
from fedray.models.keras.model import KerasModel
from fedray.models.keras.model_files import read, read_file, write

WRITES = (".keras", ".safetensors")
SUFFIX = ".keras"
make = KerasModel

__all__ = [
    "SUFFIX",
    "WRITES",
    "answer",
    "make",
    "problems",
    "read",
    "read_file",
    "write",
]


def problems(config: FederationConfig) -> list[str]:
    """Everything wrong with optimizer, loss, model_file and architecture."""
    return optimizers.problems(config) + files_missing(config)
