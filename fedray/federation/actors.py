"""Connection to a Ray cluster; life cycle of a run's actors, from start to end."""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import ray
from ray import ObjectRef
from ray.actor import ActorHandle, ActorMethod
from ray.exceptions import RayError, RayTaskError
from ray.job_config import JobConfig

from fedray import placement
from fedray.aggregator import Aggregator, AggregatorPlan, start_named, start_party
from fedray.checkpoint import RunFolder
from fedray.errors import ClusterError, FedrayError, Stopped
from fedray.messages import Progress
from fedray.placement import ActorPool

POLL_S = 0.2  # between two questions for progress
CONNECT_TIMEOUT_S = 5.0
FLUSH_METRICS_S = 2.0  # for an ending aggregator; Ray exports every 10 s otherwise
STOP_TIMEOUT_S = 30.0  # after Ctrl-C
GROUPS = {"control": 2, "turnover": 1}  # threads by concurrency group
LOG = logging.getLogger("fedray")
OWN_FOLDER = Path(__file__).parents[2]  # from which fedray is imported
Watch = Callable[[Progress], None]


@contextlib.contextmanager
def cluster_connection(dashboard: bool = False, job: str = "fedray") -> Iterator[bool]:
    """Connect to the Ray cluster of RAY_ADDRESS, else start one on this machine.

    A cluster that was started here is ended afterwards. Yields whether more nodes may
    join: not a cluster that was started here.
    `job` : name of this process in the dashboard; a submitted job has one already.
    """
    if ray.is_initialized():
        yield True
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    is_local = address == "local"
    if is_local:
        # reuse freed memory at once: by default Ray waits for 100 objects or a second,
        # and fresh pages are slow. Only on one node: a copy in transit between nodes
        # while the object is freed would stay
        os.environ.setdefault("RAY_free_objects_batch_size", "1")
    named = JobConfig(metadata={"job_name": job})
    dashboard_url = _connect(address, named, dashboard if is_local else None)
    if dashboard and dashboard_url:
        LOG.info("dashboard http://%s", dashboard_url)
    try:
        yield not is_local
    finally:
        ray.shutdown()


@contextlib.contextmanager
def existing_cluster() -> Iterator[None]:
    """Connect to a cluster that is running already; none is started.

    Raises
    ------
    ClusterError
        If RAY_ADDRESS names none and there is none on this machine.
    """
    if ray.is_initialized():
        yield
        return
    _connect(os.environ.get("RAY_ADDRESS") or "auto")
    try:
        yield
    finally:
        ray.shutdown()


def _connect(
    address: str, job: JobConfig | None = None, dashboard: bool | None = None
) -> str | None:
    """Connect; returns the dashboard's address, if it has one."""
    _check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    job = job or JobConfig()
    job._py_driver_sys_path = _ImportFolders()
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        context = ray.init(
            address,
            namespace="fedray",
            job_config=job,
            include_dashboard=dashboard,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # a node that does not start in time is a bare one
        text = " ".join(str(error).split())
        if address == "local":
            what = f"Ray does not start on this machine: {text.removesuffix('.')}"
            hint = "Try again when it has less to do; /tmp/ray has Ray's own logs"
            raise ClusterError(what, hint) from None
        what = f"cannot connect to Ray at {address}: {error}"
        hint = "Look at RAY_ADDRESS, RAY_AUTH_MODE and the token, or unset RAY_ADDRESS"
        raise ClusterError(what, hint) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_term)  # Ray's own would abort the process
    return context.dashboard_url


class _ImportFolders(list[str]):
    """What workers put before all that is installed: fedray's own folder at most.

    Ray adds the folder of the script and the current one. A file there called queue.py
    would take the place of Python's own, on this machine alone.
    """

    def extend(self, folders: Iterable[str]) -> None:
        """Add folders that Ray finds."""
        super().extend(f for f in folders if Path(f).resolve() == OWN_FOLDER)


