"""Ray actors on their nodes: names, node affinity, readiness, location at run time."""

import logging
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedray.errors import PlacementError, format_count
from fedray.messages import ActorLocation
from fedray.placement.cluster import describe_labels, describe_nodes, nodes
from fedray.placement.scheduling import ActorPool

AGGREGATOR = "aggregator:"  # prefix of the actor names of aggregators


def wait_until_ready(
    actors: dict[str, ActorHandle], pools: list[ActorPool], timeout_s: float
) -> None:
    """Wait until every actor is scheduled and has run its constructor.

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
    ready, pending = ray.wait(list(names), num_returns=len(names), timeout=timeout_s)
    for ready_ref in ready:
        try:
            ray.get(ready_ref)
        except RayActorError as error:
            name = names[ready_ref]
            wanted = f"an actor that starts on node {placements[name].node_id[:8]}"
            why = " ".join(str(error).split())[:500]
            cause = f"{why} Is the same fedray installed there as here?"
            raise PlacementError(f"party {name}", wanted, cause) from None
    if pending:
        name = names[pending[0]]
        placement = placements[name]
        wanted = (
            f"{format_count(placement.n_cpus, 'CPU')}, "
            f"{format_count(placement.n_gpus, 'GPU')} and "
            f"{describe_labels(placement.labels)} within placement_timeout_s="
            f"{timeout_s:g} ({format_count(len(pending), 'actor')} waiting)"
        )
        free = ", ".join(f"{k} {v:g}" for k, v in ray.available_resources().items())
        available = f"{describe_nodes(nodes())}; free now: {free}"
        raise PlacementError(f"party {name}", wanted, available)


def node_affinity(node_id: str, soft: bool = False) -> dict[str, Any]:
    """Ray options that pin an actor or task to a node without reserving a CPU."""
    return {
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=soft),
    }


def aggregator_name(run: str) -> str:
    """Name of a run's aggregator actor on the cluster."""
    return f"{AGGREGATOR}{run}"


def send_training_progress(run: str, actor: str, share: float) -> None:
    """Tell a run's aggregator the share of a training that is done; do not wait."""
    try:
        aggregator = ray.get_actor(aggregator_name(run))
    except ValueError:
        return  # the aggregator has ended
    aggregator.record_progress.options(max_task_retries=0).remote(actor, share)


def locate_actor() -> ActorLocation:
    """Node, process and device of the calling actor; cuda only if Ray assigned a GPU.

    Also sets up logging, so that fedray's INFO lines reach the actor's log file.
    """
    log = logging.getLogger("fedray")
    if not log.handlers:  # of others what they print is not for this log
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    device = "cuda" if ray.get_gpu_ids() else "cpu"
    context = ray.get_runtime_context()
    return ActorLocation(context.get_node_id(), device, context.get_worker_id())
