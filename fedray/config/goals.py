"""Goals of training by a metric: early stopping, a target, the best round's model."""

from typing import Annotated, Any

from pydantic import BeforeValidator

from fedray.config import metrics
from fedray.config.declaration import MAX_COUNT, SAFE, setting
from fedray.config.metrics import Mode
from fedray.config.schedulers import ReduceLROnPlateau
from fedray.config.specs import Settings, Text

ALWAYS = ("loss", "accuracy")  # metrics of every evaluation, where they mean something
MODE = Annotated[
    Mode | None,
    setting(
        "whether less or more of the metric is better",
        unset="known by its name",
        private=SAFE,
    ),
]


class EarlyStoppingSpec(Settings):
    """When training stops, since a number of the evaluation does not improve."""

    metric: Annotated[
        Text,
        setting(
            "loss, accuracy, or another number that an evaluation gives", private=SAFE
        ),
    ] = "loss"
    patience: Annotated[
        int,
        setting(
            "evaluated rounds in a row without an improvement",
            ge=1,
            le=MAX_COUNT,
            private=SAFE,
        ),
    ] = 3
    min_delta: Annotated[
        float,
        setting(
            "an improvement is more than this on the best so far", ge=0, private=SAFE
        ),
    ] = 0.0
    mode: MODE = None


class TargetSpec(Settings):
    """The value of a number of the evaluation at which training stops."""

    metric: Annotated[
        Text,
        setting(
            "loss, accuracy, or another number that an evaluation gives", private=SAFE
        ),
    ]
    value: Annotated[
        float, setting("reached by this, or by a better value", private=SAFE)
    ]
    mode: MODE = None


class BestModelSpec(Settings):
    """By which number of the evaluation a round's global model is the best."""

    metric: Annotated[
        Text,
        setting(
            "loss, accuracy, or another number that an evaluation gives", private=SAFE
        ),
    ]
    mode: MODE = None


def _to_best(value: Any) -> Any:
    return {"metric": value} if isinstance(value, str) else value


METRIC_OR_BEST = BeforeValidator(
    _to_best, json_schema_input_type=Text | BestModelSpec | None
)


Goal = EarlyStoppingSpec | TargetSpec | BestModelSpec | ReduceLROnPlateau
GOALS = ("early_stopping", "target", "keep_best")  # config keys that have one


def goal_name(goal: Goal) -> str:
    """The name of a goal's metric as the history has it."""
    return metrics.label_of(goal.metric)


def mode_of(goal: Goal) -> Mode:
    """Whether less or more of a goal's metric is better.

    Of a metric whose mode is not known by its name, and was not given, more.
    """
    return goal.mode or metrics.known_mode(goal.metric) or "max"
