"""Connection to a Ray cluster: one that is running, or one started on this machine."""

import contextlib
import functools
import logging
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import ray
from ray._private import ray_constants, services, worker
from ray._private.node import Node
from ray._private.runtime_env import uv_runtime_env_hook
from ray._private.utils import estimate_available_memory, resolve_object_store_memory
from ray.job_config import JobConfig

from fedray.config import FederationConfig
from fedray.errors import ClusterError
from fedray.federation import worker_pool
from fedray.federation.actors import Watch
from fedray.federation.cluster_address import (
    LOCAL,
    ClusterAddress,
    asked_address,
    check_cluster,
    find_cluster,
    socket_error,
)
from fedray.federation.host_checks import (
    SHARED_MEMORY,
    check_address_space,
    check_shared_memory,
    check_thread_limit,
    check_token,
    exposure_notes,
    has_token_place,
    home_folder,
    prepare_ray_folder,
    token_file,
    token_path,
)
from fedray.federation.kernel import is_interactive
from fedray.messages import Progress

RAY_PATIENCE_S = 30  # after which Ray gives a starting node up
PATIENCE_S = 120.0  # of the second try
POLL_S = 0.5
MANY_PROCESSES = "worker processes have been started on node"  # in a warning of Ray
TIMED_OUT = "timed out during startup"
RAYLET_ENDED = "its raylet has ended"  # also where the machine is too busy for Ray
UV_HOOK = "uv_runtime_env_hook"  # named in RAY_RUNTIME_ENV_HOOK, it would copy too
ONE_MACHINE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # if it is 0
UV_VARIABLE = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
OWN_FOLDER = Path(__file__).parents[2]  # from which fedray is imported
LOG = logging.getLogger("fedray")
Settings = dict[str, Any] | None


@contextlib.contextmanager
def cluster_connection(dashboard: bool = False, job: str = "fedray") -> Iterator[bool]:
    """Connect to the Ray cluster of RAY_ADDRESS, else start one on this machine.

    A cluster that was started here is ended afterwards, but in a notebook or an IPython
    session: there it stays for the next call, until `shutdown`. Yields whether more
    nodes may join: not a cluster that was started here.
    `job` : name of this process in the dashboard; a submitted job has one already.

    Raises
    ------
    ClusterError
        If it cannot be reached, or Ray does not start.
    """
    if _LOCAL.is_lost():
        shutdown()
    if ray.is_initialized():
        yield not _LOCAL.is_started
        return
    address = asked_address()
    if address == LOCAL and is_interactive():
        _LOCAL.start(dashboard, job)
        yield False
        return
    with _messages_logged():
        if address == LOCAL:
            _start(dashboard, job)
        else:
            _connect(ClusterAddress(address), job)
            _tell_exposure(_cluster_folder())
        with _ending_ray():
            yield address != LOCAL


@contextlib.contextmanager
def next_run_prepared(config: FederationConfig, watch: Watch) -> Iterator[Watch]:
    """In a notebook: start processes for the actors of a run like this one.

    Once its own actors have begun to train. Yields the function that follows the run.
    """
    if not _LOCAL.is_started:
        yield watch
        return
    n_actors = 1 + (len(config.parties) or os.cpu_count() or 1)
    prepare = functools.cache(lambda: worker_pool.prestart_workers(n_actors))

    def follow(progress: Progress) -> None:
        if progress.round:
            prepare()
        watch(progress)

    try:
        yield follow
    finally:
        prepare()


def shutdown() -> None:
    """End the Ray that stays in a notebook after a run, and its processes.

    Does nothing if there is none; a Ray that fedray has not started here stays.
    """
    _LOCAL.end()


class LocalRay:
    """The Ray of a notebook: started by its first run, and ended with the kernel."""

    def __init__(self) -> None:
        self.context = contextlib.ExitStack()
        self.is_started = False

    def start(self, dashboard: bool, job: str) -> None:
        """Start Ray on this machine, for this and later calls."""
        self.end()
        with contextlib.ExitStack() as context:
            context.enter_context(_messages_logged())
            context.enter_context(_ending_ray())
            _start(dashboard, job, worker_pool.system_config())
            self.context, self.is_started = context.pop_all(), True

    def end(self) -> None:
        """End it, if it was started."""
        self.is_started = False
        self.context.close()

    def is_lost(self) -> bool:
        """Whether it was started and has ended since, or was replaced by another."""
        if not self.is_started:
            return False
        node: Any = worker._global_node
        is_connected = ray.is_initialized() and node is not None
        return not is_connected or socket_error(node.raylet_socket_name) is not None


