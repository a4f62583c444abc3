"""scikit-learn models: estimators and pipelines, by name, function or .skops file."""

from fedray.errors import MissingExtra
from fedray.models.adapter import ModelAdapter, StatisticsStep
from fedray.models.base import Blueprint, Takes, answer

try:
    from fedray.models.sklearn import build, completion
    from fedray.models.sklearn.model import SklearnModel
except ImportError as error:
    if (error.name or "").partition(".")[0] not in ("sklearn", "skops"):
        raise
    raise MissingExtra("model_type sklearn", "sklearn") from error

__all__ = ["ADAPTER", "SklearnAdapter"]


class Statistics:
    """Fits a pipeline's steps, and finds classes and columns, from counts of all."""

    def allows_missing(self, blueprint: Blueprint) -> bool:
        """Yes: a step fills them in, or `require_complete` says that none does."""
        return True

    count = staticmethod(completion.count)
    complete = staticmethod(completion.complete)


class SklearnAdapter:
    """The adapter of model_type sklearn."""

    model_type = "sklearn"
    suffix = ".skops"
    writes: tuple[str, ...] = (".skops", ".safetensors")
    has_score = True
    takes: Takes = "samples"
    distill = None
    survey = None
    statistics: StatisticsStep = Statistics()
    search = None

    make = staticmethod(SklearnModel)
    problems = staticmethod(build.problems)
    read = staticmethod(build.read)
    read_file = staticmethod(build.read_file)
    write = staticmethod(build.write)
    answer = staticmethod(answer)
    answers_of = staticmethod(build.answers_of)


ADAPTER: ModelAdapter = SklearnAdapter()
