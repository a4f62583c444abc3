"""Runs seen from any terminal: those that are alive on a cluster, and past ones."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from fedray.checkpoint import RunFolder, runs_folder
from fedray.config import FederationConfig, parse, read_yaml
from fedray.errors import FedrayError, RunFolderError, UnknownRun
from fedray.messages import RoundReport
from fedray.placement import AGGREGATOR

ANSWER_S = 10.0  # of an aggregator that is asked how far it is
ENDED_S = 60.0  # a stopped run has cleared its actors away by then


@dataclass(frozen=True)
class RunState:
    """How far a run is.

    stage : an aggregator's own, or silent where it does not answer; of a run that has
        only a folder, ended, unfinished or unreadable.
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

    @property
    def is_past(self) -> bool:
        """Known from its folder only: it does not run here now."""
        return self.stage in ("ended", "unfinished", "unreadable")

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return vars(self) | {"last": self.last and self.last.to_json()}


def alive() -> list[RunState]:
    """Every federation that runs on the cluster this process is connected to."""
    asked = {}
    for run, aggregator in aggregators():
        asked[run] = aggregator.progress.remote(-1)
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_S)
    return [_state(run, ref) for run, ref in sorted(asked.items())]


def past(folder: Path | None = None) -> list[RunState]:
    """Every run that has a folder here, whatever became of it."""
    folder = folder or runs_folder()
    if not folder.is_dir():
        return []
    return [_past(path) for path in sorted(folder.iterdir()) if _is_run(path)]


def stop(run: str) -> RunState:
    """Ask a run to stop, and wait until it has; rounds done are kept.

    Raises
    ------
    UnknownRun
        If no run of that name is alive on this cluster; says which are.
    """
    found = dict(aggregators())
    if run not in found:
        raise UnknownRun(run, sorted(found))
    ref = found[run].progress.remote(-1)
    ray.wait([ref], timeout=ANSWER_S)
    before = _state(run, ref)
    found[run].stop.remote()
    until = time.monotonic() + ENDED_S
    while run in dict(aggregators()):
        if time.monotonic() > until:
            raise RunFolderError(before.folder, f"has not stopped in {ENDED_S:g} s")
        time.sleep(0.2)
    return before


def aggregators() -> Iterator[tuple[str, ActorHandle]]:
    """Names and aggregators of the runs that are alive on this cluster."""
    for named in ray.util.list_named_actors(all_namespaces=True):
        name, namespace = named["name"], named["namespace"]
        if name.startswith(AGGREGATOR):
            try:
                handle = ray.get_actor(name, namespace)
            except ValueError:  # it has ended since
                continue
            yield name.removeprefix(AGGREGATOR), handle


def _state(run: str, ref: ray.ObjectRef) -> RunState:
    try:
        said = ray.get(ref, timeout=0)
    except RayError:
        return RunState(run, "silent")
    return RunState(
        run,
        said.stage,
        said.folder,
        said.round,
        said.rounds,
        said.chosen,
        said.reported,
        said.reports[-1] if said.reports else None,
        said.troubled,
    )


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file()


def _past(path: Path) -> RunState:
    try:
        history = RunFolder(path).history()
        rounds = _config(path).rounds
    except (OSError, FedrayError):
        return RunState(path.name, "unreadable", str(path))
    last = history[-1] if history else None
    n_done = last.round if last else 0
    stage = "ended" if n_done >= rounds else "unfinished"
    return RunState(path.name, stage, str(path), n_done, rounds, last=last)


def _config(path: Path) -> FederationConfig:
    return parse(read_yaml(path / "config.yaml"))[0]
