"""Model types by name: the registry of adapters, each imported on first use."""

import contextlib
import dataclasses
import gc
import importlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedray.config import FederationConfig, describe_unknown
from fedray.errors import ConfigError
from fedray.models.adapter import (
    ModelAdapter,
    ReadFile,
    SearchStep,
    StatisticsStep,
    SurveyStep,
)
from fedray.models.base import (
    BatchModel,
    Blueprint,
    Model,
    PartySlice,
    PersonalModel,
    Prediction,
    PrivateModel,
    ReadySamples,
    RereadSamples,
    ScoredModel,
    SearchableModel,
    no_progress,
)
from fedray.models.custom import CustomAdapter, CustomModel, CustomPlan, TrainingContext
from fedray.models.own_loss import read_metrics
from fedray.models.rate_sum import RateSum
from fedray.models.trainable import FreezableModel
from fedray.survey import DataCodes
from fedray.user_code import is_source
from fedray.weights import Weights

MODELS = {
    "doc2vec": "fedray.models.doc2vec",
    "keras": "fedray.models.keras",
    "pytorch": "fedray.models.pytorch",
    "sklearn": "fedray.models.sklearn",
}
# model types of files by their suffix; all others are of PyTorch
BY_SUFFIX = {".keras": "keras", ".h5": "keras", ".hdf5": "keras", ".skops": "sklearn"}

__all__ = [
    "BY_SUFFIX",
    "MODELS",
    "BatchModel",
    "Blueprint",
    "CustomAdapter",
    "CustomModel",
    "CustomPlan",
    "FreezableModel",
    "Model",
    "ModelAdapter",
    "PartySlice",
    "PersonalModel",
    "Prediction",
    "PrivateModel",
    "RateSum",
    "ReadySamples",
    "RereadSamples",
    "ScoredModel",
    "SearchStep",
    "SearchableModel",
    "StatisticsStep",
    "SurveyStep",
    "TrainingContext",
    "codes_for",
    "compute_metrics",
    "for_file",
    "named",
    "no_progress",
    "plan_metrics",
    "prepare_metrics",
    "problems",
    "read",
]


def named(model_type: str) -> ModelAdapter:
    """The adapter of a model type; its framework is imported here.

    Raises
    ------
    ConfigError
        If there is no such model type.
    MissingExtra
        If its framework is not installed.
    """
    if is_source(model_type):
        return CustomAdapter(model_type)
    if model_type not in MODELS:
        raise ConfigError([describe_unknown("model_type", model_type, MODELS)])
    with _garbage_collection_disabled():
        return importlib.import_module(MODELS[model_type]).ADAPTER


@contextlib.contextmanager
def _garbage_collection_disabled() -> Iterator[None]:
    """Disable garbage collection: importing a framework makes many lasting objects."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def read(config: FederationConfig) -> tuple[Blueprint, Weights]:
    """The initial model of a config: see `ModelAdapter.read`; and its metrics' code."""
    functions, adapter = read_metrics(config), named(config.model_type)
    blueprint, weights = adapter.read(config)
    if config.metrics or any(g.metric == "accuracy" for g in config.goals().values()):
        scoring = importlib.import_module("fedray.models.scoring")
        answers_of = getattr(adapter, "answers_of", None)
        answers = answers_of(blueprint, config) if answers_of else scoring.UNKNOWN
        scoring.require(config, answers)
    return dataclasses.replace(blueprint, metrics=functions), weights


def plan_metrics(config: FederationConfig, blueprint: Blueprint) -> Any:
    """What a live model measures for `metrics` of a config; torch is imported here.

    Raises
    ------
    ConfigError
        If a function of the user's cannot be used.
    MissingExtra
        If torchmetrics is needed and is not installed.
    """
    scoring = importlib.import_module("fedray.models.scoring")
    return scoring.make_plan(config, blueprint.metrics)


def prepare_metrics(config: FederationConfig) -> None:
    """Import what the values of a config's metrics are computed by: it takes seconds.

    Raises
    ------
    MissingExtra
        If torchmetrics is needed and is not installed.
    """
    if config.metrics:
        scoring = importlib.import_module("fedray.models.scoring")
        scoring.require(config, scoring.UNKNOWN)


def compute_metrics(
    names: Iterable[str], states: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Values of metrics by name, from sums over all parties; notes of those without.

    names : `metrics` of a config.
    states : `Scores.states`, merged.
    """
    scoring = importlib.import_module("fedray.models.scoring")
    return scoring.compute(names, states)


def for_file(path: Path) -> tuple[ModelAdapter, ReadFile]:
    """The adapter of a model file's suffix, and the function that reads the file."""
    adapter = named(BY_SUFFIX.get(path.suffix.lower(), "pytorch"))
    if adapter.read_file is None:
        raise TypeError(f"the adapter of {adapter.model_type} reads no files")
    return adapter, adapter.read_file


def codes_for(blueprint: Blueprint, codes: DataCodes | None) -> DataCodes | None:
    """Codes by which samples may have missing values, if the model fills them in."""
    step = named(blueprint.model_type).statistics
    if step is None or not step.allows_missing(blueprint):
        return codes
    return dataclasses.replace(codes or DataCodes(), allows_missing=True)


def problems(config: FederationConfig) -> list[str]:
    """What the config's model type finds wrong with it: optimizer, loss, files."""
    if config.has_member_models:
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
