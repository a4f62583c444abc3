"""Actors that are lent to one run after another: what a run has of them.

A run's own actors are started for it, have names of its own and end with it. Lent ones
wait for the next run, with Python and a framework imported: starting three processes
takes longer than a short run's rounds. See `fedray.federation.shared_actors`.
"""

import contextlib
import fcntl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle

from fedray import models
from fedray.aggregator.aggregator import Aggregator
from fedray.aggregator.frozen_tensors import Starts
from fedray.aggregator.party_actors import LentParty
from fedray.aggregator.startup import NAMES_FREE_S, AggregatorPlan
from fedray.errors import PlacementError
from fedray.messages import Progress
from fedray.placement import ActorPool


class AggregatorHost:
    """Holds the aggregator of one run at a time.

    Calls name the run by a key, since Ray may make them before `run`, where it repeats
    that after a crash.
    """

    def __init__(self) -> None:
        self._key = ""
        self._aggregator: Any = None  # Ray's stubs take its methods for remote ones
        self._stopped: dict[str, bool] = {}  # by key: after the round under way?
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return repr(getattr(self, "_aggregator", None) or "aggregator:idle")

    def prepare(self, model_type: str) -> None:
        """Import the framework of a type of model, ahead of the first run."""
        models.named(model_type)

    def run(
        self,
        key: str,
        plan: AggregatorPlan,
        pools: list[ActorPool],
        actors: Mapping[str, LentParty],
        starts: Starts,
    ) -> None:
        """Train a run to its last round, or go on with it; as `Aggregator.run`."""
        with only_aggregator(Path(plan.folder)):
            aggregator: Any = Aggregator(plan, pools, actors)
            with self._lock:
                self._key, self._aggregator = key, aggregator
                if key in self._stopped:
                    aggregator.stop(self._stopped[key])
            aggregator.run(starts)

    @ray.method(concurrency_group="control")
    def progress(self, key: str, n_seen: int) -> Progress | None:
        """As `Aggregator.progress`; None where the run has not begun here."""
        with self._lock:
            aggregator = self._aggregator if key == self._key else None
        return aggregator.progress(n_seen) if aggregator else None

    @ray.method(concurrency_group="control")
    def stop(self, key: str, after_round: bool = False) -> None:
        """As `Aggregator.stop`."""
        with self._lock:
            self._stopped[key] = after_round
            if key == self._key and self._aggregator is not None:
                self._aggregator.stop(after_round)

    @ray.method(concurrency_group="control")
    def release(self) -> None:
        """Let go of the aggregator of a run that has ended."""
        with self._lock:
            self._key, self._aggregator = "", None


@contextlib.contextmanager
def only_aggregator(folder: Path) -> Iterator[None]:
    """Wait until no other process writes a run's rounds: one whose driver was killed.

    A run's own actor has a name for that, of which Ray has one alone.

    Raises
    ------
    PlacementError
        If it goes on.
    """
    until = time.monotonic() + NAMES_FREE_S
    with (folder / ".aggregator").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    wanted, at = "a folder that no other one writes", str(folder)
                    raise PlacementError("the aggregator", wanted, at) from None
            time.sleep(0.2)
        yield


class LentAggregator:
    """The methods of a run's aggregator, of an `AggregatorHost`."""

    def __init__(
        self,
        host: ActorHandle,
        key: str,
        plan: AggregatorPlan,
        pools: list[ActorPool],
        parties: Mapping[str, LentParty],
    ):
        self.run = BoundCall(host.run.remote, key, plan, pools, parties)
        self.progress = BoundCall(host.progress.remote, key)
        self.stop = BoundCall(host.stop.remote, key)


class BoundCall:
    """A method of an actor whose first arguments are given."""

    def __init__(self, remote: Callable[..., ObjectRef], *arguments: Any):
        self.remote = partial(remote, *arguments)
