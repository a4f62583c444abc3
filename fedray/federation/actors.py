"""Life cycle of a run's actors, from start to end."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle, ActorMethod
from ray.exceptions import RayError, RayTaskError

from fedray import placement
from fedray.aggregator import (
    Aggregator,
    AggregatorPlan,
    LentAggregator,
    start_named,
    start_party,
)
from fedray.checkpoint import RunFolder
from fedray.errors import ClusterError, FedrayError, OutOfMemory, Stopped
from fedray.federation.cluster_address import connect_error, socket_error
from fedray.federation.edge_door import DoorLink
from fedray.messages import Progress
from fedray.placement import ActorPool, MemoryDeaths

POLL_S = 0.2  # between two questions for progress
FLUSH_METRICS_S = 2.0  # for an ending aggregator; Ray exports every 10 s otherwise
STOP_TIMEOUT_S = 30.0  # after Ctrl-C
CHECK_S = 4.0  # between two looks whether Ray is there
CONNECT_S = 1.0
RAY_LOST = (
    "%s does not listen any more (%s): unless it comes back, Ray ends this run within "
    "a minute; then go on with --resume"
)
GROUPS = {"control": 2, "turnover": 1}  # threads by concurrency group
OVER_LIMIT = "needs more memory than a process of this run may take"
LOG = logging.getLogger("fedray")
Watch = Callable[[Progress], None]


def run_actors(
    plan: AggregatorPlan, start_ref: ObjectRef, watch: Watch, may_join: bool
) -> None:
    """Start all actors, wait for the aggregator's last round, and end all actors.

    `start_ref` : what models start from (`put_starts`).
    `may_join` : wait for nodes with labels that no node has yet.
    """
    actors: dict[str, ActorHandle] = {}
    door = DoorLink(plan)
    with errors_of_ray(plan):
        try:
            _start_actors(plan, actors, watch, may_join)
            deaths = MemoryDeaths(plan.run)
            wait_for_rounds(actors[""], plan, start_ref, door.follow(watch), deaths)
            door.close()
        finally:
            _end_actors(actors)


@contextlib.contextmanager
def errors_of_ray(plan: AggregatorPlan) -> Iterator[None]:
    """Raise what the aggregator raised; what Ray itself says as ClusterError."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, FedrayError):
            raise error.cause from None
        if isinstance(error.cause, MemoryError):
            raise OutOfMemory("the aggregator", OVER_LIMIT) from None
        what = f"the aggregator failed: {type(error.cause).__name__}: {error.cause}"
        raise ClusterError(what, _resume_hint(plan)) from error
    except RayError as error:
        what = f"the cluster failed: {type(error).__name__}: {error}"
        raise ClusterError(what, _resume_hint(plan)) from None


def _end_actors(actors: dict[str, ActorHandle]) -> None:
    """End all actors; the aggregator first gets time to export its last metrics."""
    if aggregator := actors.get(""):
        terminate: ActorMethod = aggregator.__ray_terminate__
        end_ref: ObjectRef = terminate.options(max_task_retries=0).remote()
        ray.wait([end_ref], timeout=FLUSH_METRICS_S)
    for actor in {actor._actor_id: actor for actor in actors.values()}.values():
        ray.kill(actor)


def _resume_hint(plan: AggregatorPlan) -> str:
    return f"Finished rounds are kept in {plan.folder}; go on with --resume"


class ClusterWatch:
    """Says that Ray is lost, here or at the cluster's head: it then ends this process.

    head : address of the cluster's head.
    node_socket : that the node on this machine listens at.
    """

    def __init__(self, head: str, node_socket: str):
        self.head, self.node_socket = head, node_socket
        self.is_lost, self.checked_at_s = False, time.monotonic()

    def check(self, every_s: float = CHECK_S) -> None:
        """Look whether both listen, unless it was done a short time ago."""
        if time.monotonic() - self.checked_at_s < every_s:
            return
        node_error = socket_error(self.node_socket)
        error = node_error or connect_error(self.head, CONNECT_S)
        if error and not self.is_lost:
            place = "Ray's node here" if node_error else f"Ray's head at {self.head}"
            LOG.warning(RAY_LOST, place, error)
        self.checked_at_s, self.is_lost = time.monotonic(), error is not None


def _own_cluster() -> ClusterWatch:
    """A watch over the cluster that this process is connected to."""
    node: Any = ray._private.worker._global_node
    address = ray.get_runtime_context().gcs_address
    return ClusterWatch(address, node.raylet_socket_name)


def lost_cluster() -> str:
    """Why the cluster that this process is connected to is lost; empty: it is not."""
    if not ray.is_initialized():
        return "the connection has ended"
    node: Any = ray._private.worker._global_node
    address = ray.get_runtime_context().gcs_address
    error = socket_error(node.raylet_socket_name) or connect_error(address, CONNECT_S)
    return f"{error}" if error else ""


