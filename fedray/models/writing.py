"""Writes model files atomically, in the adapter's format or as .safetensors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedray import durable_files
from fedray.errors import FedrayError, MissingExtra, ModelFileError
from fedray.weights import Weights


def write_file(
    path: Path,
    weights: Weights,
    write: Callable[[Path], None],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write arrays as .safetensors where `path` says so, else by the adapter's `write`.

    metadata : of a .safetensors file.

    Raises
    ------
    ModelFileError
        If it cannot be written.
    MissingExtra
        If it is a .safetensors file and the package of that name is not installed.
    """
    try:
        with durable_files.replace_file(path) as aside:
            if path.suffix == ".safetensors":
                _write_safetensors(weights, aside, metadata)
            else:
                write(aside)
    except FedrayError:
        raise
    except Exception as error:  # every framework wraps a full disk in its own way
        reason = f"cannot be written (disk full?): {type(error).__name__}: {error}"
        raise ModelFileError(str(path), reason) from None


def _write_safetensors(
    weights: Weights, path: Path, metadata: dict[str, str] | None
) -> None:
    try:
        from safetensors.numpy import save_file
    except ImportError:
        raise MissingExtra("writing .safetensors files", "safetensors") from None
    arrays = {name: np.ascontiguousarray(a) for name, a in weights.items()}
    save_file(arrays, path, metadata)
