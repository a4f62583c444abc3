"""Ray actors on their nodes: names, node affinity, readiness, location at run time."""

import contextlib
import hashlib
import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef
from ray._private import worker
from ray._private.serialization import _object_ref_deserializer
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedray import limits
from fedray.config import FederationConfig
from fedray.errors import PlacementError, format_count
from fedray.messages import ActorLocation
from fedray.placement.cluster import describe_labels, describe_nodes, nodes
from fedray.placement.scheduling import (
    ActorPool,
    Placement,
    Poll,
    population_actors,
)

AGGREGATOR = "aggregator:"  # prefix of the actor names of aggregators
FEDERATION_ID = re.compile(r"[0-9a-f]{32}")
THREADS = "OMP_NUM_THREADS"
POLL_S = 0.2
MAX_PATIENCE = 10
FREE_CORES = (
    "If other runs or this job's own entrypoint (--entrypoint-num-cpus) hold cores, "
    "end them, or give party_cpus a smaller value (0: reserve none). If the node is "
    "only busy, and slow to start processes, raise placement_timeout_s"
)


def wait_until_ready(
    actors: Mapping[str, Any],
    pools: list[ActorPool],
    timeout_s: float,
    poll: Poll = lambda stage, waited_s, timeout_s: None,
) -> None:
    """Wait until every actor is scheduled and has run its constructor.

    `poll` is called several times a second meanwhile, with what is waited for.

    Raises
    ------
    PlacementError
        Naming the first actor that cannot start or is not ready in time, the resources
        that it requested and those that the cluster has.
    """
    placements = {name: pool.placement for pool in pools for name in pool.actors}
    names: dict[ObjectRef, str] = {
        actor.__ray_ready__.remote(): name for name, actor in actors.items()
    }
    pending, started = list(names), time.monotonic()
    while pending:
        waited_s = time.monotonic() - started
        name = names[pending[0]]
        if waited_s > timeout_s and waited_s > timeout_s * _patience(placements[name]):
            raise _not_ready(name, placements[name], len(pending), timeout_s)
        poll("starting parties", waited_s, timeout_s)
        ready, pending = ray.wait(pending, num_returns=len(pending), timeout=POLL_S)
        for ready_ref in ready:
            try:
                ray.get(ready_ref)
            except RayActorError as error:
                name = names[ready_ref]
                raise _start_error(name, placements[name], error) from None


def _patience(placement: Placement) -> int:
    """Times placement_timeout_s that an actor may take to be up.

    One that reserves nothing waits for nobody to free it, only for its node to start a
    process, which takes minutes where many start at once.
    """
    if placement.n_cpus or placement.n_gpus:
        return 1
    has_node = any(node.has_labels(placement.labels) for node in nodes())
    return MAX_PATIENCE if has_node else 1


def _start_error(
    name: str, placement: Placement, error: RayActorError
) -> PlacementError:
    wanted = f"an actor that starts on node {placement.node_id[:8]}"
    why = " ".join(str(error).split())[:500]
    cause = f"{why} Is the same fedray installed there as here?"
    return PlacementError(f"party {name}", wanted, cause)


def _not_ready(
    name: str, placement: Placement, n_waiting: int, timeout_s: float
) -> PlacementError:
    wanted = (
        f"{format_count(placement.n_cpus, 'CPU')}, "
        f"{format_count(placement.n_gpus, 'GPU')} and "
        f"{describe_labels(placement.labels)} within placement_timeout_s="
        f"{timeout_s:g} ({format_count(n_waiting, 'actor')} waiting)"
    )
    free, total = ray.available_resources(), ray.cluster_resources()
    n_free = {name: f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}s free"
              for name in ("CPU", "GPU") if name in total}  # fmt: skip
    available = f"{describe_nodes(nodes())}; {', '.join(n_free.values())}. {FREE_CORES}"
    return PlacementError(f"party {name}", wanted, available)


def node_affinity(node_id: str, soft: bool = False) -> dict[str, Any]:
    """Ray options that pin an actor or task to a node without reserving a CPU."""
    return {
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=soft),
    }


