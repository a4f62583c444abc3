"""When training stops before its last round, and which round's model is the best.

Decided from the history of one global model alone, so that a resumed run decides as one
that never stopped. Only evaluated rounds count; a value that is not finite never is an
improvement, a target that is reached, or the best.
"""

import math
from collections.abc import Iterable, Sequence

from fedray.config import FederationConfig, goal_name, mode_of
from fedray.config.goals import ALWAYS, EarlyStoppingSpec, Goal, TargetSpec
from fedray.errors import ConfigError, format_count
from fedray.messages import RoundReport


def stop_reason(
    config: FederationConfig, reports: Sequence[RoundReport], seconds: float = 0.0
) -> str:
    """Why training ends with the last of these rounds; empty if it goes on.

    reports : of one global model, oldest first.
    seconds : that all its rounds have taken.
    """
    if not reports:
        return ""
    reason, last = "", reports[-1]
    if config.target is not None and last.evaluated:
        reason = _reaches(config.target, last)
    if config.early_stopping is not None and last.evaluated and not reason:
        reason = _has_settled(config.early_stopping, reports)
    limit_s = config.max_training_s
    if limit_s is not None and seconds >= limit_s and last.aggregated and not reason:
        reason = describe_time_limit(limit_s)
    return reason


def describe_time_limit(limit_s: float) -> str:
    """The reason for which a training stops that has taken as long as it may."""
    return f"its rounds took max_training_s, {limit_s:g} s"


def is_better(goal: Goal, value: float, best: float | None) -> bool:
    """Whether a finite value improves on the best so far; None: there is none yet."""
    if best is None:
        return True
    margin = goal.min_delta if isinstance(goal, EarlyStoppingSpec) else 0.0
    return value < best - margin if mode_of(goal) == "min" else value > best + margin


def best_report(goal: Goal, reports: Iterable[RoundReport]) -> RoundReport | None:
    """The round with the best value, of equal ones the first; None if none has one."""
    best, best_value = None, None
    for report in reports:
        value = value_of(goal, report)
        if value is not None and is_better(goal, value, best_value):
            best, best_value = report, value
    return best


def value_of(goal: Goal, report: RoundReport) -> float | None:
    """A round's value of a goal's metric; None if it is none, or not finite."""
    if not report.evaluated:
        return None
    value = report.number_of(goal_name(goal))
    return value if value is not None and math.isfinite(value) else None


def goal_notes(config: FederationConfig) -> list[str]:
    """What must be known of goals that can hardly be met."""
    goal, every = config.early_stopping, config.evaluate_every
    if goal is None or not every or config.aggregation == "adaptive":
        return []
    n_evaluated = math.ceil(config.rounds / every)
    if goal.patience < n_evaluated - 1:
        return []
    rounds = format_count(config.rounds, "round")
    what = f"early_stopping.patience is {goal.patience}, and {n_evaluated} of {rounds} "
    are = "is" if n_evaluated == 1 else "are"
    return [f"{what}{are} evaluated: it cannot stop early"]


NO_TESTS_TO_COMPARE = (
    "compare: local: no party has test samples, which it goes by: give some"
)


def describe_missing_tests(config: FederationConfig, whose: str = "party") -> str:
    """Why a run with goals cannot be without test samples.

    whose : it is that has none: "party", or "party of the group ...".
    """
    keys = " and ".join(config.goals())
    return (
        f"{keys}: nothing would be evaluated, since no {whose} has test samples: give "
        "test_data, or test samples in the parties' data"
    )


def require_measured(config: FederationConfig, reports: Sequence[RoundReport]) -> None:
    """See that evaluated rounds have what training is to go by.

    Raises
    ------
    ConfigError
        Naming the key, the metric and what there is.
    """
    evaluated = [report for report in reports if report.evaluated]
    if not evaluated:
        return
    last = evaluated[-1]
    values = {"loss": last.loss, "accuracy": last.accuracy, **last.metrics}
    there = [name for name, value in values.items() if value is not None]
    problems = [
        f"{key}.metric: the evaluation of round {last.round} gives no "
        f"{goal_name(goal)!r}, it gives {', '.join(there) or 'nothing'}: name one of "
        "these, then go on with --resume"
        for key, goal in config.goals().items()
        if not any(_has(goal_name(goal), report) for report in evaluated)
    ]
    if problems:
        raise ConfigError(problems)


def _has(name: str, report: RoundReport) -> bool:
    if name in ALWAYS:
        return getattr(report, name) is not None
    return name in report.metrics


def _reaches(target: TargetSpec, report: RoundReport) -> str:
    value = value_of(target, report)
    if value is None:
        return ""
    is_min = mode_of(target) == "min"
    if not (value <= target.value if is_min else value >= target.value):
        return ""
    return f"{goal_name(target)} is {value:.6g}, its target was {target.value:g}"


def _has_settled(goal: EarlyStoppingSpec, reports: Iterable[RoundReport]) -> str:
    """What has not improved for how long, if that is `patience`.

    Rounds before the first that has the metric are not counted.
    """
    best, since, n_waited, is_measured = None, 0, 0, False
    for report in (report for report in reports if report.evaluated):
        value = value_of(goal, report)
        is_measured |= goal_name(goal) in (*ALWAYS, *report.metrics)
        if value is not None and is_better(goal, value, best):
            best, since, n_waited = value, report.round, 0
        else:
            n_waited += is_measured
    if n_waited < goal.patience:
        return ""
    name, rounds = goal_name(goal), format_count(n_waited, "evaluated round")
    if best is None:
        return f"{name} was not finite in {rounds}"
    margin = f" by more than {goal.min_delta:g}" if goal.min_delta else ""
    return f"{name} has not improved on {best:.6g} of round {since}{margin} in {rounds}"


def stop_notes(history: Iterable[RoundReport]) -> dict[str | None, str]:
    """By group why its training stopped before the last round; empty if it did not.

    history : oldest first.
    """
    return {report.group: report.stop_note for report in history}
