"""The actors that hold the parties, and hearing from them."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from fedray import policy
from fedray.errors import PartyError
from fedray.messages import PartyInfo, Report
from fedray.placement import ActorPool
from fedray.weights import Weights, encoding

POLL_S = 0.25  # how soon a stop is noticed
Who = TypeVar("Who")


def party_actor(run: str, name: str) -> str:
    """Name on the cluster of a party's actor, or of one that several share."""
    return f"party:{run}:{name}"


@dataclass(frozen=True, eq=False)
class Part:
    """What one actor is asked to train in a round.

    parties : ascending places in the config.
    is_single : the actor has one party, whose update comes as the party made it.
    """

    actor: str
    node: str  # of its seat
    parties: np.ndarray
    is_single: bool


@dataclass
class Crew:
    """The actors, where each was last seen, and where the aggregator sits."""

    run: str
    here: str
    pools: list[ActorPool]
    actors: dict[str, ActorHandle]
    nodes: dict[str, str] = field(default_factory=dict)  # of actors that have joined
    processes: dict[str, str] = field(default_factory=dict)  # theirs, likewise
    n_test: dict[str, int] = field(default_factory=dict)
    n_train: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    working: dict[str, float] = field(default_factory=dict)  # share of a training done
    stop: threading.Event = field(default_factory=threading.Event)

    def heard(self, name: str, answer: PartyInfo | Report) -> bool:
        """Note what an actor says of itself; was it restarted since the last time?"""
        self.working.pop(name, None)
        before = self.processes.get(name, answer.process)
        self.nodes[name], self.processes[name] = answer.node, answer.process
        if isinstance(answer, PartyInfo):
            self.n_test[name] = answer.n_test
        return answer.process != before

    def seat(self, pool: ActorPool, actor: ActorHandle) -> None:
        """Take in a party that joins: the last one of the config."""
        self.pools.append(pool)
        self.actors[pool.actors[0]] = actor

    def dismiss(self, name: str) -> None:
        """End the actor of a party that has left, if it has one still."""
        if name in self.actors:
            ray.kill(self.actors.pop(name))
            self.pools = [pool for pool in self.pools if name not in pool.actors]
            for known in (self.nodes, self.processes, self.n_test, self.working):
                known.pop(name, None)

    def seated(self, places: np.ndarray) -> np.ndarray:
        """Those of some places whose party has an actor."""
        seats = [np.array(pool.parties) for pool in self.pools]
        return places[np.isin(places, np.concatenate([places[:0], *seats]))]

    def slowest(self, n: int) -> dict[str, float]:
        """Actors that have told how far their training is, the last `n`."""
        told = sorted(self.working.copy().items(), key=lambda item: item[1])
        return dict(told[:n])

    def restart(self, name: str, call: ObjectRef) -> None:
        """Kill an actor that hangs; Ray starts it anew on its node."""
        ray.cancel(call)  # or Ray would run the hanging call again after the restart
        ray.kill(self.actors[name], no_restart=False)

    def deal(self, chosen: np.ndarray) -> list[Part]:
        """Give the chosen parties to their pools' actors, in config order."""
        parts = []
        for pool in self.pools:
            ends = np.searchsorted(chosen, [pool.parties.start, pool.parties.stop])
            mine = chosen[slice(*ends)]
            sizes = np.maximum(1, self.n_train[mine])  # 0: it has not joined yet
            runs = policy.split_by_load(sizes, len(pool.actors))
            for name, run in zip(pool.actors, runs, strict=True):
                if len(mine[run]):
                    is_single = len(pool.parties) == 1
                    node = pool.placement.node_id
                    parts.append(Part(name, node, mine[run], is_single))
        return parts

    def examiners(
        self, parties: np.ndarray | None = None
    ) -> Iterator[tuple[str, tuple[int, int], np.ndarray | None]]:
        """Actors that may have test samples; which of their pool's parts is whose.

        parties : those whose samples are wanted; None: everyone's.
        """
        for pool in self.pools:
            mine = None
            if parties is not None:
                mine = parties[np.isin(parties, np.array(pool.parties))]
                if not len(mine):
                    continue
            for i, name in enumerate(pool.actors):
                if self.n_test.get(name, 1):
                    yield name, (i, len(pool.actors)), mine


def living(
    run: str, pools: list[ActorPool], are_some_gone: bool
) -> tuple[list[ActorPool], dict[str, ActorHandle]]:
    """Sites, and their actors by name; without those whose actors were ended."""
    there, actors = [], {}
    for pool in pools:
        try:
            actors |= {n: ray.get_actor(party_actor(run, n)) for n in pool.actors}
        except ValueError:
            if not are_some_gone:
                raise
            continue
        there.append(pool)
    return there, actors


class Broadcast:
    """One version of the global weights, put in the store once as it travels.

    weights : what the aggregator goes on from: views of the store, not a copy, unless
        fewer bits travel than it keeps.
    """

    def __init__(self, weights: Weights, dtype: str):
        sent = encoding.pack(weights, dtype)
        self.ref = ray.put(sent)
        self.weights: Weights = ray.get(self.ref) if sent is weights else weights
        self.reached: set[str] = set()

    def arrived(self, node: str, size: int) -> int:
        """Bytes that a node pulled: `size` for its first actor, 0 for the others."""
        first = node not in self.reached
        self.reached.add(node)
        return size if first else 0


def answers(
    calls: dict[ObjectRef, Who], until: float, stop: threading.Event
) -> Iterator[tuple[Who, Any]]:
    """Yield (who, answer or error) as each call ends; takes them out of `calls`.

    Ends when all have answered, when `stop` is set, or at `until` (monotonic clock):
    what is there by then still counts, however long the caller was busy meanwhile.
    """
    while calls and not stop.is_set():
        left_s = max(0.0, until - time.monotonic())
        wait_s = min(POLL_S, left_s)
        done, _ = ray.wait(list(calls), timeout=wait_s, fetch_local=False)
        if not done and not left_s:
            return
        for ref in done:
            who = calls.pop(ref)
            try:
                answer = ray.get(ref)
            except RayError as error:
                answer = error
            yield who, answer


def reason(error: Exception) -> str:
    """One line about a call that failed."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, PartyError):
        return cause.why
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:500]}"
