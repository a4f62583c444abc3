"""Asynchronous fusion (FedBuff): who is asked next, and when simulated parties answer.

A *version* is the number of steps that the global weights have taken; a *lease* asks a
party for one update from the weights of a version. Pure: no clock but a virtual one.

Source: Nguyen et al. 2022 (FedBuff), arXiv:2106.06639, Algorithm 1.
"""

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from fedray.config import FederationConfig, VirtualClockSpec, lease_of, n_at_work
from fedray.policy.selection import SELECTIONS, seed_for

MOST_LEASES = 20  # of a party that are over in one step; then it is not asked again


class Leases:
    """Which parties are at work, and who is asked next: one global model's.

    A party has one lease at a time and sends one update in a step. It is drawn from
    those that may be asked, by (seed, number of draws), so that the same parties are
    drawn again after a crash.

    group : name of the parties' group, which has draws of its own; empty: of all.
    version_of : of those at work, by place in the config.
    n_draws : until now.
    """

    def __init__(self, config: FederationConfig, group: str = ""):
        self.config, self.group = config, group
        self.version_of: dict[int, int] = {}
        self.n_draws = 0
        self._candidates = np.zeros(0, np.int64)
        self._over = Counter[int]()  # by place: leases that were over in this step
        self._ended: set[int] = set()  # who sends no more in this step

    def begin_step(self, candidates: np.ndarray) -> list[int]:
        """Begin a step in which these parties may be asked; who at work has left.

        candidates : ascending places in the config.
        """
        self._candidates = candidates
        self._over.clear()
        self._ended.clear()
        leavers = sorted(self.version_of.keys() - set(candidates.tolist()))
        for place in leavers:
            del self.version_of[place]
        return leavers

    def draw(self, version: int, busy: Collection[int] = ()) -> list[int]:
        """Ask parties for updates from a version, until `concurrency` are at work.

        busy : who cannot be asked yet.
        """
        wanted = n_at_work(self.config, len(self._candidates)) - len(self.version_of)
        if wanted <= 0:
            return []
        unavailable = [*self.version_of, *self._ended, *busy]
        free = np.setdiff1d(self._candidates, unavailable, assume_unique=True)
        if not len(free):
            return []
        seed = seed_for(self.config.seed, 0, f"leases of {self.group}")
        select = SELECTIONS[self.config.selection]
        places = select(free, wanted, seed, self.n_draws).tolist()
        self.n_draws += 1
        self.version_of |= dict.fromkeys(places, version)
        return places

    def end(self, place: int) -> None:
        """A party has sent its update of this step, or fails: it is asked no more."""
        self.version_of.pop(place, None)
        self._ended.add(place)

    def give_up(self, place: int) -> None:
        """A party's lease is over without an update that counts."""
        self.version_of.pop(place, None)
        self._over[place] += 1
        if self._over[place] >= MOST_LEASES:
            self._ended.add(place)


class Arrival(NamedTuple):
    """What becomes of a lease, at a time of the virtual clock.

    number : of the lease; in this order where times are equal.
    is_lost : no update comes; the lease is over then.
    """

    at_s: float
    number: int
    place: int
    version: int
    is_lost: bool


