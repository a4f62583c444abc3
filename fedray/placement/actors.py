"""Actors on their nodes: waited for, pinned, and what one finds where it runs."""

import logging
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedray.errors import PlacementError
from fedray.messages import ActorLocation
from fedray.placement.cluster import existing, nodes, shown
from fedray.placement.scheduling import Site

AGGREGATOR = "aggregator:"  # what the aggregators of runs are named


def wait_until_up(
    actors: dict[str, ActorHandle], sites: list[Site], timeout_s: float
) -> None:
    """Wait until every actor answers.

    Raises
    ------
    PlacementError
        Naming the first that cannot start, or is not up in time, what it asked for
        and what there is.
    """
    seats = {name: site.seat for site in sites for name in site.actors}
    waiting = {actor.__ray_ready__.remote(): name for name, actor in actors.items()}
    up, late = ray.wait(list(waiting), num_returns=len(waiting), timeout=timeout_s)
    for ref in up:
        try:
            ray.get(ref)
        except RayActorError as error:
            name = waiting[ref]
            wanted = f"an actor that starts on node {seats[name].node[:8]}"
            why = " ".join(str(error).split())[:500]
            found = f"{why} Is the same fedray installed there as here?"
            raise PlacementError(f"party {name}", wanted, found) from None
    if late:
        name = waiting[late[0]]
        seat = seats[name]
        wanted = (
            f"{seat.n_cpus:g} CPUs, {seat.n_gpus:g} GPUs and {shown(seat.labels)} "
            f"within placement_timeout_s={timeout_s:g} ({len(late)} actors waiting)"
        )
        free = ", ".join(f"{k} {v:g}" for k, v in ray.available_resources().items())
        found = f"{existing(nodes())}; free now: {free}"
        raise PlacementError(f"party {name}", wanted, found)


def on_node(node: str, soft: bool = False) -> dict[str, Any]:
    """Options of an actor or task that belongs to one node and holds no core."""
    return {
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=soft),
    }


def aggregator_of(run: str) -> str:
    """Name on the cluster of a run's aggregator."""
    return f"{AGGREGATOR}{run}"


def tell(run: str, actor: str, share: float) -> None:
    """Let a run's aggregator know how far an actor's training is; wait for nothing."""
    try:
        aggregator = ray.get_actor(aggregator_of(run))
    except ValueError:
        return  # it has ended, and nobody follows any more
    aggregator.working.options(max_task_retries=0).remote(actor, share)


def here() -> ActorLocation:
    """Node and device of the actor that calls; a GPU only where Ray assigned one.

    From here on fedray's own lines reach the actor's log, the quiet ones too.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("fedray").setLevel(logging.INFO)
    device = "cuda" if ray.get_gpu_ids() else "cpu"
    context = ray.get_runtime_context()
    return ActorLocation(context.get_node_id(), device, context.get_worker_id())