def stopped(plan: AggregatorPlan) -> Stopped:
    """The error of a run that was stopped: how many rounds are kept."""
    n_done = RunFolder(Path(plan.folder)).last_saved_round()
    return Stopped(n_done, plan.config.rounds, plan.folder)


def _start_actors(
    plan: AggregatorPlan, actors: dict[str, ActorHandle], watch: Watch, may_join: bool
) -> None:
    """Start all actors and wait until they are ready; fills `actors`."""
    poll = placement_poll(plan, watch)
    wait_s = plan.config.placement_timeout_s
    first_round = RunFolder(Path(plan.folder)).last_saved_round() + 1
    try:
        pools = placement.wait_for_placement(
            wait_s if may_join else 0, plan.config, first_round, poll
        )
        parties = _start_parties(plan, pools, actors)
        # not after them: the processes start at the same time
        actors[""] = _start_aggregator(plan, pools)
        placement.wait_until_ready(parties, pools, wait_s, poll)
    except KeyboardInterrupt:
        raise stopped(plan) from None


def placement_poll(
    plan: AggregatorPlan, watch: Watch
) -> Callable[[str, float, float], None]:
    """Tells `watch` what is waited for: the stage, seconds so far, and at most."""

    def poll(stage: str, waited_s: float, timeout_s: float) -> None:
        watch(startup_progress(stage, plan, waited_s, timeout_s))

    return poll


def startup_progress(
    stage: str, plan: AggregatorPlan, waited_s: float = 0, timeout_s: float = 0
) -> Progress:
    """Progress of a run whose aggregator does not answer yet."""
    n_rounds, folder = plan.config.rounds, plan.folder
    return Progress(
        [], 0, stage, 0, 0, {}, [], n_rounds, folder,
        waited_s=waited_s, timeout_s=timeout_s,
    )  # fmt: skip


def _start_parties(
    plan: AggregatorPlan, pools: list[ActorPool], actors: dict[str, ActorHandle]
) -> dict[str, ActorHandle]:
    shared: ActorHandle | None = None  # that stands for all edges the config lists
    for pool in pools:
        for name in pool.actors:
            is_edge = pool.kind == "edge"
            own = (shared if is_edge else None) or start_party(plan, pool, name)
            actors[name], shared = own, own if is_edge else shared
    return dict(actors)


def _start_aggregator(plan: AggregatorPlan, pools: list[ActorPool]) -> ActorHandle:
    # Ray's stubs do not know concurrency_groups
    remote = ray.remote(concurrency_groups=GROUPS)  # type: ignore[call-overload]
    actor = remote(Aggregator).options(
        name=placement.aggregator_name(plan.run),
        max_restarts=10,
        max_task_retries=10,
        **placement.node_affinity(ray.get_runtime_context().get_node_id()),
    )
    return start_named(actor, plan, pools)


def _tell(
    watch: Watch, progress: Progress, aggregator: ActorHandle | LentAggregator
) -> None:
    """Tell what watches a run, which may ask for its end."""
    try:
        watch(progress)
    except StopAfterRound:
        aggregator.stop.remote(True)


class StopAfterRound(KeyboardInterrupt):
    """Raised by what watches a run: it ends with the round under way."""


def wait_for_rounds(
    aggregator: ActorHandle | LentAggregator,
    plan: AggregatorPlan,
    start_ref: ObjectRef,
    watch: Watch,
    deaths: MemoryDeaths,
) -> None:
    """Let an aggregator run, and tell `watch` what happens, until it has ended."""
    # as an argument of `run`, not of the actor: Ray keeps it for a restarted aggregator
    run_ref: ObjectRef = aggregator.run.remote(start_ref)
    n_seen = 0
    try:
        done, cluster = False, _own_cluster()
        while not done:
            cluster.check()
            done = bool(ray.wait([run_ref], timeout=POLL_S)[0])
            progress_ref: ObjectRef = aggregator.progress.remote(n_seen)
            while not ray.wait([progress_ref], timeout=CHECK_S)[0]:
                cluster.check()
                deaths.check()
            deaths.check()
            progress = ray.get(progress_ref) or startup_progress("joining", plan)
            n_seen += len(progress.reports)
            _tell(watch, progress, aggregator)
        ray.get(run_ref)
    except RayError:
        deaths.check(at_once=True)  # what it fails for may be that
        raise
    except KeyboardInterrupt:
        aggregator.stop.remote()
        ray.wait([run_ref], timeout=STOP_TIMEOUT_S)
        raise stopped(plan) from None