_LOCAL = LocalRay()


@contextlib.contextmanager
def _ending_ray() -> Iterator[None]:
    """Disconnect from Ray afterwards; end it if it was started here."""
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def existing_cluster(job: str, cluster: ClusterAddress | None = None) -> Iterator[None]:
    """Connect to a cluster that is running already; none is started.

    `cluster` : default: the one of RAY_ADDRESS.

    Raises
    ------
    ClusterError
        If it cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    with _messages_logged():
        _connect(cluster or ClusterAddress(asked_address()), job)
        with _ending_ray():
            yield


def is_cluster_named() -> bool:
    """Whether this process has a cluster, or RAY_ADDRESS names one."""
    return ray.is_initialized() or asked_address() != LOCAL


def _connect(cluster: ClusterAddress, job: str) -> None:
    if cluster.address == "auto":
        cluster = ClusterAddress(find_cluster())
    if not cluster.run:
        LOG.info("connecting to Ray at %s", cluster.address)
    is_local = check_cluster(cluster)
    on_loopback = _on_loopback() if is_local else contextlib.nullcontext()
    try:
        with _uv_hook(_is_uv_hook_wanted()), on_loopback:
            _init(cluster.address, job)
    except Exception as error:
        text = " ".join(f"{error} {error.__cause__ or ''}".split())[:500]
        what = f"cannot connect to Ray at {cluster}: {text}"
        raise ClusterError(what, cluster.remedy) from None


def _cluster_folder() -> Path:
    """Ray's folder on this node of the cluster that this process is connected to."""
    node: Any = worker._global_node
    return Path(node.get_temp_dir_path())


def _tell_exposure(folder: Path) -> None:
    """Log what other users of this machine can read; `folder` is Ray's."""
    for note in exposure_notes(os.environ, home_folder(), folder):
        LOG.warning(note)


def _start(dashboard: bool, job: str, settings: Settings = None) -> None:
    """Start Ray on this machine; once more, with more patience, if it takes long."""
    # reuse freed memory at once: by default Ray waits for 100 objects or a second,
    # and fresh pages are slow. Only on one node: a copy in transit between nodes
    # while the object is freed would stay
    os.environ.setdefault("RAY_free_objects_batch_size", "1")
    folder = _check_host()
    LOG.info("starting Ray")
    init = functools.partial(_init, LOCAL, job, dashboard, settings, folder)
    with _uv_hook(False), _on_loopback():
        url = _start_patiently(init)
    if dashboard and url:
        LOG.info("dashboard http://%s", url)
        if os.environ.get("RAY_AUTH_MODE") == "token":
            LOG.info("it asks for a token: %s", _token_place())


def _token_place() -> str:
    """Where a person finds the token of a cluster that was started here."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "that of RAY_AUTH_TOKEN"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return f"the text of {path}" if path else "`ray get-auth-token` prints it"


def _check_host() -> str | None:
    """Check that Ray can start here, and make its token; its folder, unless its own."""
    folder = prepare_ray_folder(os.environ, os.getpid())
    check_token(os.environ)
    n_store_bytes = resolve_object_store_memory(estimate_available_memory())
    check_address_space(resource.getrlimit(resource.RLIMIT_AS)[0], n_store_bytes)
    if os.geteuid():  # it does not hold for root
        check_thread_limit(resource.getrlimit(resource.RLIMIT_NPROC)[0])
    for note in check_shared_memory(SHARED_MEMORY, n_store_bytes):
        LOG.warning(note)
    _prepare_token()
    _tell_exposure(folder.path)
    return str(folder.path) if folder.is_own else None


def _prepare_token() -> None:
    """Make the token of a new cluster, readable by this user alone."""
    home = home_folder()
    if not has_token_place(os.environ, home):
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file())
    elif file := token_path(os.environ, home):
        token_file(file)


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Let a cluster that is started listen at 127.0.0.1 alone, on all its ports.

    It has this machine only, and Ray's metrics and some of its agents ask for no token.
    Ray has no setting for it, but takes 127.0.0.1 as a node's address, and for that of
    a cluster, where it cannot have clusters of several machines. The variable is for
    the cluster's processes.
    """
    before = os.environ.get(ONE_MACHINE)
    os.environ[ONE_MACHINE] = "0"
    try:
        with _replaced(ray_constants, "ENABLE_RAY_CLUSTER", False):
            yield
    finally:
        del os.environ[ONE_MACHINE]
        if before is not None:
            os.environ[ONE_MACHINE] = before