def _check_reachable(address: str) -> None:
    """Fail fast if nothing listens at the address: Ray itself would try for minutes.

    Raises
    ------
    ClusterError
        If nothing does, or the address is a dashboard's.
    """
    if "://" in address and not address.startswith("ray://"):
        what = f"RAY_ADDRESS={address} is for `ray job`"
        raise ClusterError(what, "Here it must be HEAD:6379, as `ray start` printed it")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # local, auto
    try:
        socket.create_connection(
            (host.strip("[]"), int(port)), CONNECT_TIMEOUT_S
        ).close()
    except (OSError, OverflowError) as error:
        what = f"nobody listens at RAY_ADDRESS={address}: {error}"
        raise ClusterError(what, "Look at the address, or unset RAY_ADDRESS") from None


def run_actors(
    plan: AggregatorPlan, start_ref: ObjectRef, watch: Watch, may_join: bool
) -> None:
    """Start all actors, wait for the aggregator's last round, and end all actors.

    `start_ref` : the initial weights by group; under None those of all others.
    `may_join` : wait for nodes with labels that no node has yet.
    """
    actors: dict[str, ActorHandle] = {}
    try:
        wait_s = plan.config.placement_timeout_s
        first_round = RunFolder(Path(plan.folder)).last_saved_round() + 1
        patience_s = wait_s if may_join else 0
        pools = placement.wait_for_placement(patience_s, plan.config, first_round)
        parties = _start_parties(plan, pools, actors)
        # not after them: the processes start at the same time
        aggregator = actors[""] = _start_aggregator(plan, pools)
        placement.wait_until_ready(parties, pools, wait_s)
        _wait_for_rounds(aggregator, plan, start_ref, watch)
    except RayTaskError as error:
        if isinstance(error.cause, FedrayError):
            raise error.cause from None
        what = f"the aggregator failed: {type(error.cause).__name__}: {error.cause}"
        raise ClusterError(what, _resume_hint(plan)) from error
    except RayError as error:
        what = f"the cluster failed: {type(error).__name__}: {error}"
        raise ClusterError(what, _resume_hint(plan)) from None
    finally:
        _end_actors(actors)


def _end_actors(actors: dict[str, ActorHandle]) -> None:
    """End all actors; the aggregator first gets time to export its last metrics."""
    if aggregator := actors.get(""):
        terminate: ActorMethod = aggregator.__ray_terminate__
        end_ref: ObjectRef = terminate.options(max_task_retries=0).remote()
        ray.wait([end_ref], timeout=FLUSH_METRICS_S)
    for actor in actors.values():
        ray.kill(actor)


def _resume_hint(plan: AggregatorPlan) -> str:
    return f"Finished rounds are kept in {plan.folder}; go on with --resume"


def _start_parties(
    plan: AggregatorPlan, pools: list[ActorPool], actors: dict[str, ActorHandle]
) -> dict[str, ActorHandle]:
    for pool in pools:
        for name in pool.actors:
            actors[name] = start_party(plan, pool, name)
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


def _wait_for_rounds(
    aggregator: ActorHandle, plan: AggregatorPlan, start_ref: ObjectRef, watch: Watch
) -> None:
    # as an argument of `run`, not of the actor: Ray keeps it for a restarted aggregator
    run_ref: ObjectRef = aggregator.run.remote(start_ref)
    n_seen = 0
    try:
        done = False
        while not done:
            done = bool(ray.wait([run_ref], timeout=POLL_S)[0])
            progress = ray.get(aggregator.progress.remote(n_seen))
            n_seen += len(progress.reports)
            watch(progress)
        ray.get(run_ref)
    except KeyboardInterrupt:
        aggregator.stop.remote()
        ray.wait([run_ref], timeout=STOP_TIMEOUT_S)
        n_done = RunFolder(Path(plan.folder)).last_saved_round()
        raise Stopped(n_done, plan.config.rounds, plan.folder) from None
