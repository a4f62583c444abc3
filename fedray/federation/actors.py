"""Actors of one run: started, followed to the end, cleared away."""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError
from ray.job_config import JobConfig

from fedray import placement
from fedray.aggregator import Aggregator, AggregatorPlan, start_named, start_party
from fedray.checkpoint import RunFolder
from fedray.errors import ClusterError, FedrayError, Stopped
from fedray.messages import Progress
from fedray.placement import ActorPool

FOLLOW_S = 0.2  # how often progress is asked for
LISTENS_S = 5.0  # to be connected to
LAST_WORDS_S = 2.0  # of an aggregator that ends; Ray exports every 10 s otherwise
LOG = logging.getLogger("fedray")
Watch = Callable[[Progress], None]


@contextlib.contextmanager
def connected(dashboard: bool = False, job: str = "fedray") -> Iterator[bool]:
    """Be connected to a Ray cluster, and end it afterwards if it was started here.

    Yields whether nodes may still be joining: not where the cluster is this process's.
    `job` : what the dashboard calls this process; a submitted job has a name already.
    """
    if ray.is_initialized():
        yield True
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    local = {"include_dashboard": dashboard} if address == "local" else {}
    named = JobConfig(metadata={"job_name": job})
    if address == "local":
        # freed memory is taken again at once: by itself Ray waits for 100 objects or a
        # second, and fresh pages are slow. Not where there are more nodes: a copy that
        # is on its way between them while it is freed would stay
        os.environ.setdefault("RAY_free_objects_batch_size", "1")
    context = _connect(address, job_config=named, **local)
    if dashboard and context.dashboard_url:
        LOG.info("dashboard http://%s", context.dashboard_url)
    try:
        yield address != "local"
    finally:
        ray.shutdown()


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Be connected to a cluster that is there already; none is started.

    Raises
    ------
    ClusterError
        If RAY_ADDRESS names none, or there is none on this machine.
    """
    if ray.is_initialized():
        yield
        return
    _connect(os.environ.get("RAY_ADDRESS") or "auto")
    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str, **more: Any) -> Any:
    _look_for(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    on_term = signal.getsignal(signal.SIGTERM)
    quiet = {"log_to_driver": False, "logging_level": "error"}
    try:
        context = ray.init(address, namespace="fedray", **quiet, **more)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        what = f"cannot connect to Ray at {address}: {error}"
        hint = "Look at RAY_ADDRESS, RAY_AUTH_MODE and the token, or unset RAY_ADDRESS"
        raise ClusterError(what, hint) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_term)  # Ray's own would abort the process
    return context


def _look_for(address: str) -> None:
    """See that somebody listens there: Ray itself would try for minutes.

    Raises
    ------
    ClusterError
        If nobody does, or the address is a dashboard's.
    """
    if "://" in address and not address.startswith("ray://"):
        what = f"RAY_ADDRESS={address} is for `ray job`"
        raise ClusterError(what, "Here it must be HEAD:6379, as `ray start` printed it")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # local, auto
    try:
        socket.create_connection((host.strip("[]"), int(port)), LISTENS_S).close()
    except (OSError, OverflowError) as error:
        what = f"nobody listens at RAY_ADDRESS={address}: {error}"
        raise ClusterError(what, "Look at the address, or unset RAY_ADDRESS") from None


def conduct(
    plan: AggregatorPlan, start_ref: ObjectRef, watch: Watch, may_join: bool
) -> None:
    """Start every actor, follow the aggregator to its end, and clear them away.

    `start_ref` : the initial weights by group; under None those of all others.
    `may_join` : nodes may still be joining; wait for labels that are not there yet.
    """
    actors: dict[str, ActorHandle] = {}
    try:
        wait_s = plan.config.placement_timeout_s
        since = RunFolder(Path(plan.folder)).n_kept() + 1
        patience_s = wait_s if may_join else 0
        pools = placement.wait_for_placement(patience_s, plan.config, since)
        parties = _start_parties(plan, pools, actors)
        # its process starts beside theirs
        aggregator = actors[""] = _start_aggregator(plan, pools)
        placement.wait_until_ready(parties, pools, wait_s)
        _follow(aggregator, plan, start_ref, watch)
    except RayTaskError as error:
        if isinstance(error.cause, FedrayError):
            raise error.cause from None
        what = f"the aggregator failed: {type(error.cause).__name__}: {error.cause}"
        raise ClusterError(what, _kept(plan)) from error
    except RayError as error:
        what = f"the cluster failed: {type(error).__name__}: {error}"
        raise ClusterError(what, _kept(plan)) from None
    finally:
        _clear(actors)


def _clear(actors: dict[str, ActorHandle]) -> None:
    """End every actor; an aggregator that can first hands over its last metrics."""
    if aggregator := actors.get(""):
        ending = aggregator.__ray_terminate__.options(max_task_retries=0)
        ray.wait([ending.remote()], timeout=LAST_WORDS_S)
    for actor in actors.values():
        ray.kill(actor)


def _kept(plan: AggregatorPlan) -> str:
    return f"Finished rounds are kept in {plan.folder}; go on with --resume"


def _start_parties(
    plan: AggregatorPlan, pools: list[ActorPool], actors: dict[str, ActorHandle]
) -> dict[str, ActorHandle]:
    for pool in pools:
        for name in pool.actors:
            actors[name] = start_party(plan, pool, name)
    return dict(actors)


def _start_aggregator(plan: AggregatorPlan, pools: list[ActorPool]) -> ActorHandle:
    groups = {"control": 2, "turnover": 1}
    actor = ray.remote(concurrency_groups=groups)(Aggregator).options(
        name=placement.aggregator_name(plan.run),
        max_restarts=10,
        max_task_retries=10,
        **placement.node_affinity(ray.get_runtime_context().get_node_id()),
    )
    return start_named(actor, plan, pools)


def _follow(
    aggregator: ActorHandle, plan: AggregatorPlan, start_ref: ObjectRef, watch: Watch
) -> None:
    # as an argument of `run`, not of the actor: Ray keeps it for a restarted aggregator
    run_ref, n_seen = aggregator.run.remote(start_ref), 0
    try:
        done = False
        while not done:
            done = bool(ray.wait([run_ref], timeout=FOLLOW_S)[0])
            progress = ray.get(aggregator.progress.remote(n_seen))
            n_seen += len(progress.reports)
            watch(progress)
        ray.get(run_ref)
    except KeyboardInterrupt:
        aggregator.stop.remote()
        ray.wait([run_ref], timeout=30)
        n_done = RunFolder(Path(plan.folder)).n_kept()
        raise Stopped(n_done, plan.config.rounds, plan.folder) from None
