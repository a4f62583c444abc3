"""Lists and stops runs: those running on a cluster, and past ones by their folders."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError

from fedray.checkpoint import RunFolder, is_locked, runs_folder
from fedray.config import FederationConfig, parse, read_yaml
from fedray.errors import ClusterError, FedrayError, RunFolderError, UnknownRun
from fedray.federation.cluster_address import ClusterAddress
from fedray.federation.connection import existing_cluster, is_cluster_named
from fedray.federation.run_addresses import RunAddress, find_runs
from fedray.messages import BUDGET_SPENT, RoundReport, is_budget_spent
from fedray.placement import AGGREGATOR, run_label
from fedray.policy import stop_notes

ANSWER_TIMEOUT_S = 5.0  # of an aggregator that is asked for its progress
STOP_TIMEOUT_S = 60.0  # a stopped run has ended its actors by then
LOG = logging.getLogger("fedray")


@dataclass(frozen=True)
class RunState:
    """Progress of a run.

    stage : the aggregator's, starting where there is none yet, or silent where it does
        not answer; on HOST, of another machine that shares this home; of a run that
        only has a folder: ended, budget_spent, unfinished or unreadable.
    """

    run: str
    stage: str
    folder: str = ""
    round: int = 0  # under way, or the last one done
    rounds: int = 0
    chosen: int = 0
    reported: int = 0
    last: RoundReport | None = None  # the last round done
    troubled: dict[str, str] | None = None
    reason: str = ""  # of a run that failed, was stopped, or stopped early

    @property
    def is_past(self) -> bool:
        """Whether the run is known from its folder only: it is not running here."""
        return self.stage in ("ended", BUDGET_SPENT, "unfinished", "unreadable")

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return vars(self) | {"last": self.last and self.last.to_json()}


def list_running() -> list[RunState]:
    """State of every run that is alive.

    On the cluster that this process is connected to or RAY_ADDRESS names; else of this
    user's runs on this machine, each asked at its own cluster.

    Raises
    ------
    ClusterError
        If RAY_ADDRESS names a cluster that cannot be reached.
    """
    if is_cluster_named():
        with existing_cluster("fedray:status"):
            return _ask_aggregators()
    by_cluster = defaultdict(list)
    states = []
    for entry in find_runs():
        if entry.is_here:
            by_cluster[entry.cluster].append(entry)
        else:
            states.append(_state_from_folder(entry, f"on {entry.host}"))
    for entry in by_cluster.pop("", []):
        states.append(_state_from_folder(entry, "starting"))
    for address, entries in by_cluster.items():
        states += _ask_cluster(ClusterAddress(address, entries[0].run), entries)
    return sorted(states, key=lambda state: (state.run, state.folder))


def _ask_cluster(
    cluster: ClusterAddress, entries: list[RunAddress]
) -> Iterator[RunState]:
    """States of runs that share a cluster; one that does not answer is logged."""
    stage = "starting"
    states = dict[str, RunState]()
    try:
        with existing_cluster("fedray:status", cluster):
            states = {state.run: state for state in _ask_aggregators()}
    except ClusterError as error:
        LOG.warning(str(error))
        stage = "silent"
    for entry in entries:
        yield states.get(run_label(entry.run)) or _state_from_folder(entry, stage)


def _state_from_folder(entry: RunAddress, stage: str) -> RunState:
    """State of a run whose aggregator cannot be asked."""
    return replace(_past_state(Path(entry.folder)), stage=stage)


def _ask_aggregators() -> list[RunState]:
    """State of every run on the cluster that this process is connected to."""
    progress_refs: dict[str, ObjectRef] = {}
    for run, aggregator in running_aggregators():
        progress_refs[run] = aggregator.progress.remote(-1)
    refs = list(progress_refs.values())
    ray.wait(refs, num_returns=len(refs), timeout=ANSWER_TIMEOUT_S)
    return [_state(run, ref) for run, ref in sorted(progress_refs.items())]


def list_past(folder: Path | None = None) -> list[RunState]:
    """State of every run that has a folder here, finished or not."""
    try:
        folder = folder or runs_folder()
    except RunFolderError:
        return []  # of a user without a home
    if not folder.is_dir():
        return []
    return [_past_state(path) for path in sorted(folder.iterdir()) if _is_run(path)]


def read_past(folder: str) -> list[RunState]:
    """State of the run in a folder, wherever that is; empty if it has none."""
    path = Path(folder)
    is_begun = (path / ".lock").exists()  # a project has a config.yaml, too
    return [_past_state(path)] if is_begun and _is_run(path) else []


def stop(run: str) -> RunState:
    """Ask a run to stop, and wait until it has; rounds done are kept.

    run : its name, or its folder.

    Raises
    ------
    UnknownRun
        If no run of that name is alive; lists those that are.
    RunFolderError
        If there is only its folder: it has ended, or stopped before.
    """
    if is_cluster_named():
        with existing_cluster("fedray:stop"):
            before = _ask_to_stop(run)
            _wait_until(lambda: before.run not in dict(running_aggregators()), before)
        return before
    entry = find_run(run)
    if entry is None:
        raise _not_running(run, [entry.run for entry in find_runs()])
    if not entry.cluster:
        what = f"{entry.run} is connecting to its Ray cluster"
        raise ClusterError(what, "Stop it where it was started, or a little later")
    with existing_cluster("fedray:stop", ClusterAddress(entry.cluster, entry.run)):
        before = _ask_to_stop(entry.run)
    # not connected meanwhile: its cluster may end with it
    _wait_until(lambda: not is_locked(Path(entry.folder)), before)
    return before


def find_run(run: str) -> RunAddress | None:
    """The run of this user that is alive and has this name or folder, if there is one.

    Raises
    ------
    ClusterError
        If there are several, or its driver is on another machine.
    """
    entries = find_runs(run)
    if len(entries) > 1:
        folders = ", ".join(entry.folder for entry in entries)
        what = f"{len(entries)} runs are named {run}: {folders}"
        raise ClusterError(what, "Give the folder instead of the name")
    if entries and not entries[0].is_here:
        what = f"{run} runs on {entries[0].host}"
        raise ClusterError(what, "Give this command there")
    return entries[0] if entries else None


def _not_running(run: str, alive: list[str]) -> FedrayError:
    folder = runs_folder() / run
    if _is_run(folder):
        reason = "it is not running here: there is nothing to stop"
        return RunFolderError(str(folder), reason)
    return UnknownRun(run, sorted(alive))


def _ask_to_stop(run: str) -> RunState:
    """Tell a run's aggregator on this cluster to stop; the state before."""
    aggregators = dict(running_aggregators())
    name = run_label(Path(run).name)
    if name not in aggregators:
        raise _not_running(run, list(aggregators))
    progress_ref: ObjectRef = aggregators[name].progress.remote(-1)
    ray.wait([progress_ref], timeout=ANSWER_TIMEOUT_S)
    before = _state(name, progress_ref)
    stop_ref: ObjectRef = aggregators[name].stop.remote()
    ray.wait([stop_ref], timeout=ANSWER_TIMEOUT_S)
    return before


