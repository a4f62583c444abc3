"""Lists and stops runs: those running on a cluster, and past ones by their folders."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError

from fedray.checkpoint import RunFolder, runs_folder
from fedray.config import FederationConfig, parse, read_yaml
from fedray.errors import FedrayError, RunFolderError, UnknownRun
from fedray.messages import RoundReport
from fedray.placement import AGGREGATOR

ANSWER_TIMEOUT_S = 10.0  # of an aggregator that is asked for its progress
STOP_TIMEOUT_S = 60.0  # a stopped run has ended its actors by then


@dataclass(frozen=True)
class RunState:
    """Progress of a run.

    stage : the aggregator's, or silent where it does not answer; of a run that only
        has a folder: ended, unfinished or unreadable.
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
    reason: str = ""  # of a run that failed or was stopped

    @property
    def is_past(self) -> bool:
        """Whether the run is known from its folder only: it is not running here."""
        return self.stage in ("ended", "unfinished", "unreadable")

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return vars(self) | {"last": self.last and self.last.to_json()}


def list_running() -> list[RunState]:
    """State of every run on the cluster that this process is connected to."""
    progress_refs: dict[str, ObjectRef] = {}
    for run, aggregator in running_aggregators():
        progress_refs[run] = aggregator.progress.remote(-1)
    refs = list(progress_refs.values())
    ray.wait(refs, num_returns=len(refs), timeout=ANSWER_TIMEOUT_S)
    return [_state(run, ref) for run, ref in sorted(progress_refs.items())]


def list_past(folder: Path | None = None) -> list[RunState]:
    """State of every run that has a folder here, finished or not."""
    folder = folder or runs_folder()
    if not folder.is_dir():
        return []
    return [_past_state(path) for path in sorted(folder.iterdir()) if _is_run(path)]


def stop(run: str) -> RunState:
    """Ask a run to stop, and wait until it has; rounds done are kept.

    Raises
    ------
    UnknownRun
        If no run of that name is running on this cluster; lists those that are.
    RunFolderError
        If there is only its folder: it has ended, or stopped before.
    """
    aggregators = dict(running_aggregators())
    if run not in aggregators:
        folder = runs_folder() / run
        if _is_run(folder):
            reason = "it is not running here: there is nothing to stop"
            raise RunFolderError(str(folder), reason)
        raise UnknownRun(run, sorted(aggregators))
    progress_ref: ObjectRef = aggregators[run].progress.remote(-1)
    ray.wait([progress_ref], timeout=ANSWER_TIMEOUT_S)
    before = _state(run, progress_ref)
    aggregators[run].stop.remote()
    until = time.monotonic() + STOP_TIMEOUT_S
    while run in dict(running_aggregators()):
        if time.monotonic() > until:
            reason = f"has not stopped in {STOP_TIMEOUT_S:g} s"
            raise RunFolderError(before.folder, reason)
        time.sleep(0.2)
    return before


def running_aggregators() -> Iterator[tuple[str, ActorHandle]]:
    """Names and aggregators of the runs on this cluster."""
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
    stage = "ended" if n_done >= rounds else "unfinished"
    state = RunState(path.name, stage, str(path), n_done, rounds, last=last)
    return replace(state, reason=reason)


def _config(path: Path) -> FederationConfig:
    return parse(read_yaml(path / "config.yaml"))[0]
