"""Models that a Python caller gives as they are: which model type takes which."""

import importlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

from fedray.errors import ConfigError

# a base class -> the model type that takes its objects; Keras on torch is both
BASES = {
    ("keras.src.models.model", "Model"): "keras",
    ("torch.nn.modules.module", "Module"): "pytorch",
    ("sklearn.base", "BaseEstimator"): "sklearn",
}
# where `read_live` of a model type is
READERS = {
    "custom": "fedray.models.custom.live",
    "keras": "fedray.models.keras.live",
    "pytorch": "fedray.models.pytorch.live",
    "sklearn": "fedray.models.sklearn.live",
}
CUSTOM_METHODS = ("get_weights", "set_weights", "train", "evaluate")
KINDS = (
    "a torch.nn.Module, a keras.Model, a scikit-learn estimator, or an object with "
    f"{', '.join(CUSTOM_METHODS)}"
)


@dataclass(frozen=True)
class LiveModel:
    """A model object as the initial model of a run.

    suffix : of the file that `write` writes its state to; empty: it has none yet.
    build : makes the model again, with any values; None where the file has its layers.
    text : of its code and structure; digest : of its values. They tell a resumed run
        whether it is the same.
    settings : config keys that follow from it.
    code_key : the config key that `build` is for.
    """

    name: str
    suffix: str
    write: Callable[[Path], None]
    build: Callable[[], Any] | None
    text: str
    digest: str
    settings: dict[str, Any]
    code_key: str = "architecture"


def model_type_of(model: Any) -> str:
    """The model type that takes a model object; "custom" for a class of one's own.

    Raises
    ------
    ConfigError
        If none does.
    """
    if isinstance(model, type):
        got = f"the class {model.__name__}"
        remedy = f"give an object, model={model.__name__}(...), or architecture="
        raise ConfigError([f"model is {got}: {remedy}{model.__name__}"])
    if isinstance(model, FunctionType | partial):
        name = getattr(model, "__name__", "partial")
        remedy = f"give what it makes, model={name}(...), or architecture={name}"
        raise ConfigError([f"model is the function {name}: {remedy}"])
    for base in type(model).__mro__:
        if model_type := BASES.get((base.__module__, base.__name__)):
            return model_type
    missing = [name for name in CUSTOM_METHODS if not hasattr(model, name)]
    if not missing:
        return "custom"
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    lacks = ""
    if len(missing) < len(CUSTOM_METHODS):
        lacks = f"; it lacks {', '.join(missing)}"
    raise ConfigError([f"model is a {kind}: {KINDS} is needed{lacks}"])


def read_live(model: Any, pickler: type[pickle.Pickler]) -> tuple[str, LiveModel]:
    """The model type of a model object, and the object as a run's initial model.

    pickler : that pickles classes of a notebook by value.

    Raises
    ------
    ConfigError
        If it is no model, or cannot be used.
    """
    model_type = model_type_of(model)
    reader = importlib.import_module(READERS[model_type])
    return model_type, reader.read_live(model, pickler)
