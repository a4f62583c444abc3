"""Model types by name. An adapter imports its framework only when it is asked for."""

import contextlib
import gc
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from fedray.config import FederationConfig, unknown
from fedray.errors import ConfigError
from fedray.models.base import Blueprint, Model, Part, unheard

MODELS = {
    "doc2vec": "fedray.models.doc2vec",
    "keras": "fedray.models.keras",
    "pytorch": "fedray.models.pytorch",
}

__all__ = [
    "MODELS",
    "Blueprint",
    "Model",
    "Part",
    "for_file",
    "named",
    "problems",
    "unheard",
]


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
    with _uncollected():
        return importlib.import_module(MODELS[model_type])


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Let nobody look for garbage meanwhile: an import makes much that stays."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def for_file(path: Path) -> ModuleType:
    """The adapter that reads a file of this suffix: `read_file`, `write`, `WRITES`."""
    is_keras = path.suffix.lower() in (".keras", ".h5", ".hdf5")
    return named("keras" if is_keras else "pytorch")


def problems(config: FederationConfig) -> list[str]:
    """What the config's model type finds wrong with it: optimizer, loss, files."""
    if config.fusion_algorithm == "ensemble":
        return [
            f"party {party.name!r}: {problem}"
            for i, party in enumerate(config.parties)
            for problem in _problems(config.member(i))
        ]
    return _problems(config)


def _problems(config: FederationConfig) -> list[str]:
    try:
        return named(config.model_type).problems(config)
    except ConfigError as error:
        return error.problems
