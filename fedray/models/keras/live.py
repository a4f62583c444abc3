"""A Keras model that a Python caller gives as it is: its file, and how to make it."""

import hashlib
import json
import pickle
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedray import durable_files
from fedray.errors import ConfigError, FedrayError
from fedray.models.keras.backend import keras
from fedray.models.keras.build import list_layers
from fedray.models.keras.safe_load import load
from fedray.models.live import LiveModel
from fedray.models.untrusted import UnsafeFile
from fedray.user_code.code_text import code_text


def read_live(model: Any, pickler: type[pickle.Pickler]) -> LiveModel:
    """A Keras model as the initial model of a run; it is only read.

    Raises
    ------
    ConfigError
        If it has no weights yet.
    """
    if not model.built:
        remedy = "begin with keras.Input(shape), or call model.build(shape)"
        raise ConfigError([f"model {model.name} has no sizes yet: {remedy}"])
    own = {type(one).__name__: type(one) for one in _parts(model) if _is_own(one)}
    is_file = not own and _is_readable(model)
    build = (
        None
        if is_file
        else partial(rebuild, type(model), _config_of(model), _by_registered_name(own))
    )
    name = type(model).__name__
    return LiveModel(
        name="keras" if name in ("Sequential", "Functional") else name,
        suffix=".keras" if is_file else ".weights.h5",
        write=partial(_write, model),
        build=build,
        text="\n".join([_config_text(model), *map(code_text, own.values())]),
        digest=_digest(model),
        settings={} if is_file else _compiled(model),
    )


def rebuild(kind: Any, config: dict[str, Any], own: dict[str, Any]) -> Any:
    """The model of a config, with layers of the user's own."""
    with keras.saving.custom_object_scope(own):
        return kind.from_config(config)


def _by_registered_name(own: dict[str, Any]) -> dict[str, Any]:
    """Classes by name, and by the name under which this process has registered them."""
    return own | {keras.saving.get_registered_name(one): one for one in own.values()}


def _parts(model: Any) -> list[Any]:
    return [model, *list_layers(model)]


def _is_own(part: Any) -> bool:
    return type(part).__module__.partition(".")[0] != "keras"


def _config_of(model: Any) -> dict[str, Any]:
    try:
        return model.get_config()
    except NotImplementedError:
        needed = "get_config(), so that parties can make it again"
        raise ConfigError([f"model {type(model).__name__} has no {needed}"]) from None


def _config_text(model: Any) -> str:
    return json.dumps(_config_of(model), sort_keys=True, default=str)


def _is_readable(model: Any) -> bool:
    """Whether fedray reads the file that the model writes, without code."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        model.save(path)
        try:
            return load(path).layers is not None
        except (UnsafeFile, FedrayError):
            return False


def _compiled(model: Any) -> dict[str, Any]:
    """Loss and learning rate of compile(), which a file of weights lacks."""
    if not getattr(model, "compiled", False):
        return {}
    settings: dict[str, Any] = {}
    if isinstance(model.loss, str):
        settings["loss"] = model.loss
    if model.optimizer is not None:
        settings["optimizer"] = type(model.optimizer).__name__
        rate = np.float32(float(model.optimizer.learning_rate))
        settings["learning_rate"] = float(str(rate))
    return settings


def _write(model: Any, path: Path) -> None:
    with durable_files.replace_file(path) as aside:
        if path.name.endswith(".weights.h5"):
            whole = aside.with_name(f"{aside.name}.weights.h5")
            model.save_weights(whole)
            whole.replace(aside)
        else:
            model.save(aside)


def _digest(model: Any) -> str:
    sha = hashlib.sha256()
    for variable in model.weights:
        array = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
        sha.update(f"{array.dtype.str}{array.shape}".encode())
        sha.update(array.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()
