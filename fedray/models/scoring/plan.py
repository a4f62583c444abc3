"""What a config's metrics ask of one model, and what is wrong with asking it."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fedray import user_code
from fedray.config import FederationConfig
from fedray.config.metrics import (
    ANY_CLASS,
    CLASSES,
    LABELS,
    METRICS,
    VALUES,
    YES,
    Task,
    describe_tasks,
)
from fedray.errors import ConfigError
from fedray.models.loss_domains import Domain
from fedray.models.own_loss import make_function
from fedray.models.scoring import library
from fedray.models.scoring.answers import AnswerReader
from fedray.models.scoring.sums import MetricSums
from fedray.user_code import Source


@dataclass(frozen=True)
class MetricPlan:
    """The metrics that one model is measured by.

    names : built-in ones.
    functions : the user's own, by their names.
    """

    names: tuple[str, ...] = ()
    functions: Mapping[str, Callable[[Any, Any], Any]] = field(default_factory=dict)

    @property
    def tasks(self) -> frozenset[Task]:
        """The tasks that all of them are for."""
        tasks = frozenset((*ANY_CLASS, VALUES))
        return tasks.intersection(*(METRICS[name].tasks for name in self.names))

    @property
    def needs_shares(self) -> bool:
        """Whether one needs probabilities."""
        return any(METRICS[name].needs == "probabilities" for name in self.names)

    @functools.cached_property
    def reader(self) -> AnswerReader:
        """Reads a network's answers; it learns what its outputs are."""
        return AnswerReader(self.label, self.tasks, self.needs_shares)

    @property
    def label(self) -> str:
        """One of them, which errors name."""
        return next(iter((*self.names, *self.functions)), "")

    def sums(self) -> MetricSums:
        """Empty sums of one evaluation."""
        return MetricSums(self.names, self.functions, self.reader)


def make_plan(
    config: FederationConfig, functions: Mapping[str, Source]
) -> MetricPlan | None:
    """The plan of a config's metrics; None where it has none.

    Raises
    ------
    ConfigError
        If a function cannot be used.
    MissingExtra
        If torchmetrics is needed and is not installed.
    """
    names = tuple(name for name in config.metrics if not user_code.is_source(name))
    needed = "a function of two arguments: what the model gives, and the targets"
    own = {
        label: make_function(source, {}, "metric", needed)
        for label, source in functions.items()
    }
    library.require(names)
    return MetricPlan(names, own) if names or own else None


class ModelAnswers(NamedTuple):
    """What a model answers, as far as it is known before it runs.

    source : what says so, as errors name it: ``loss mse_loss``.
    tasks : it is of one of these; () where that is not known.
    has_shares : whether it gives probabilities.
    """

    source: str
    tasks: tuple[Task, ...]
    has_shares: bool


# that errors name
COMMON = (
    "accuracy",
    "f1_macro",
    "f1",
    "auroc",
    "confusion_matrix",
    "mae",
    "rmse",
    "r2",
)
UNKNOWN = ModelAnswers("", (), True)


def answers_of_loss(name: str, domain: Domain) -> ModelAnswers:
    """What a model answers that is trained with a loss."""
    source = f"loss {name}"
    if domain.targets == "anything":
        return UNKNOWN
    if domain.has_classes or domain.targets == "shares":
        return ModelAnswers(source, (CLASSES,), domain.outputs != "any")
    has_shares = domain.outputs in ("logits", "probabilities")
    if has_shares or domain.threshold is not None:
        return ModelAnswers(source, (YES, LABELS), has_shares)
    return ModelAnswers(source, (VALUES,), False)


def require(config: FederationConfig, answers: ModelAnswers) -> None:
    """Refuse metrics of another task than a model's, or whose package is missing.

    Raises
    ------
    ConfigError
        With each metric that the model cannot be measured by.
    MissingExtra
        If torchmetrics is needed and is not installed.
    """
    specs = [METRICS[name] for name in config.metrics if name in METRICS]
    problems = []
    for spec in specs if answers.tasks else ():
        if not set(spec.tasks) & set(answers.tasks):
            own = spec._replace(tasks=answers.tasks)
            wrong = f"metrics: {spec.name} is for {describe_tasks(spec)}, and "
            wrong += f"{answers.source} is of {describe_tasks(own)}"
            problems.append(f"{wrong}; {_advice(answers)}")
        elif spec.needs == "probabilities" and not answers.has_shares:
            problems.append(
                f"metrics: {spec.name} needs probabilities, and {answers.source} gives "
                "labels alone: take another, or metrics of labels such as f1_macro"
            )
    if answers.tasks and not set(ANY_CLASS) & set(answers.tasks):
        own = METRICS["accuracy"]._replace(tasks=answers.tasks)
        wrong = (
            f"accuracy is not measured: {answers.source} is of {describe_tasks(own)}"
        )
        problems += [
            f"{key}.metric: {wrong}; take loss, or one of metrics, such as mae"
            for key, goal in config.goals().items()
            if goal.metric == "accuracy"
        ]
    if problems:
        raise ConfigError(problems)
    library.require(spec.name for spec in specs)


def _advice(answers: ModelAnswers) -> str:
    """Some metrics that a model can be measured by."""
    fitting = [
        spec.name
        for spec in METRICS.values()
        if set(spec.tasks) & set(answers.tasks)
        and (answers.has_shares or spec.needs != "probabilities")
    ]
    named = [name for name in COMMON if name in fitting]
    return f"take such as {', '.join(named)}"
