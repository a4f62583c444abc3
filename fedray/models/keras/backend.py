"""Imports Keras on its torch backend; scopes for device and random seed.

The backend does not depend on the environment or on a keras.json in the home folder.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

from fedray.errors import ConfigError, MissingExtra
from fedray.models.torch_state import random_scope

BACKEND = "KERAS_BACKEND"


def _import_keras() -> ModuleType:
    """Import Keras on torch; if this is its first import, with its default settings."""
    is_first, environment_value = "keras" not in sys.modules, os.environ.get(BACKEND)
    os.environ[BACKEND] = "torch"
    try:
        import keras
    except ImportError as error:
        raise MissingExtra("model_type keras", "keras") from error
    finally:
        os.environ.pop(BACKEND)
        if environment_value is not None:
            os.environ[BACKEND] = environment_value
    if keras.backend.backend() != "torch":
        raise ConfigError(
            [
                f"Keras is already imported on its {keras.backend.backend()} backend, "
                "model_type keras needs torch: set KERAS_BACKEND=torch before the "
                "first import of keras"
            ]
        )
    if is_first:  # not what a keras.json in the home folder says
        keras.config.set_floatx("float32")
        keras.config.set_epsilon(1e-7)
        keras.config.set_image_data_format("channels_last")
    return keras


keras = _import_keras()
_core: Any = sys.modules["keras.src.backend.torch.core"]


def device_scope(device: str) -> AbstractContextManager:
    """Create Keras's tensors on `device` (cpu or cuda), not on any GPU it finds."""
    return keras.device("cuda:0" if device == "cuda" else device)


def to_snake_case(class_name: str) -> str:
    """A class's name in lower case as Keras forms it: Conv2D is conv2d."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", class_name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


@contextmanager
def meta_device_scope() -> Iterator[None]:
    """Create tensors with shapes but no memory (torch's meta device).

    Without the patch of its default device, Keras would infer the output shape of some
    layers from 89 samples in memory.
    """
    default, _core.DEFAULT_DEVICE = _core.DEFAULT_DEVICE, "meta"
    try:
        with keras.device("meta"):
            yield
    finally:
        _core.DEFAULT_DEVICE = default


@contextmanager
def seed_scope(seed: int) -> Iterator[None]:
    """Seed everything random inside, and restore the global random states after.

    Keras draws from the global state of Python, numpy and torch.
    """
    with random_scope(seed):
        keras.utils.set_random_seed(seed % 2**32)
        yield
