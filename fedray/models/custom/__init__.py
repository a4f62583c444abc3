"""Adapter of classes of the user's own: ``model_type: file.py:ClassName``."""

from fedray.models.adapter import SearchStep, StatisticsStep, SurveyStep
from fedray.models.base import Takes, answer
from fedray.models.custom import build
from fedray.models.custom.model import CustomModel, CustomPlan
from fedray.models.custom.model_object import TrainingContext

__all__ = ["CustomAdapter", "CustomModel", "CustomPlan", "TrainingContext"]


class CustomAdapter:
    """The adapter of one class of the user's own.

    model_type : ``file.py:ClassName``, as the config names it.
    """

    suffix = ".npz"
    writes: tuple[str, ...] = (".npz", ".safetensors")
    has_score = True
    takes: Takes = "anything"
    read_file = None
    distill = None
    survey: SurveyStep | None = None
    statistics: StatisticsStep | None = None
    search: SearchStep | None = None

    make = staticmethod(CustomModel)
    problems = staticmethod(build.problems)
    read = staticmethod(build.read)
    write = staticmethod(build.write)
    save = staticmethod(build.save)
    answer = staticmethod(answer)

    def __init__(self, model_type: str):
        self.model_type = model_type
