"""Metrics that a config names, from a model's outputs: sums at parties, then values.

A party turns outputs and targets into `Answers`, and adds them up in `MetricSums`: a
few arrays, in which no sample is. The aggregator adds those of all parties and computes
the values by torchmetrics, as if the samples had lain in one place.
"""

from fedray.models.scoring.answers import Answers, NetworkOutput
from fedray.models.scoring.plan import (
    UNKNOWN,
    MetricPlan,
    ModelAnswers,
    answers_of_loss,
    make_plan,
    require,
)
from fedray.models.scoring.sums import MetricSums, States
from fedray.models.scoring.values import MetricValues, compute

__all__ = [
    "UNKNOWN",
    "Answers",
    "MetricPlan",
    "MetricSums",
    "MetricValues",
    "ModelAnswers",
    "NetworkOutput",
    "States",
    "answers_of_loss",
    "compute",
    "make_plan",
    "require",
]
