"""What fedray asks of a model type: its adapter, and steps beside the rounds."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from fedray.config import FederationConfig
from fedray.models.base import Blueprint, Model, Takes
from fedray.survey import DataCodes, DataSurvey, SurveyRequest
from fedray.weights import Weights

ReadFile = Callable[[Path], tuple[Blueprint, Weights]]


class ModelSize(NamedTuple):
    """Size of a model that has yet to be made of the parties' data.

    n_bytes : of its weights.
    of : what they are, such as "vectors of 100 numbers for 5000 words".
    advice : how it becomes smaller.
    """

    n_bytes: int
    of: str
    advice: str


class SurveyStep(Protocol):
    """The step before round 1 of a model whose shape depends on the parties' data.

    The adapter's `read` then gives a blueprint without a schema. Every party answers
    the request, the answers are merged, and `complete` makes the blueprint and the
    initial weights of them.
    """

    def request(self, config: FederationConfig) -> SurveyRequest:
        """What the parties are asked for."""

    def size(self, config: FederationConfig, survey: DataSurvey) -> ModelSize:
        """How large a model for data like this is; nothing of it is made."""

    def complete(
        self, config: FederationConfig, survey: DataSurvey, run: str
    ) -> tuple[Blueprint, Weights]:
        """Blueprint and initial weights of a model for data like this.

        run : a name that no other run has, under which parties keep their own state.

        Raises
        ------
        ConfigError
            If there is no such model.
        """


class StatisticsStep(Protocol):
    """The step before round 1 of a model that sums over all parties' samples make.

    The adapter's `read` then gives a blueprint without a schema. Every party counts
    what the blueprint asks for next, the counts are merged, and `complete` goes on
    with them, as often as it takes.
    """

    def allows_missing(self, blueprint: Blueprint) -> bool:
        """Whether samples may have NaN, which the model itself fills in."""

    def count(
        self, blueprint: Blueprint, train: Any, test: Any, source: str
    ) -> DataSurvey:
        """What one party tells of its samples; `source` is what errors name.

        Raises
        ------
        DataError
            If the model does not take them.
        """

    def complete(
        self,
        config: FederationConfig,
        blueprint: Blueprint,
        survey: DataSurvey,
        codes: DataCodes | None,
    ) -> tuple[Blueprint, Weights]:
        """The blueprint with what all parties told; without a schema: ask again.

        Raises
        ------
        ConfigError
            If there is no such model.
        """


class SearchStep(Protocol):
    """How a finished model is queried for documents that are like a text."""

    def read_model(
        self, path: Path, config: FederationConfig
    ) -> tuple[Blueprint, Weights]:
        """Read the global model of a finished run.

        Raises
        ------
        ModelFileError
            If it cannot be read, or is not safe to read.
        """

    def words(self, blueprint: Blueprint) -> Sequence[str]:
        """Every word that has a vector."""


class Distill(Protocol):
    """Train `student` in place on an ensemble's probabilities (N, C) of samples x."""

    def __call__(
        self,
        student: Any,
        x: np.ndarray,
        probabilities: np.ndarray,
        config: FederationConfig,
    ) -> float: ...


class ModelAdapter(Protocol):
    """What fedray asks of one model type; `fedray.models.named` finds it by name.

    Optional steps are None where the model type does not have them.

    model_type : its name in the config.
    suffix : of the file that a run writes its model to.
    writes : suffixes of files that `write` can write.
    has_score : whether `Model.evaluate` gives a loss.
    takes : what a model trains on: "samples", nested arrays or a dataset of them;
        "documents"; or "anything" that a handler gives, unchecked.
    read_file : reads a model file without a config, for fusing offline.
    distill : trains a model of this type on an ensemble's probabilities.
    survey : the step before round 1 in which parties tell of their data.
    statistics : the step before round 1 in which parties count what it asks for.
    search : how a finished model is queried.
    """

    model_type: str
    suffix: str
    writes: tuple[str, ...]
    has_score: bool
    takes: Takes

    @property
    def read_file(self) -> ReadFile | None: ...

    @property
    def distill(self) -> Distill | None: ...

    @property
    def survey(self) -> SurveyStep | None: ...

    @property
    def statistics(self) -> StatisticsStep | None: ...

    @property
    def search(self) -> SearchStep | None: ...

    def problems(self, config: FederationConfig) -> list[str]:
        """Everything wrong with the config's optimizer, loss and files."""

    def read(self, config: FederationConfig) -> tuple[Blueprint, Weights]:
        """Read the initial model that every party starts from.

        A file of a whole model needs nothing else; a file of arrays needs
        `architecture`; an architecture without a file starts from its own
        initialisation under `seed`.

        Raises
        ------
        ModelFileError, ConfigError
            If there is no model in what was given.
        """

    def make(
        self, blueprint: Blueprint, config: FederationConfig, device: str
    ) -> Model:
        """Build a live model on a device, "cpu" or "cuda"."""

    def write(self, blueprint: Blueprint, weights: Weights, path: Path) -> None:
        """Write a model file; it appears whole or not at all.

        A path that ends in .safetensors gets the arrays alone.

        Raises
        ------
        ModelFileError
            If it cannot be written.
        """

    def answer(
        self, blueprint: Blueprint, weights: Weights
    ) -> tuple[Any, dict[str, Any]]:
        """The model as plain data for REST clients, and its description."""
