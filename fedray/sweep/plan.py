"""The runs of a sweep: their configs, checked together, and what is done of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray.checkpoint import (
    RunFolder,
    changed_settings,
    digest_inputs,
    earlier_digests,
    with_membership_changes,
)
from fedray.config import FederationConfig
from fedray.errors import ConfigError, FedrayError, RunFolderError, format_count
from fedray.experiments.grid import (
    SWEEP,
    Grid,
    complete_grid,
    name_run,
    read_mapping,
    run_names,
    with_value,
)
from fedray.experiments.records import SEED
from fedray.federation import check_settings, read_settings
from fedray.sweep.record import DONE, FAILED, End

N_NAMED = 3  # runs that a mistake is told of
NO_EDGES = (
    "a sweep does not go with edges, each of its runs would need invitations of its "
    "own: run them one by one"
)
UNCHANGED = "Undo that, or take another folder with --out"


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep; `point` are the settings that others have otherwise."""

    name: str
    point: Mapping[str, Any]
    config: FederationConfig


@dataclass(frozen=True)
class SweepPlan:
    """All runs of a sweep.

    name : of the config.
    keys : settings that runs differ by.
    """

    name: str
    keys: tuple[str, ...]
    runs: tuple[SweepRun, ...]


def read_plan(
    config: FederationConfig | Mapping[str, Any] | str | Path,
    words: Grid,
    n_seeds: int | None = None,
    problems: Sequence[str] = (),
) -> SweepPlan:
    """Read the config and check that of every run.

    words : what is given beside the file, with mistakes that were found in it.

    Raises
    ------
    ConfigError
        With every mistake of every run at once.
    """
    settings, file = read_settings(config)
    of_file, wrong_values = read_mapping(settings.pop(SWEEP, {}))
    mistakes = [*problems, *wrong_values]
    if mistakes and not {**of_file.axes, **words.axes}:  # all that is there is wrong
        raise ConfigError(mistakes)
    first = {**settings, **words.fixed}.get(SEED, 0)
    try:
        grid = complete_grid(of_file, words, n_seeds, first if is_seed(first) else 0)
        for key, value in grid.fixed.items():
            settings = with_value(settings, key, value)
    except ConfigError as error:
        raise ConfigError([*mistakes, *error.problems]) from None
    names = run_names(grid.axes)
    by_problem, runs = dict[str, list[str]](), list[SweepRun]()
    labels = dict[str, set[str]]()  # the parts of each run's name
    for point in grid.points():
        labels[name := name_run(point, names)] = {*name_run(point, names).split(",")}
        own, wrong = _check_run(settings, grid.settings_of(point), file)
        for problem in wrong:
            by_problem.setdefault(problem, []).append(name)
        runs += [SweepRun(name, point, own)] if own is not None else []
    mistakes += _describe(by_problem, labels)
    if mistakes:
        raise ConfigError(mistakes)
    return SweepPlan(runs[0].config.name or "federation", (*grid.axes,), (*runs,))


def is_seed(value: Any) -> bool:
    """Whether seeds can be counted from a value; what it is else is told elsewhere."""
    return isinstance(value, int) and not isinstance(value, bool)


def _check_run(
    settings: Mapping[str, Any], changes: Mapping[str, Any], file: Path | None
) -> tuple[FederationConfig | None, list[str]]:
    own = dict(settings)
    try:
        for key, value in changes.items():
            own = with_value(own, key, value)
    except ConfigError as error:
        return None, error.problems
    checked, problems = check_settings(own, file)
    if checked is not None and checked.has_edges:
        problems = [*problems, NO_EDGES]
    return checked, problems


def _describe(
    by_problem: Mapping[str, Sequence[str]], labels: Mapping[str, set[str]]
) -> list[str]:
    """Each mistake once, with the runs that have it if not all do.

    labels : of each run, by its name: of all that have a label this is enough.
    """
    lines = []
    for problem, names in by_problem.items():
        if len(names) == len(labels):
            lines.append(problem)
            continue
        shared = set.intersection(*(labels[name] for name in names))
        counts = Counter(one for own in labels.values() for one in own)
        whole = [one for one in sorted(shared) if counts[one] == len(names)]
        if whole:
            lines.append(f"{whole[0]}: {problem}")
            continue
        n_more = len(names) - N_NAMED
        more = f" and {format_count(n_more, 'run')} more" if n_more > 0 else ""
        lines.append(f"{', '.join(names[:N_NAMED])}{more}: {problem}")
    return lines


def read_ends(
    runs: Sequence[SweepRun], folder: Path, ends: Mapping[str, End]
) -> dict[str, End]:
    """How the runs have ended, by name; those that are to run are left out.

    ends : as they are recorded.

    Raises
    ------
    RunFolderError
        If rounds are done with other settings, or with other code, models or data.
    """
    over = dict[str, End]()
    changes = dict[str, list[str]]()
    for run in runs:
        path = folder / run.name
        try:
            for change in _changes_of(path, run.config):
                changes.setdefault(change, []).append(run.name)
            if _is_complete(path, run.config, ends.get(run.name)):
                over[run.name] = End(DONE)
        except FedrayError as error:  # damaged: the others go on
            over[run.name] = End(FAILED, str(error))
            continue
        if run.name in ends and ends[run.name].state == FAILED:
            over[run.name] = ends[run.name]
    if changes:
        lines = _describe(changes, {run.name: {run.name} for run in runs})
        what = "".join(f"\n  - {line}" for line in lines)
        reason = f"its runs cannot go on with another config:{what}\n"
        raise RunFolderError(str(folder), reason, UNCHANGED)
    return over


def _changes_of(path: Path, config: FederationConfig) -> list[str]:
    """What is another than when the run in a folder began, as sentences."""
    if not RunFolder(path).is_started():
        return []
    changes = changed_settings(path, with_membership_changes(path, config))
    before = earlier_digests(path)
    digests = digest_inputs(config) if before else {}
    changes += [
        f"{what} is not what it was"
        for what, digest in digests.items()
        if before.get(what) not in (None, digest)
    ]
    last = RunFolder(path).last_saved_round()
    if last > config.rounds:
        changes.append(f"rounds is {config.rounds}, and more are done")
    return changes


def _is_complete(path: Path, config: FederationConfig, end: End | None) -> bool:
    """Whether a run has ended, with its model; one that lacks that goes on."""
    history = RunFolder(path).history()
    if end is None or end.state != DONE or not history:
        return False
    last = {line.group: line for line in history}.values()
    return all(line.round >= config.rounds or line.stop_reason for line in last)