def _wait_until(has_ended: Callable[[], bool], before: RunState) -> None:
    LOG.info("waiting for %s to stop, up to %.0f s", before.run, STOP_TIMEOUT_S)
    until = time.monotonic() + STOP_TIMEOUT_S
    while not has_ended():
        if time.monotonic() > until:
            reason = f"has not stopped in {STOP_TIMEOUT_S:g} s"
            raise RunFolderError(before.folder, reason)
        time.sleep(0.2)


def running_aggregators() -> Iterator[tuple[str, ActorHandle]]:
    """Names (`run_label`) and aggregators of the runs on this cluster."""
    for actor in ray.util.list_named_actors(all_namespaces=True):
        name, namespace = actor["name"], actor["namespace"]
        if name.startswith(AGGREGATOR):
            try:
                handle = ray.get_actor(name, namespace)
            except ValueError:  # it has ended since
                continue
            yield name.removeprefix(AGGREGATOR), handle


def _state(run: str, progress_ref: ObjectRef) -> RunState:
    try:
        progress = ray.get(progress_ref, timeout=0)
    except RayError:
        return RunState(run, "silent")
    return RunState(
        run,
        progress.stage,
        progress.folder,
        progress.round,
        progress.rounds,
        progress.chosen,
        progress.reported,
        progress.reports[-1] if progress.reports else None,
        progress.troubled,
    )


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file()


def _past_state(path: Path) -> RunState:
    try:
        history, reason = RunFolder(path).history(), RunFolder(path).failure()
        rounds = _config(path).rounds
    except (OSError, FedrayError):
        return RunState(path.name, "unreadable", str(path))
    last = history[-1] if history else None
    n_done = last.round if last else 0
    stops = stop_notes(history).values()
    has_ended = n_done >= rounds or (last and all(stops))
    stage = "ended" if has_ended else "unfinished"
    last_reasons = {line.group: line.stop_reason for line in history}.values()
    if has_ended and any(map(is_budget_spent, last_reasons)):
        stage = BUDGET_SPENT
    state = RunState(path.name, stage, str(path), n_done, rounds, last=last)
    return replace(state, reason=reason or "\n".join(filter(None, stops)))


def _config(path: Path) -> FederationConfig:
    return parse(read_yaml(path / "config.yaml"))[0]
