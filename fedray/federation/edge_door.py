"""Tells the door of the edges, if one is open on the cluster, of a run with edges."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import ray
from ray.actor import ActorHandle

from fedray import placement
from fedray.aggregator import AggregatorPlan
from fedray.config import FederationConfig
from fedray.edges.protocol import DOOR_ACTOR, NAMESPACE
from fedray.edges.registry import Registry
from fedray.edges.roster import ENROLLED, Roster
from fedray.errors import FedrayError
from fedray.messages import Progress

CHECK_S = 2.0  # between two looks whether a door is open
N_NAMED = 5  # edges that are not there
LOG = logging.getLogger("fedray")
HOW_TO_OPEN = (
    "no door is open for the edges of %s: on this cluster run fedray serve --edge-host "
    "0.0.0.0 --edge-port 8443 --tls-cert FILE --tls-key FILE, then fedray edges invite "
    "%s for each edge's invitation"
)


class DoorLink:
    """Keeps the door informed while a run lasts: it may be opened, or restarted, late.

    A run that ends before its last round may be resumed: the door goes on to answer
    its edges, which wait.
    """

    def __init__(self, plan: AggregatorPlan):
        self.plan = plan
        self.is_needed = plan.config.has_edges
        self._is_told_how = not self.is_needed
        self._next_s = 0.0  # monotonic clock
        self._informed = b""  # id of the door that knows the run

    def follow(self, watch: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """What watches the run, and looks for a door each time it is called."""

        def check_and_watch(progress: Progress) -> None:
            self.check()
            watch(progress)

        return check_and_watch

    def check(self) -> None:
        """Tell a door that does not know the run; say how to open one, once."""
        if not self.is_needed or time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + CHECK_S
        door = _find_door()
        if door is None and not self._is_told_how:
            self._is_told_how = True
            LOG.warning(HOW_TO_OPEN, self.plan.run, self.plan.run)
        if door is None or door._actor_id.binary() == self._informed:
            return
        if run_id := self._run_id():
            actors = placement.edge_actors(self.plan.run, self.plan.config)
            door.open_run.remote(run_id, self.plan.folder, actors)
            self._informed = door._actor_id.binary()

    def close(self) -> None:
        """The run is done: edges that call are told so."""
        door = _find_door() if self.is_needed else None
        if door is not None and (run_id := self._run_id()):
            door.close_run.remote(run_id, "the run is done")

    def _run_id(self) -> str:
        """Under which the run's edges are enrolled; empty where that cannot be read."""
        try:
            return Registry(Path(self.plan.folder)).begin()
        except FedrayError as error:
            LOG.warning("%s", error)
            return ""


def edge_notes(config: FederationConfig, folder: Path) -> list[str]:
    """How many of a run's edges have enrolled, and what to do about the others.

    folder : of the run.
    """
    if not config.has_edges:
        return []
    roster, notes = Roster(folder), []
    listed = [party.name for party in config.parties if party.edge]
    edges = {edge.name: edge for edge in roster.edges if edge.state == ENROLLED}
    missing = [name for name in listed if name not in edges]
    if listed:
        there = f"{len(listed) - len(missing)} of {len(listed)}"
        names = ", ".join(missing[:N_NAMED]) + ", ..." * (len(missing) > N_NAMED)
        advice = f"; not {names}: fedray edges invite {folder.name} --name NAME"
        notes.append(f"edges enrolled: {there}{advice if missing else ''}")
    if config.edges is not None:
        n_there = sum(edge.own_name is None for edge in edges.values())
        least = f"round 1 waits for {config.edges.min} (edges.min)"
        advice = f"; {least}: fedray edges invite {folder.name} --count N"
        is_short = n_there < config.edges.min
        notes.append(f"edges enrolled: {n_there:,}{advice if is_short else ''}")
    return notes


def _find_door() -> ActorHandle | None:
    try:
        return ray.get_actor(DOOR_ACTOR, namespace=NAMESPACE)
    except ValueError:
        return None
