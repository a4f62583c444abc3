"""ReduceLROnPlateau: the learning rate falls where a metric improves no more.

Decided by the aggregator after each evaluated round, from the state of the round before
alone. The state stands in the round's line and checkpoint, so that a resumed run
decides the same.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from fedray.config.goals import goal_name, mode_of
from fedray.config.schedulers import ReduceLROnPlateau
from fedray.messages import RoundReport


class Plateau(NamedTuple):
    """State after a round.

    start : the config's learning rate, from which it falls.
    learning_rate : of the rounds that come.
    best : the metric's best value; None: it was never measured.
    n_bad : evaluated rounds without improvement since then, or since the last fall.
    n_cooldown : evaluated rounds that still do not count.
    """

    start: float
    learning_rate: float
    best: float | None = None
    n_bad: int = 0
    n_cooldown: int = 0


def restore_plateau(state: Mapping[str, Any] | None, learning_rate: float) -> Plateau:
    """The state that a round's line holds; from the start without one.

    learning_rate : of the config. Where it is another than before, it is taken.
    """
    if state is None:
        return Plateau(learning_rate, learning_rate)
    plateau = Plateau(**state)
    if plateau.start == learning_rate:
        return plateau
    return Plateau(learning_rate, learning_rate, plateau.best)


def plateau_rates(reports: Iterable[RoundReport]) -> dict[int, float]:
    """The rate that each round was trained by, of rounds that the plateau decided on.

    reports : of one global model, in order.
    """
    rates, before = dict[int, float](), None
    for report in reports:
        if report.plateau is not None:
            start = report.plateau["start"]
            rates[report.round] = restore_plateau(before, start).learning_rate
            before = report.plateau
    return rates


def next_plateau(
    schedule: ReduceLROnPlateau, plateau: Plateau, report: RoundReport
) -> Plateau:
    """The state after a round, as torch's ReduceLROnPlateau goes on.

    report : of the round; one that was not evaluated changes nothing.
    """
    value = report.number_of(goal_name(schedule))
    if value is None:
        return plateau
    best, n_bad, n_cooldown = plateau.best, plateau.n_bad + 1, plateau.n_cooldown
    if is_improved(schedule, value, best):
        best, n_bad = value, 0
    if n_cooldown:
        n_bad, n_cooldown = 0, n_cooldown - 1
    rate = plateau.learning_rate
    if n_bad > schedule.patience:
        lower = max(rate * schedule.factor, schedule.min_lr)
        rate = lower if rate - lower > schedule.eps else rate
        n_bad, n_cooldown = 0, schedule.cooldown
    return Plateau(plateau.start, rate, best, n_bad, n_cooldown)


def is_improved(schedule: ReduceLROnPlateau, value: float, best: float | None) -> bool:
    """Whether a value is better than the best so far by more than the threshold."""
    if best is None:
        return value == value  # not NaN
    sign = 1 if mode_of(schedule) == "max" else -1
    if schedule.threshold_mode == "rel":
        needed = best * (1 + sign * schedule.threshold)
    else:
        needed = best + sign * schedule.threshold
    return sign * (value - needed) > 0
