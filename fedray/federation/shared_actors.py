"""Actors that are lent to one run after another, for sweeps.

A run of its own starts three processes or more, in which Python and a framework are
imported and data is read. That takes longer than many a small run's rounds. Here this
is done once: a run is lent the actors, and gives them back when its rounds are over.
"""

import contextlib
import functools
import math
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle

from fedray import models, placement
from fedray.aggregator import (
    AggregatorHost,
    AggregatorPlan,
    LentAggregator,
    LentParty,
    group_plan,
)
from fedray.checkpoint import RunFolder
from fedray.config import FederationConfig
from fedray.federation.actors import (
    GROUPS,
    POLL_S,
    Watch,
    errors_of_ray,
    placement_poll,
    startup_progress,
    stopped,
    wait_for_rounds,
)
from fedray.party import PartyHost
from fedray.placement import ActorPool, MemoryDeaths, Placement, StoredObject

RELEASE_S = 10.0  # for an actor to let go of a run; one that still trains is ended
RESOURCE_STEPS = 10_000  # of a core or GPU, that Ray counts
Kind = tuple[Any, ...]  # of actors that may stand in for each other


def can_share(config: FederationConfig) -> bool:
    """Whether a run may have actors that others had before.

    Not one whose memory is limited, which a process cannot take back, whose parties
    keep keys of secure sums or are edges, or whose class of the user's own trains as it
    likes.
    """
    types = {config.model_type, *(party.model_type for party in config.parties)}
    has_own_class = not types <= {*models.MODELS, None}
    has_own_actors = config.secure_aggregation or config.has_edges
    return not (config.max_memory or has_own_actors or has_own_class)


@dataclass
class Host:
    """An actor to be lent.

    kind : node and resources; of an aggregator's nothing.
    last : name of the party that it was lent for, whose data it has.
    """

    actor: ActorHandle
    kind: Kind
    last: str = ""


