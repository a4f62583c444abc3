"""Keras on its torch backend, whatever the environment and its settings file say."""

import os
import random
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType

import numpy as np
import torch

from fedray.errors import ConfigError, MissingExtra

BACKEND = "KERAS_BACKEND"


def _imported() -> ModuleType:
    """Import Keras; where that happens here first, with the settings it comes with."""
    first, before = "keras" not in sys.modules, os.environ.get(BACKEND)
    os.environ[BACKEND] = "torch"
    try:
        import keras
    except ImportError as error:
        raise MissingExtra("model_type keras", "keras") from error
    finally:
        os.environ.pop(BACKEND)
        if before is not None:
            os.environ[BACKEND] = before
    if keras.backend.backend() != "torch":
        raise ConfigError(
            [
                f"Keras is already imported on its {keras.backend.backend()} backend, "
                "model_type keras needs torch: set KERAS_BACKEND=torch before the "
                "first import of keras"
            ]
        )
    if first:  # not what a keras.json in some home folder says
        keras.config.set_floatx("float32")
        keras.config.set_epsilon(1e-7)
        keras.config.set_image_data_format("channels_last")
    return keras


keras = _imported()
core = sys.modules["keras.src.backend.torch.core"]


def on(device: str) -> AbstractContextManager:
    """Where Keras makes its tensors: not wherever it finds a GPU."""
    return keras.device("cuda:0" if device == "cuda" else device)


@contextmanager
def on_paper() -> Iterator[None]:
    """Tensors have shapes and no memory inside.

    Where a layer cannot be tried so, Keras would try it with 89 samples in memory.
    """
    before, core.DEFAULT_DEVICE = core.DEFAULT_DEVICE, "meta"
    try:
        with keras.device("meta"):
            yield
    finally:
        core.DEFAULT_DEVICE = before


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Let everything random inside come from `seed`, and nothing outside notice.

    Keras draws from the global state of Python, numpy and torch; that is put back.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    keras.utils.set_random_seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
