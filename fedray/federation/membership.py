"""Membership changes: a party joins or leaves a run, running or stopped."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from fedray import data
from fedray.aggregator import (
    JoinReply,
    config_with,
    config_without,
    problems,
    stop_problems,
)
from fedray.checkpoint import (
    RunFolder,
    is_locked,
    lock_folder,
    runs_folder,
    write_config,
)
from fedray.config import FederationConfig, parse, read_party, read_yaml
from fedray.errors import (
    ClusterError,
    ConfigError,
    FedrayError,
    UnknownRun,
    format_count,
)
from fedray.federation.cluster_address import ClusterAddress
from fedray.federation.connection import existing_cluster, is_cluster_named
from fedray.federation.run_addresses import RunAddress, find_runs
from fedray.federation.runs import find_run, running_aggregators
from fedray.placement import run_label
from fedray.policy import stop_notes

STARTUP_S = 30.0  # of a run, from locking its folder to its aggregator


def join(run: str, party: Mapping[str, Any]) -> JoinReply:
    """Add a party to a run: the next round may choose it.

    A run that is not running takes it in when it is resumed.

    Parameters
    ----------
    run : name of a run that is running on this cluster, or of one in `~/.fedray/runs`,
        or a run's folder.
    party : as `parties` lists it: name, data, labels, fields, data_handler.

    Raises
    ------
    UnknownRun, ConfigError, PlacementError, JoinFailed, RunFolderError, ClusterError
        In each case the run goes on as before.
    """
    spec = read_party(party)
    handler = spec.data_handler and data.named(spec.data_handler)

    def change(config: FederationConfig, round: int) -> FederationConfig:
        return config_with(config, spec, round)

    with _running_aggregator(run) as aggregator:
        if aggregator is not None:
            return _get_answer(aggregator.join.remote(spec, handler), run)
    return JoinReply(_change_config(run, change))


def leave(run: str, name: str) -> int:
    """Remove a party from a run after the round under way.

    Returns
    -------
    The last round that it may take part in; of a run that is not running, the last
    one done.

    Raises
    ------
    UnknownRun, ConfigError, RunFolderError, ClusterError
        If there is no such run or party, or the others could not go on without it.
    """

    def change(config: FederationConfig, round: int) -> FederationConfig:
        return config_without(config, name, round)

    with _running_aggregator(run) as aggregator:
        if aggregator is not None:
            return _get_answer(aggregator.leave.remote(name), run)
    return _change_config(run, change) - 1


@contextlib.contextmanager
def _running_aggregator(run: str) -> Iterator[ActorHandle | None]:
    """The aggregator of a run that is alive, or None."""
    cluster = None
    if not is_cluster_named():
        entry = _wait_for_address(run)
        if entry is None:
            _check_folder(run, [entry.run for entry in find_runs()])
            yield None
            return
        cluster = ClusterAddress(entry.cluster, entry.run)
    with existing_cluster("fedray:membership", cluster):
        aggregators = _aggregators(run)
        aggregator = aggregators.get(run_label(Path(run).name))
        if aggregator is None:
            _check_folder(run, sorted(aggregators))
        yield aggregator


def _check_folder(run: str, alive: list[str]) -> None:
    if not _folder(run).is_dir():
        raise UnknownRun(run, alive)


def _wait_for_address(run: str) -> RunAddress | None:
    """Where the run is alive; waits for one whose folder is locked already."""
    until = time.monotonic() + STARTUP_S
    while True:
        entry, is_starting = find_run(run), is_locked(_folder(run))
        is_there = entry is not None and entry.cluster
        if is_there or not is_starting or time.monotonic() > until:
            return entry if is_there else None
        time.sleep(0.2)


def _aggregators(run: str) -> dict[str, ActorHandle]:
    """Aggregators by run; waits for that of a run whose folder is locked already."""
    until = time.monotonic() + STARTUP_S
    while True:
        aggregators = dict(running_aggregators())
        if (
            run_label(Path(run).name) in aggregators
            or not is_locked(_folder(run))
            or time.monotonic() > until
        ):
            return aggregators
        time.sleep(0.2)


def _get_answer(ref: ray.ObjectRef, run: str) -> Any:
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, FedrayError):
            raise error.cause from None
        what = f"{run} did not take it: {type(error.cause).__name__}: {error.cause}"
        raise ClusterError(what, "Nothing has changed") from None
    except RayError as error:
        what = f"{run} does not answer: {type(error).__name__}"
        raise ClusterError(what, "It may have ended; `fedray runs` tells") from None


def _folder(run: str) -> Path:
    path = Path(run).expanduser()
    return path if "/" in run else runs_folder() / run


def _change_config(
    run: str, change: Callable[[FederationConfig, int], FederationConfig]
) -> int:
    """Change the parties of a run that is not running; the first round it is for."""
    folder = _folder(run).absolute()
    if not (folder / "config.yaml").is_file():
        raise UnknownRun(run, [])
    with lock_folder(folder):
        before, mistakes = parse(read_yaml(folder / "config.yaml"))
        first_round = RunFolder(folder).last_saved_round() + 1
        stops = stop_notes(RunFolder(folder).history())
        if first_round > before.rounds:
            done = format_count(before.rounds, "round is", "rounds are")
            mistakes.append(f"{run} has ended: {done} done")
        elif stops and all(stops.values()):
            mistakes.append(f"{run} has ended: {'; '.join(stops.values())}")
        after = before if mistakes else change(before, first_round)
        mistakes = mistakes or problems(after, before)
        mistakes = mistakes or stop_problems(after, before, stops)
        if mistakes:
            raise ConfigError(mistakes)
        write_config(folder, after)
    return first_round