class SharedActors:
    """Lends actors to runs of one connection to Ray.

    n_side_by_side : runs that have their rounds at a time; they share cores and GPUs.
    """

    def __init__(self, n_side_by_side: int):
        self.n_side_by_side = n_side_by_side
        self._slots = threading.Semaphore(n_side_by_side)
        self._lock = threading.Lock()
        self._idle: defaultdict[Kind, list[Host]] = defaultdict(list)

    def prepare(self, config: FederationConfig) -> None:
        """Start the actors for runs like this one, ahead of them."""
        pools = placement.place_federation(config, placement.nodes())
        for _ in range(self.n_side_by_side):
            hosts = [self._start_aggregator()]
            for pool in pools:
                hosts += [self._start_party(pool.placement) for _ in pool.actors]
            for host in hosts:
                host.actor.prepare.remote(config.model_type)
                self._idle[host.kind].append(host)

    def run(
        self, plan: AggregatorPlan, start_ref: ObjectRef, watch: Watch, may_join: bool
    ) -> None:
        """As `run_actors`, with actors that are lent; waits for this run's turn."""
        with errors_of_ray(plan), self._turn(plan, watch):
            wait_s = plan.config.placement_timeout_s if may_join else 0
            first_round = RunFolder(Path(plan.folder)).last_saved_round() + 1
            poll = placement_poll(plan, watch)
            pools = placement.wait_for_placement(wait_s, plan.config, first_round, poll)
            with self._lent(plan, pools, watch) as (aggregator, deaths):
                wait_for_rounds(aggregator, plan, start_ref, watch, deaths)

    def end(self) -> None:
        """End all actors that wait."""
        for hosts in self._idle.values():
            for host in hosts:
                ray.kill(host.actor)
        self._idle.clear()

    @contextlib.contextmanager
    def _turn(self, plan: AggregatorPlan, watch: Watch) -> Iterator[None]:
        """Wait until fewer runs than may be have their rounds."""
        started = time.monotonic()
        while not self._slots.acquire(timeout=POLL_S):
            waited_s = time.monotonic() - started
            try:
                watch(startup_progress("waiting for its turn", plan, waited_s))
            except KeyboardInterrupt:
                raise stopped(plan) from None
        try:
            yield
        finally:
            self._slots.release()

    @contextlib.contextmanager
    def _lent(
        self, plan: AggregatorPlan, pools: list[ActorPool], watch: Watch
    ) -> Iterator[tuple[LentAggregator, MemoryDeaths]]:
        """A run's actors, which are taken back afterwards.

        After an error they are ended: nobody knows what they are at.
        """
        key, hosts = uuid.uuid4().hex, list[Host]()
        is_done = False
        try:
            parties = dict(self._lend_parties(plan, pools, key, hosts))
            hosts.append(self._lend_aggregator())
            wait_s, poll = plan.config.placement_timeout_s, placement_poll(plan, watch)
            try:
                placement.wait_until_ready(parties, pools, wait_s, poll)
            except KeyboardInterrupt:
                raise stopped(plan) from None
            names = [*(f"party {name}" for name in parties), "the aggregator"]
            actors = dict(zip(names, (host.actor for host in hosts), strict=True))
            yield (
                LentAggregator(hosts[-1].actor, key, plan, pools, parties),
                MemoryDeaths(plan.run, actors),
            )
            is_done = True
        finally:
            self._take_back(hosts, is_done)

    def _lend_parties(
        self, plan: AggregatorPlan, pools: list[ActorPool], key: str, hosts: list[Host]
    ) -> Iterator[tuple[str, LentParty]]:
        """Each actor of a run's pools; adds to `hosts`."""
        kinds = {_kind_of(pool.placement) for pool in pools}
        self._end_others(kinds)
        for pool in pools:
            for name in pool.actors:
                host = self._take_idle(_kind_of(pool.placement), name)
                host = host or self._start_party(pool.placement)
                host.last = name
                hosts.append(host)
                read_plan = StoredObject(ray.put(group_plan(plan, pool, name)))
                yield name, LentParty(host.actor, f"{key}/{name}", read_plan)

    def _lend_aggregator(self) -> Host:
        return self._take_idle((), "") or self._start_aggregator()

    def _take_idle(self, kind: Kind, name: str) -> Host | None:
        """One that waits; if there is a choice, one that has this party's data."""
        with self._lock:
            idle = self._idle[kind]
            if not idle:
                return None
            same = (i for i, host in enumerate(idle) if host.last == name)
            return idle.pop(next(same, 0))

    def _end_others(self, kinds: set[Kind]) -> None:
        """End actors that wait and reserve what those of other kinds need."""
        with self._lock:
            others = [k for k in self._idle if k and k not in kinds]
            hosts = [host for kind in others for host in self._idle.pop(kind)]
        for host in hosts:
            ray.kill(host.actor)

    def _start_party(self, place: Placement) -> Host:
        """Start an actor that reserves its part of what a run's own would."""
        options = place.options() | {
            "num_cpus": _share(place.n_cpus, self.n_side_by_side),
            "num_gpus": _share(place.n_gpus, self.n_side_by_side),
        }
        # the node is a hint alone: lent actors of a node stay within its resources
        actor = ray.remote(PartyHost).options(
            max_restarts=-1, max_task_retries=3, **options
        )
        locate = functools.partial(placement.locate_lent_actor, place.n_cpus)
        handle: Any = actor.remote(locate)
        return Host(handle, _kind_of(place))

    def _start_aggregator(self) -> Host:
        # Ray's stubs do not know concurrency_groups
        remote = ray.remote(concurrency_groups=GROUPS)  # type: ignore[call-overload]
        here = ray.get_runtime_context().get_node_id()
        actor = remote(AggregatorHost).options(
            max_restarts=-1, max_task_retries=10, **placement.node_affinity(here)
        )
        return Host(actor.remote(), ())

    def _take_back(self, hosts: list[Host], is_done: bool) -> None:
        releases: Mapping[ObjectRef, Host] = {}
        if is_done:
            releases = {host.actor.release.remote(): host for host in hosts}
        pending = list(releases)
        ready, _ = (
            ray.wait(pending, num_returns=len(pending), timeout=RELEASE_S)
            if pending
            else ([], [])
        )
        idle = [releases[ref] for ref in ready]
        for host in hosts:
            if host not in idle:
                ray.kill(host.actor)
        with self._lock:
            for host in idle:
                self._idle[host.kind].append(host)


def _kind_of(place: Placement) -> Kind:
    labels = tuple(sorted(place.labels.items()))
    return place.node_id, labels, place.n_cpus, place.n_gpus


def _share(n: float, parts: int) -> float:
    """A part of some cores or GPUs as Ray counts them: of more than one whole ones."""
    part = n / parts
    if part >= 1:
        return math.floor(part)
    return math.floor(part * RESOURCE_STEPS) / RESOURCE_STEPS
