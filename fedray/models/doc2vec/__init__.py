"""doc2vec adapter: gensim 4 paragraph vectors over a vocabulary that parties share."""

from collections.abc import Sequence
from pathlib import Path

from fedray.config import FederationConfig
from fedray.models.adapter import ModelAdapter, ModelSize, SearchStep, SurveyStep
from fedray.models.base import (
    Blueprint,
    Takes,
)
from fedray.models.doc2vec import build
from fedray.models.doc2vec.file import to_gensim
from fedray.models.doc2vec.model import Doc2VecModel
from fedray.survey import DataSurvey, SurveyRequest, ValueCounts
from fedray.weights import Weights

__all__ = ["ADAPTER", "Doc2VecAdapter", "to_gensim"]


class Vocabulary:
    """Makes the model of the words that the parties counted."""

    def request(self, config: FederationConfig) -> SurveyRequest:
        """Words, and at how many parties they are."""
        return SurveyRequest(words=True)

    def size(self, config: FederationConfig, survey: DataSurvey) -> ModelSize:
        """How large a model of these words is."""
        return build.model_size(config, survey.words or ValueCounts({}, {}))

    def complete(
        self, config: FederationConfig, survey: DataSurvey, run: str
    ) -> tuple[Blueprint, Weights]:
        """Blueprint and initial weights of a model of these words."""
        words = survey.words or ValueCounts({}, {})
        return build.complete_blueprint(config, words, run)


class Search:
    """Reads a finished model for queries."""

    def read_model(
        self, path: Path, config: FederationConfig
    ) -> tuple[Blueprint, Weights]:
        """Read the global model of a finished run."""
        return build.read_file(path, config)

    def words(self, blueprint: Blueprint) -> Sequence[str]:
        """Every word that has a vector."""
        return blueprint.plan.words


class Doc2VecAdapter:
    """The adapter of model_type doc2vec."""

    model_type = "doc2vec"
    suffix = ".npz"
    writes: tuple[str, ...] = (".npz", ".safetensors")
    has_score = False
    takes: Takes = "documents"
    read_file = None
    distill = None
    survey: SurveyStep = Vocabulary()
    statistics = None
    search: SearchStep = Search()

    make = staticmethod(Doc2VecModel)
    problems = staticmethod(build.problems)
    read = staticmethod(build.read)
    write = staticmethod(build.write)
    answer = staticmethod(build.answer)


ADAPTER: ModelAdapter = Doc2VecAdapter()
