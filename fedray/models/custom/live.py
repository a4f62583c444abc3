"""An object of a class of the user's own that a Python caller gives as it is."""

import hashlib
import io
import pickle
from functools import partial
from pathlib import Path
from typing import Any

from fedray import durable_files
from fedray.models.custom.object_weights import to_arrays
from fedray.models.live import LiveModel
from fedray.user_code.code_text import PLAIN, code_text
from fedray.weights import Weights, npz


def read_live(model: Any, pickler: type[pickle.Pickler]) -> LiveModel:
    """An object with get_weights(), set_weights(), train() and evaluate().

    Parties get copies of it.
    """
    name = type(model).__name__
    weights, _ = to_arrays(model.get_weights(), name)
    weights = {key: array.copy() for key, array in weights.items()}
    file = io.BytesIO()
    pickler(file).dump(model)
    attributes = getattr(model, "__dict__", {})
    plain = {k: v for k, v in attributes.items() if isinstance(v, PLAIN)}
    return LiveModel(
        name=name,
        suffix=".npz",
        write=partial(_write, weights),
        build=copy_class(name, file.getvalue()),
        text=f"{sorted(plain.items())!r}\n{code_text(type(model))}",
        digest=_digest(weights),
        settings={},
        code_key="model_type",
    )


def copy_class(name: str, pickled: bytes) -> type:
    """A class whose objects, made without arguments, are copies of a pickled one."""
    return type(name, (), {"__new__": lambda cls: pickle.loads(pickled)})


def _write(weights: Weights, path: Path) -> None:
    with durable_files.replace_file(path) as aside:
        npz.write(weights, aside)


def _digest(weights: Weights) -> str:
    sha = hashlib.sha256()
    for name, array in weights.items():
        sha.update(f"{name}{array.dtype.str}{array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()