class VirtualClock:
    """Simulated times of trainings: log-normal, some parties slower, some lost.

    Every lease has numbers of its own, drawn from (seed, number of the lease), so that
    nothing depends on real time.

    slow : places of the parties that take longer.
    group : as of `Leases`.
    now_s : time of the last arrival.
    """

    def __init__(
        self, config: FederationConfig, slow: Collection[int] = (), group: str = ""
    ):
        self.spec = config.virtual_clock or VirtualClockSpec()
        self.lease_s, self.slow = lease_of(config), frozenset(slow)
        self.seed = seed_for(config.seed, 0, f"virtual clock of {group}")
        self.now_s, self.n_leases = 0.0, 0
        self._arrivals: list[Arrival] = []

    def time_of(self, place: int, number: int) -> tuple[float, bool]:
        """Virtual seconds that a training takes, and whether its update is lost."""
        rng = np.random.default_rng([self.seed, number])
        seconds = self.spec.median_s * float(
            np.exp(self.spec.sigma * rng.standard_normal())
        )
        if self.spec.slow is not None and place in self.slow:
            seconds *= self.spec.slow[1]
        return seconds, bool(rng.random() < self.spec.lost)

    def start(self, place: int, version: int) -> None:
        """A party begins now to train from a version."""
        seconds, is_lost = self.time_of(place, self.n_leases)
        is_lost |= seconds > self.lease_s
        ends_s = self.now_s + (self.lease_s if is_lost else seconds)
        arrival = Arrival(ends_s, self.n_leases, place, version, is_lost)
        heapq.heappush(self._arrivals, arrival)
        self.n_leases += 1

    def next_arrival(self) -> Arrival | None:
        """Go to the next end of a lease; None if nobody is at work."""
        if not self._arrivals:
            return None
        arrival = heapq.heappop(self._arrivals)
        self.now_s = arrival.at_s
        return arrival

    def discard(self, places: Collection[int]) -> None:
        """Parties have left; what they train does not come."""
        rest = [one for one in self._arrivals if one.place not in places]
        heapq.heapify(rest)
        self._arrivals = rest

    @property
    def arrivals(self) -> list[Arrival]:
        """What is still to come, in its order."""
        return sorted(self._arrivals)

    def restore(self, now_s: float, n_leases: int, rest: Iterable[Arrival]) -> None:
        """Go on from an earlier time."""
        self.now_s, self.n_leases = now_s, n_leases
        self._arrivals = list(rest)
        heapq.heapify(self._arrivals)


def slow_parties(config: FederationConfig, parties: np.ndarray) -> list[int]:
    """Places of those that are slow by the virtual clock: always the same ones.

    parties : places in the config of all that share a model.
    """
    clock = config.virtual_clock
    if clock is None or clock.slow is None:
        return []
    n_slow = int(np.floor(clock.slow[0] * len(parties) + 0.5))
    rank = {
        place: seed_for(config.seed, 0, f"slow: {config.party_name(place)}")
        for place in parties.tolist()
    }
    return sorted(sorted(rank, key=lambda place: rank[place])[:n_slow])


class Simulation:
    """Leases by the virtual clock: which updates come next, before any is trained.

    n_expired : leases that were over in this step.
    """

    def __init__(self, leases: Leases, clock: VirtualClock):
        self.leases, self.clock = leases, clock
        self.n_expired = 0

    def begin_step(self, candidates: np.ndarray) -> None:
        """Begin a step in which these parties may be asked."""
        self.n_expired = 0
        self.clock.discard(self.leases.begin_step(candidates))

    def next_updates(
        self, count: int, version: int
    ) -> tuple[list[Arrival], list[Arrival]]:
        """Let time go on until so many updates have come, or no more can.

        version : of the weights now.

        Returns
        -------
        Updates that may be fused, in the order in which they come; and all else that
        ended: leases that were over, updates that are too stale.
        """
        updates: list[Arrival] = []
        others: list[Arrival] = []
        most = self.leases.config.max_staleness
        while len(updates) < count:
            for place in self.leases.draw(version):
                self.clock.start(place, version)
            arrival = self.clock.next_arrival()
            if arrival is None:
                break
            if arrival.is_lost or version - arrival.version > most:
                self.leases.give_up(arrival.place)
                self.n_expired += arrival.is_lost
                others.append(arrival)
            else:
                self.leases.end(arrival.place)
                updates.append(arrival)
        return updates, others

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All that a resumed run needs to go on with the same bits."""
        rest = self.clock.arrivals
        return {
            "counts": np.array([self.leases.n_draws, self.clock.n_leases], np.int64),
            "now_s": np.array(self.clock.now_s),
            "place": np.array([one.place for one in rest], np.int64),
            "version": np.array([one.version for one in rest], np.int64),
            "at_s": np.array([one.at_s for one in rest], np.float64),
            "number": np.array([one.number for one in rest], np.int64),
            "is_lost": np.array([one.is_lost for one in rest], bool),
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from what `to_arrays` gave."""
        names = ("at_s", "number", "place", "version", "is_lost")
        columns = [arrays[name].tolist() for name in names]
        rest = [Arrival(*row) for row in zip(*columns, strict=True)]
        n_draws, n_leases = arrays["counts"].tolist()
        self.clock.restore(float(arrays["now_s"]), n_leases, rest)
        self.leases.n_draws = n_draws
        self.leases.version_of = {one.place: one.version for one in rest}
