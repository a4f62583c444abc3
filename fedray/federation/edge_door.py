"""Tells the door of the edges, if one is open on the cluster, of a run with edges."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from fedray import placement
from fedray.aggregator import AggregatorPlan
from fedray.config import FederationConfig
from fedray.edges.protocol import DOOR_ACTOR, NAMESPACE
from fedray.edges.registry import Registry
from fedray.edges.roster import ENROLLED, FOLDER, INVITATIONS, Roster
from fedray.edges.spool import Spool
from fedray.errors import FedrayError
from fedray.messages import Progress

CHECK_S = 2.0  # between two looks whether a door is open
N_NAMED = 5  # edges that are not there
ALL_NEEDED = (
    "quorum: 1 lets a round fail as soon as one of its edges does not answer: give a "
    "share that is likely to be there, such as 0.8"
)
LOG = logging.getLogger("fedray")
HOW_TO_OPEN = (
    "no door is open for the edges of %s: with the RAY_ADDRESS of this run start "
    "fedray serve --edge-host 0.0.0.0 --edge-port 8443 --tls-cert FILE --tls-key FILE"
)


class DoorLink:
    """Keeps the door informed while a run lasts: it may be opened, or restarted, late.

    A run that ends before its last round may be resumed: the door goes on to answer
    its edges, which wait.
    """

    def __init__(self, plan: AggregatorPlan):
        self.plan, self.folder = plan, Path(plan.folder)
        self._has_said_how = False
        self._next_s = 0.0  # monotonic clock
        self._informed: tuple[bytes, list[str]] = (b"", [])  # a door's id, and of what
        self._answer_ref: ObjectRef | None = None

    @property
    def is_needed(self) -> bool:
        """Whether there are edges: from the start, or invited since."""
        return self.plan.config.has_edges or has_invitations(self.folder)

    def follow(self, watch: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """What watches the run, and looks for a door each time it is called."""

        def check_and_watch(progress: Progress) -> None:
            self.check()
            watch(progress)

        return check_and_watch

    def check(self) -> None:
        """Tell a door that does not know the run; say how to open one, once."""
        if time.monotonic() < self._next_s or not self.is_needed:
            return
        self._next_s = time.monotonic() + CHECK_S
        self._warn_of_refusal()
        door = _find_door()
        if door is None:
            self._say_how_to_open()
            return
        now = (
            door._actor_id.binary(),
            _existing(placement.edge_actors(self.plan.run, self.plan.config)),
        )
        if now[1] and now != self._informed and (run_id := self._run_id()):
            self._answer_ref = door.open_run.remote(run_id, self.plan.folder, now[1])
            self._informed = now

    def _say_how_to_open(self) -> None:
        if self._has_said_how:
            return
        self._has_said_how = True
        LOG.warning(HOW_TO_OPEN, self.plan.run)
        for note in edge_notes(self.plan.config, self.folder):
            LOG.warning("%s", note)

    def _warn_of_refusal(self) -> None:
        """Say that the door cannot serve the run: its folder is on another machine."""
        ref = self._answer_ref
        if ref is None or not ray.wait([ref], timeout=0)[0]:
            return
        self._answer_ref = None
        try:
            ray.get(ref)
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            LOG.warning("the edges' door cannot serve %s: %s", self.plan.run, cause)

    def close(self) -> None:
        """The run is done: edges that call are told so."""
        if not self.is_needed:
            return
        door = _find_door()
        if door is not None and (run_id := self._run_id()):
            door.close_run.remote(run_id, "the run is done")
        with contextlib.suppress(OSError):
            Spool(self.folder).empty()

    def _run_id(self) -> str:
        """Under which the run's edges are enrolled; empty where that cannot be read."""
        try:
            return Registry(self.folder).begin()
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
        if config.quorum == 1:
            notes.append(ALL_NEEDED)
    return notes


def has_invitations(folder: Path) -> bool:
    """Whether anyone was ever invited to the run in a folder."""
    return (folder / FOLDER / INVITATIONS).exists()


def _existing(names: Iterable[str]) -> list[str]:
    """Those of some actors that are there."""
    there = []
    for name in names:
        with contextlib.suppress(ValueError):
            ray.get_actor(name)
            there.append(name)
    return there


def _find_door() -> ActorHandle | None:
    try:
        return ray.get_actor(DOOR_ACTOR, namespace=NAMESPACE)
    except ValueError:
        return None
