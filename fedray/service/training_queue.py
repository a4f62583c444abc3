"""Which waiting trainings may start: a fair order of clients, within limits.

A training takes processes and memory as long as it runs. Where there is no room for all
of them they take turns: the client that trains least is first, then the one whose last
turn is longest ago, then the oldest training. One that fits nowhere yet may be
overtaken by smaller ones, `MAX_OVERTAKEN` times: after that no other starts before it.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MAX_OVERTAKEN = 16  # trainings that may start before one that has waited for longer
NEVER = 0.0  # seconds since 1970


@dataclass(frozen=True)
class Demand:
    """What a training takes while it runs; as a limit, the most that may be taken."""

    trainings: int = 1
    parties: int = 0  # processes
    memory: int = 0  # bytes

    def __add__(self, other: "Demand") -> "Demand":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Demand(*(a + b for a, b in pairs))

    def excess(self, most: "Demand") -> str | None:
        """The first field that is more than in `most`; None: it fits."""
        for name, value in dataclasses.asdict(self).items():
            if value > getattr(most, name):
                return name
        return None


NOTHING, ONE = Demand(trainings=0), Demand(trainings=1)


@dataclass(frozen=True)
class Training:
    """A training that waits for its turn, runs or has run.

    waits_since, started : seconds since 1970; `started` is None while it waits.
    """

    id: str
    client: str | None
    demand: Demand
    waits_since: float
    started: float | None = None
    is_running: bool = False

    @property
    def is_waiting(self) -> bool:
        """Whether it has yet to start."""
        return self.started is None


def next_trainings(
    trainings: Iterable[Training], client_limit: Demand, total_limit: Demand
) -> list[Training]:
    """The waiting trainings that may start now, in the order of their turns.

    trainings : all that are known; those that have ended say who had a turn when.
    """
    trainings = list(trainings)
    waiting = [one for one in trainings if one.is_waiting]
    used, last_turns = usage_by_client(trainings), _last_turns(trainings)
    chosen: list[Training] = []

    def turn(one: Training) -> tuple[int, float, float, str]:
        n_running = used[one.client].trainings
        return n_running, last_turns[one.client], one.waits_since, one.id

    while waiting and sum(used.values(), ONE).excess(total_limit) != "trainings":
        one = min(waiting, key=turn)
        waiting.remove(one)
        lacks_own = (used[one.client] + one.demand).excess(client_limit)
        lacks_room = lacks_own or sum(used.values(), one.demand).excess(total_limit)
        if not lacks_room:
            chosen.append(one)
            used[one.client] += one.demand
            last_turns[one.client] = float("inf")
        elif lacks_own == "trainings" or (lacks_own and _is_due(one, trainings)):
            waiting = [other for other in waiting if other.client != one.client]
        elif not lacks_own and _is_due(one, trainings):
            break
    return chosen


def _is_due(one: Training, trainings: Iterable[Training]) -> bool:
    """Whether a waiting training may not be overtaken any more."""
    return n_overtaken(one, trainings) >= MAX_OVERTAKEN


def _last_turns(trainings: Iterable[Training]) -> dict[str | None, float]:
    """When a training of each client started last."""
    last: dict[str | None, float] = defaultdict(lambda: NEVER)
    for one in trainings:
        last[one.client] = max(last[one.client], one.started or NEVER)
    return last


def usage_by_client(trainings: Iterable[Training]) -> dict[str | None, Demand]:
    """What each client's running trainings take; nothing for all others."""
    used: dict[str | None, Demand] = defaultdict(lambda: NOTHING)
    for one in trainings:
        if one.is_running:
            used[one.client] += one.demand
    return used


def n_overtaken(one: Training, trainings: Iterable[Training]) -> int:
    """How many trainings came later than this waiting one, and started before it."""
    return sum(
        other.started is not None
        and other.waits_since > one.waits_since
        and other.started > one.waits_since
        for other in trainings
    )


def find_excess(
    demand: Demand, limits: Mapping[str, Demand]
) -> tuple[str, str, int] | None:
    """A limit that a training exceeds by itself, so that its turn would never come.

    limits : by name, such as "client" and "total".

    Returns
    -------
    Name of the limit, name of the field and its most; None: it fits.
    """
    for name, most in limits.items():
        if field := demand.excess(most):
            return name, field, getattr(most, field)
    return None