class StoredObject:
    """An object in Ray's object store, as a function that gets it: without a copy.

    Whoever has put it there holds the reference as long as it may be got. It travels by
    its address alone: of actors that are restarted Ray warns at each reference among
    their arguments.
    """

    def __init__(self, ref: ObjectRef):
        self.ref = ref

    def __call__(self) -> Any:
        return ray.get(self.ref)

    def __reduce__(self) -> tuple[Any, ...]:
        core: Any = worker.global_worker.core_worker  # type: ignore[attr-defined]
        _, owner, status = core.serialize_object_ref(self.ref)
        return _find_stored, (self.ref.binary(), owner, status)


def _find_stored(id: bytes, owner: bytes, status: bytes) -> StoredObject:
    """The stored object of an address."""
    return StoredObject(_object_ref_deserializer(id, "", owner, status, None))


def run_label(run: str) -> str:
    """A run's name as actors, metrics, logs and process titles have it.

    Others may read these: Ray's metrics need no token, and `ps` shows titles. A run of
    the REST service is named by its federation's id, which is for its client alone: of
    that they have the first letters, and some of a hash that tell it from others.
    """
    if not FEDERATION_ID.fullmatch(run):
        return run
    return f"{run[:8]}-{hashlib.sha256(run.encode()).hexdigest()[:8]}"


def aggregator_name(run: str) -> str:
    """Name of a run's aggregator actor on the cluster."""
    return f"{AGGREGATOR}{run_label(run)}"


def party_actor(run: str, name: str) -> str:
    """Name on the cluster of a party's actor, or of one that several share."""
    return f"party:{run_label(run)}:{name}"


def actor_of_pool(run: str, pool: ActorPool, name: str) -> str:
    """Name on the cluster of the actor that a pool's party or parties are called at."""
    if pool.kind == "edges":
        return population_actor(run, name)
    return edge_actor(run) if pool.kind else party_actor(run, name)


def edge_actor(run: str) -> str:
    """Name on the cluster of the actor that stands for the edges a config lists."""
    return f"edges:{run_label(run)}"


def population_actor(run: str, name: str) -> str:
    """Name on the cluster of an actor that stands for a population of edges."""
    return f"{name}:{run_label(run)}"


def edge_actors(run: str, config: FederationConfig) -> list[str]:
    """Names on the cluster of all actors that may stand for edges of a run."""
    names = population_actors(config.edges) if config.edges else ()
    return [edge_actor(run), *(population_actor(run, name) for name in names)]


def send_training_progress(run: str, actor: str, share: float) -> None:
    """Tell a run's aggregator the share of a training that is done; do not wait."""
    try:
        aggregator = ray.get_actor(aggregator_name(run))
    except ValueError:
        return  # the aggregator has ended
    aggregator.record_progress.options(max_task_retries=0).remote(actor, share)


def send_departure(run: str, party: str) -> None:
    """Tell a run's aggregator that a party leaves; do not wait."""
    with contextlib.suppress(ValueError):  # the aggregator has ended
        ray.get_actor(aggregator_name(run)).leave.remote(party)


def locate_lent_actor(n_cpus: float) -> ActorLocation:
    """As `locate_actor`, for one that reserves less than a run's own actor would.

    n_cpus : that the run's own would reserve. By these Ray sets the threads of numeric
        libraries, whose sums may differ with their number, unless the user has set it.
    """
    if THREADS not in _variables_at_start():
        os.environ[THREADS] = str(max(1, int(n_cpus)))
    return locate_actor()


def _variables_at_start() -> set[str]:
    """Environment variables that this process was started with."""
    try:
        data = Path("/proc/self/environ").read_bytes()
    except OSError:
        return set()
    return {os.fsdecode(line.partition(b"=")[0]) for line in data.split(b"\0")}


def locate_actor(max_memory: int | None = None) -> ActorLocation:
    """Node, process and device of the calling actor; cuda only if Ray assigned a GPU.

    Also sets up logging, so that fedray's INFO lines reach the actor's log file.

    max_memory : bytes that its process may take from now on; None: no limit. A process
        with a GPU has none: its driver reserves address space without using it.
    """
    log = logging.getLogger("fedray")
    if not log.handlers:  # of others what they print is not for this log
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    device = "cuda" if ray.get_gpu_ids() else "cpu"
    if max_memory is not None and device == "cpu":
        limits.limit_growth(max_memory)
    context = ray.get_runtime_context()
    return ActorLocation(context.get_node_id(), device, context.get_worker_id())
