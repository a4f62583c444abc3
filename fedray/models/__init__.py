"""Model types by name. An adapter imports its framework only when it is asked for."""

import importlib
from types import ModuleType

from fedray.config import FederationConfig, unknown
from fedray.errors import ConfigError
from fedray.models.base import Blueprint, Model, Part

MODELS = {"pytorch": "fedray.models.pytorch", "doc2vec": "fedray.models.doc2vec"}

__all__ = ["MODELS", "Blueprint", "Model", "Part", "named", "problems"]


def named(model_type: str) -> ModuleType:
    """The adapter's module: `problems`, `read`, `make`, `write`, `answer`.

    One whose model depends on what the parties hold has `surveyed` too: `read` then
    gives a blueprint without a schema, and `surveyed` completes it.

    Raises
    ------
    ConfigError
        If there is no such model type.
    """
    if model_type not in MODELS:
        raise ConfigError([unknown("model_type", model_type, MODELS)])
    return importlib.import_module(MODELS[model_type])


def problems(config: FederationConfig) -> list[str]:
    """What the config's model type finds wrong with it: optimizer, loss, files."""
    try:
        return named(config.model_type).problems(config)
    except ConfigError as error:
        return error.problems