def _start_patiently(init: Callable[[], str | None]) -> str | None:
    try:
        with _raylet_watch(0):
            return init()
    except Exception as error:
        failure = _start_failure(error)
        if TIMED_OUT not in str(error) and RAYLET_ENDED not in str(error):
            raise failure from None
    LOG.info(
        "Ray has not started, as on a busy machine: trying again, up to %.0f s",
        PATIENCE_S,
    )
    try:
        with _raylet_watch(PATIENCE_S - RAY_PATIENCE_S):
            return init()
    except Exception as error:
        raise _start_failure(error) from None


def _init(
    address: str,
    job: str,
    dashboard: bool | None = None,
    settings: Settings = None,
    folder: str | None = None,
) -> str | None:
    """Call `ray.init`; returns the dashboard's address, if it has one.

    settings : Ray's own, of a cluster that is started.
    folder : of its sessions; None: that of RAY_TMPDIR, or of the cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    named = JobConfig(metadata={"job_name": job})
    named._py_driver_sys_path = _ImportFolders()
    on_term = signal.getsignal(signal.SIGTERM)
    context = ray.init(
        address,
        namespace="fedray",
        job_config=named,
        include_dashboard=dashboard,
        _skip_env_hook=UV_HOOK in os.environ.get("RAY_RUNTIME_ENV_HOOK", ""),
        log_to_driver=False,
        logging_level=logging.ERROR,
        _system_config=settings,
        _temp_dir=folder,
    )
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


@contextlib.contextmanager
def _raylet_watch(extra_s: float) -> Iterator[None]:
    """Let a node that starts take longer; give it up when its raylet has ended."""
    get_node = services.get_node

    def wait_for_node(address: str, node_id: str) -> Any:
        until = time.monotonic() + extra_s
        while True:
            try:
                return get_node(address, node_id)
            except RuntimeError:
                if not _has_raylet():
                    raise ClusterError(RAYLET_ENDED, "") from None
                if time.monotonic() >= until:
                    raise
                time.sleep(POLL_S)

    with _replaced(services, "get_node", wait_for_node):
        yield


def _messages_logged() -> contextlib.AbstractContextManager[None]:
    """Log what Ray tells all drivers, where it would print it to stdout, coloured."""
    return _replaced(worker, "print_to_stdstream", log_message)


def log_message(message: Mapping[str, Any], ignore_prefix: bool = False) -> None:
    """Log a message of Ray in one line; none about how many processes it starts.

    That is what parties are: it says nothing that a user could change.
    """
    text = " ".join(" ".join(message["lines"]).split())
    if MANY_PROCESSES not in text:
        LOG.warning("Ray: %s", text)


@contextlib.contextmanager
def _replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    """Give a module's name another value meanwhile: Ray has no setting for it."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _has_raylet() -> bool:
    """Whether a raylet that this process has started is alive."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.name() == "raylet" and child.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def _start_failure(error: Exception) -> ClusterError:
    """End what a node that did not start has left; the error in words."""
    text = " ".join(str(error).split()).rstrip(".")[:500]
    hint = "Try again when the machine has less to do"
    frame = error.__traceback__
    while frame is not None:
        node = frame.tb_frame.f_locals.get("self")
        if isinstance(node, Node):
            node.kill_all_processes(check_alive=False, allow_graceful=False)
            hint += f"; Ray's own logs are in {node.get_session_dir_path()}/logs"
            break
        frame = frame.tb_next
    return ClusterError(f"Ray does not start on this machine: {text}", hint)


@contextlib.contextmanager
def _uv_hook(is_on: bool) -> Iterator[None]:
    """Whether Ray copies the working folder to all nodes, as it does under `uv run`.

    It would copy data, too, and data never moves.
    """
    with _replaced(ray_constants, UV_VARIABLE, is_on):
        yield


def _is_uv_hook_wanted() -> bool:
    """Whether the user has turned that copy on; logs what becomes of it."""
    if uv_runtime_env_hook._get_uv_run_cmdline() is None:
        return False
    is_wanted = os.environ.get(UV_VARIABLE, "").lower() in ("1", "true")
    what = f"the folder {os.getcwd()} to all nodes, data in it too"
    if is_wanted:
        LOG.warning("%s is set: Ray copies %s", UV_VARIABLE, what)
    else:
        LOG.warning(
            "under `uv run` Ray would copy %s: that is off, and parties use their "
            "nodes' own Python; %s=1 turns it on", what, UV_VARIABLE,
        )  # fmt: skip
    return is_wanted
