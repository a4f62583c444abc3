"""Asynchronous fusion (`aggregation: buffered`): its keys, and what goes with it."""

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from fedray.config.conditions import BUFFERED, MEANS
from fedray.config.declaration import MAX_COUNT, setting
from fedray.config.specs import Settings

LONGEST_S = 1e9  # of one training by the virtual clock: some thirty years
DEFAULT_SIZE, CONCURRENCY = 10, 10  # updates a step; times as many train at a time

SIZE = setting(
    "updates with which the aggregator makes a step",
    unset="10, or all parties where there are fewer", ge=1, le=MAX_COUNT, rest=True,
    applies=BUFFERED)  # fmt: skip
AT_WORK = setting(
    "parties that train at any time",
    unset="10 times buffer_size, or all parties where there are fewer", ge=1,
    le=MAX_COUNT, rest=True, applies=BUFFERED)  # fmt: skip
STALENESS = setting(
    "weight of an update that is t steps old: sqrt: 1/sqrt(1+t); none: 1",
    rest=True, applies=BUFFERED)  # fmt: skip
MAX_STALENESS = setting(
    "steps after which an update is not fused any more",
    ge=0, le=MAX_COUNT, rest=True, applies=BUFFERED)  # fmt: skip
LEASE = setting(
    "time after which a party that was asked is given up and another one is asked",
    unit="seconds", unset="round_timeout_s", gt=0, rest=True, resume=True,
    applies=BUFFERED)  # fmt: skip
NORMALISE = setting(
    "what the sum of the weighted steps is divided by: their weights, or their count",
    rest=True, applies=BUFFERED)  # fmt: skip
CLOCK = setting(
    "simulated times of the parties' trainings, which decide who sends when",
    unset="the parties' real times", applies=BUFFERED)  # fmt: skip


def _check_slow(value: Any) -> Any:
    if value is None:
        return value
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    numbers = tuple(value) if is_pair else ()
    if numbers and all(type(n) in (int, float) for n in numbers):
        share, factor = map(float, numbers)
        if 0 <= share <= 1 and 1 <= factor <= LONGEST_S:
            return share, factor
    needed = "a share of the parties from 0 to 1 and a factor from 1 on are needed"
    raise PydanticCustomError("slow", f"{needed}, like [0.1, 20]")


class VirtualClockSpec(Settings):
    """How long parties train in a simulation: times are log-normal."""

    median_s: Annotated[
        float, setting("median of a training's time", unit="virtual seconds",
                       gt=0, le=LONGEST_S)] = 1.0  # fmt: skip
    sigma: Annotated[
        float, setting("deviation of the logarithm of the times; 0: all alike",
                       ge=0, le=10)] = 0.5  # fmt: skip
    slow: Annotated[
        tuple[float, ...] | None,
        BeforeValidator(_check_slow),
        setting("[share, factor]: share of the parties that take factor times as long",
                unset="none")] = None  # fmt: skip
    lost: Annotated[
        float, setting("share of the updates that never come",
                       ge=0, le=0.9)] = 0.0  # fmt: skip


ASYNCHRONOUS = "aggregation: buffered"
NO_PLACE = {  # keys that must have their default, and why
    "party_fraction": "concurrency says how many train at a time",
    "over_select": "nobody waits for the last ones of a round",
    "quorum": "a step is made of buffer_size updates, however long they take",
    "deadline_s": "there is no round to close: lease_s is what a party has",
    "late": "every update that comes later counts by its staleness",
    "attack": "simulated attacks are laid over updates of one round",
    "personal": "a party's own layers belong to its last round, and an update may be "
    "lost or dropped after they have moved",
    "ditto_lambda": "own models train once a round, and parties are asked at any time",
}


def buffered_problems(config: Any, unread: Collection[str]) -> list[str]:
    """Keys that do not go with asynchronous fusion.

    config : a `FederationKeys`, which this file comes before.
    unread : keys that could not be read.
    """
    if config.aggregation != "buffered":
        return []
    fields = type(config).model_fields
    problems = [
        f"{key} does not go with {ASYNCHRONOUS}: {why}; leave it out"
        for key, why in NO_PLACE.items()
        if key not in unread and getattr(config, key) != fields[key].default
    ]
    rule = config.fusion_algorithm
    if rule not in MEANS and "fusion_algorithm" not in unread:
        problems.append(
            f"{ASYNCHRONOUS} does not go with fusion_algorithm: {rule}: its updates "
            "are trained from different weights, and only a mean can weigh them; take "
            f"one of {', '.join(MEANS)}"
        )
    if config.takes_documents:
        problems.append(
            f"{ASYNCHRONOUS} does not go with model_type: doc2vec, whose rows are "
            "added up over all parties of a round"
        )
    return problems + _count_problems(config, unread) + _time_problems(config)


def _count_problems(config: Any, unread: Collection[str]) -> list[str]:
    """More updates in a step, or parties at work, than there are parties."""
    n_parties = config.fewest_parties
    if n_parties is None or {"parties", "partition", "num_parties"} & set(unread):
        return []
    whose = "of the smallest group " if config.groups is not None else ""
    return [
        f"{key} is {value}, but there are {n_parties} parties {whose}{why}: give at "
        f"most {n_parties}"
        for key, why in {
            "buffer_size": "and each sends one update a step",
            "concurrency": "to train at a time",
        }.items()
        if (value := getattr(config, key)) is not None and value > n_parties
    ]


def _time_problems(config: Any) -> list[str]:
    """Times that are never reached, and simulated parties without a clock."""
    problems, lease, timeout = [], config.lease_s, config.round_timeout_s
    if config.virtual_clock is None and config.partition is not None:
        problems.append(
            f"{ASYNCHRONOUS} with a partition needs virtual_clock: its parties share "
            "processes, so that real times say nothing of them; give virtual_clock: "
            "{median_s: 1, sigma: 0.5}, or list parties"
        )
    if config.virtual_clock is None and lease is not None and lease > timeout:
        problems.append(
            f"lease_s: {lease:g} has no effect with round_timeout_s: {timeout:g}: a "
            "party is restarted then; give a shorter one, or raise round_timeout_s"
        )
    return problems


def step_size(config: Any, n_parties: int) -> int:
    """Updates with which a step is made, of so many parties that are there."""
    return min(config.buffer_size or DEFAULT_SIZE, n_parties)


def n_at_work(config: Any, n_parties: int) -> int:
    """Parties that train at any time, of so many that are there."""
    size = step_size(config, n_parties)
    return min(config.concurrency or CONCURRENCY * size, n_parties)


def lease_of(config: Any) -> float:
    """How long a party has, from being asked to its report; seconds."""
    return config.lease_s or config.round_timeout_s
