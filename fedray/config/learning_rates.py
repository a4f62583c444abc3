"""Learning rates as pure functions of config, round and step: `rate_function`.

An optimizer is new in each round, so a scheduler object would begin anew, too. Here a
rate follows from how many rounds, or steps over all rounds, there were before: a round
that is trained again has the rates that it had.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

from pydantic import ValidationError

from fedray.config.mistakes import describe_unknown, problems_of
from fedray.config.schedulers import (
    BY_FLAT_NAME,
    REFUSED,
    REFUSED_ARGUMENTS,
    SCHEDULERS,
    SHORT_NAMES,
    Place,
    Schedule,
    flatten,
)
from fedray.errors import format_count

RateFunction = Callable[[int], float]  # of a step in the round, from 0


class ScheduledConfig(Protocol):
    """What a learning rate follows from."""

    @property
    def learning_rate(self) -> float | None: ...
    @property
    def rounds(self) -> int: ...
    @property
    def scheduler(self) -> str | None: ...
    @property
    def scheduler_args(self) -> dict[str, Any]: ...
    @property
    def scheduler_every(self) -> str: ...


def full_name(name: str) -> str:
    """A scheduler's name as `SCHEDULERS` has it: of ``step``, ``torch...StepLR``."""
    last = name.removeprefix("torch.").removeprefix("optim.")
    last = last.removeprefix("lr_scheduler.")
    return BY_FLAT_NAME.get(flatten(last), last)


def is_plateau(config: ScheduledConfig) -> bool:
    """Whether the aggregator decides on the rate."""
    return full_name(config.scheduler or "") == "ReduceLROnPlateau"


def schedule_of(config: ScheduledConfig) -> Schedule | None:
    """The scheduler of a config without mistakes; None: the rate stays as it is."""
    if config.scheduler is None:
        return None
    return SCHEDULERS[full_name(config.scheduler)](**config.scheduler_args)


def rate_function(
    config: ScheduledConfig, round: int, n_steps: int, base: float | None = None
) -> RateFunction:
    """The learning rate at each step (from 0) of a party's training in one round.

    Parameters
    ----------
    round : from 1.
    n_steps : that this party takes in each round.
    base : instead of the config's learning_rate: what the aggregator has decided on.
    """
    start = base if base is not None else config.learning_rate or 0.0
    schedule = schedule_of(config)
    if schedule is None:
        return lambda step: start
    if config.scheduler_every == "round":
        rate = schedule.rate(start, Place(round - 1, config.rounds))
        return lambda step: rate
    first, n_all = (round - 1) * n_steps, config.rounds * n_steps
    return lambda step: schedule.rate(start, Place(first + step, n_all, n_steps))


def schedule_problems(config: ScheduledConfig) -> list[str]:
    """Mistakes in scheduler and scheduler_args that show without data."""
    if config.scheduler is None:
        return []
    name = full_name(config.scheduler)
    if name in REFUSED:
        return [f"scheduler {name} {REFUSED[name]}: choose from {[*SCHEDULERS]}"]
    if name not in SCHEDULERS:
        choices = (*SCHEDULERS, *SHORT_NAMES)
        return [describe_unknown("scheduler", config.scheduler, choices)]
    if problems := _argument_problems(name, config.scheduler_args):
        return problems
    if name == "ReduceLROnPlateau" and config.scheduler_every == "step":
        return [
            "scheduler ReduceLROnPlateau goes by evaluated rounds: leave "
            "scheduler_every: step out"
        ]
    if config.scheduler_every == "step":
        return []  # how long the run is, each party knows
    return length_problems(config, 1)


def length_problems(config: ScheduledConfig, n_steps: int) -> list[str]:
    """Why the scheduler does not fit a run in which a party takes so many steps."""
    schedule = schedule_of(config)
    if schedule is None:
        return []
    if config.scheduler_every == "round":
        place, units = Place(0, config.rounds), format_count(config.rounds, "round")
    else:
        place = Place(0, config.rounds * n_steps, n_steps)
        units = f"{format_count(place.n_all, 'step')}, {n_steps:,} in each round"
    problem = schedule.problem(place) or _overflow(schedule, config, place)
    return [f"scheduler_args.{problem} ({units})"] if problem else []


def _overflow(schedule: Schedule, config: ScheduledConfig, place: Place) -> str:
    """That the rate grows past all numbers, if it does."""
    last = place._replace(n_before=place.n_all - 1)
    try:
        rate = schedule.rate(config.learning_rate or 1.0, last)
    except OverflowError:
        rate = math.inf
    too_high = "gamma: the learning rate is no number any more when the run ends"
    return "" if math.isfinite(rate) else too_high


def _argument_problems(name: str, args: dict[str, Any]) -> list[str]:
    """Unknown arguments of a scheduler, and values that cannot be."""
    kind, problems = SCHEDULERS[name], []
    names = list(kind.model_fields)
    unknown = [key for key in args if key not in names]
    for key in unknown:
        if key in REFUSED_ARGUMENTS:
            reason = REFUSED_ARGUMENTS[key]
            problems.append(f"scheduler_args.{key} is not taken: {reason}")
        else:
            what = f"argument of scheduler {name}"
            problems.append(describe_unknown(what, str(key), names))
    try:
        schedule = kind.model_validate(
            {k: v for k, v in args.items() if k not in unknown}
        )
    except ValidationError as error:
        return problems + [
            f"scheduler_args.{line}" for line in problems_of(error, kind)
        ]
    return problems + [f"scheduler_args.{flaw}" for flaw in [schedule.flaw] if flaw]
