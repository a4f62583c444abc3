"""Parties that join a run and leave it, asked for from any terminal."""

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from fedray import data
from fedray.aggregator import JoinReply, config_after, config_without, problems
from fedray.checkpoint import RunFolder, held, is_held, runs_folder, write_config
from fedray.config import FederationConfig, parse, read_party, read_yaml
from fedray.errors import ClusterError, ConfigError, FedrayError, UnknownRun
from fedray.federation.actors import joined
from fedray.federation.runs import aggregators

STARTS_S = 30.0  # from holding its folder to its aggregator


def join(run: str, party: Mapping[str, Any]) -> JoinReply:
    """Let one more party into a run: the next round may choose it.

    A run that is not alive takes it in when it is resumed.

    Parameters
    ----------
    run : name of a run that is alive on this cluster, or of one in `~/.fedray/runs`,
        or a run's folder.
    party : as `parties` lists it: name, data, labels, fields, data_handler.

    Raises
    ------
    UnknownRun, ConfigError, PlacementError, JoinFailed, RunFolderError, ClusterError
        And the run goes on as before.
    """
    spec = read_party(party)
    found = spec.data_handler and data.named(spec.data_handler)

    def lay_down(config: FederationConfig, round: int) -> FederationConfig:
        return config_after(config, spec, round)

    with _alive(run) as aggregator:
        if aggregator is not None:
            return _answer(aggregator.join.remote(spec, found), run)
    return JoinReply(_changed(run, lay_down))


def leave(run: str, name: str) -> int:
    """Let a party go: no round after the one under way asks it for anything.

    Returns
    -------
    The last round that it may have a part in. Of a run that is not alive, the last one
    done.

    Raises
    ------
    UnknownRun, ConfigError, RunFolderError, ClusterError
        If there is no such run or party, or the others could not go on without it.
    """

    def lay_down(config: FederationConfig, round: int) -> FederationConfig:
        return config_without(config, name, round)

    with _alive(run) as aggregator:
        if aggregator is not None:
            return _answer(aggregator.leave.remote(name), run)
    return _changed(run, lay_down) - 1


@contextlib.contextmanager
def _alive(run: str) -> Any:
    """The aggregator of a run on this cluster, or None."""
    found: dict[str, ActorHandle] = {}
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(joined())
            found = _starting(run)
        except ClusterError:
            if os.environ.get("RAY_ADDRESS"):
                raise  # a cluster was asked for
        aggregator = found.get(Path(run).name)
        if aggregator is None and not _folder(run).is_dir():
            raise UnknownRun(run, sorted(found))
        yield aggregator


def _starting(run: str) -> dict[str, ActorHandle]:
    """Runs that are alive; waits for one whose folder is in use already."""
    until = time.monotonic() + STARTS_S
    while True:
        found = dict(aggregators())
        if (
            Path(run).name in found
            or not is_held(_folder(run))
            or time.monotonic() > until
        ):
            return found
        time.sleep(0.2)


def _answer(ref: ray.ObjectRef, run: str) -> Any:
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


def _changed(
    run: str, change: Callable[[FederationConfig, int], FederationConfig]
) -> int:
    """Change the parties of a run that is not alive; the first round it is for."""
    folder = _folder(run).absolute()
    if not (folder / "config.yaml").is_file():
        raise UnknownRun(run, [])
    with held(folder):
        before, found = parse(read_yaml(folder / "config.yaml"))
        since = RunFolder(folder).n_kept() + 1
        if since > before.rounds:
            found.append(f"{run} has ended: its {before.rounds} rounds are done")
        after = before if found else change(before, since)
        found = found or problems(after, before)
        if found:
            raise ConfigError(found)
        write_config(folder, after)
    return since
