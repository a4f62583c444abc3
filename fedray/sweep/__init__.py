"""Sweeps: one config run with every combination of some values, side by side.

>>> from fedray.sweep import sweep
>>> results = sweep("mnist.yaml", {"learning_rate": [0.01, 0.1]}, seeds=5)
>>> print(results.table())
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedray.checkpoint import RunFolder, runs_folder
from fedray.config import FederationConfig
from fedray.errors import ConfigError, RunFolderError
from fedray.experiments import Results, results
from fedray.experiments.grid import Grid, read_mapping
from fedray.federation import cluster_connection
from fedray.sweep.conductor import Conductor, SweepWatch, preload
from fedray.sweep.plan import SweepPlan, read_ends, read_plan
from fedray.sweep.progress import SweepProgress
from fedray.sweep.record import (
    DONE,
    FAILED,
    End,
    SweepRecord,
    SweepStopped,
    open_record,
)

__all__ = [
    "SweepPlan",
    "SweepProgress",
    "SweepStopped",
    "SweepWatch",
    "read_plan",
    "run_plan",
    "sweep",
]


def sweep(  # noqa: PLR0913  (most are left out)
    config: FederationConfig | Mapping[str, Any] | str | Path,
    values: Mapping[str, Sequence[Any]] | None = None,
    *,
    seeds: int | None = None,
    jobs: int | None = None,
    out: str | Path | None = None,
    retry_failed: bool = False,
    watch: SweepWatch | None = None,
    **overrides: Any,
) -> Results:
    """Run a config with every combination of some values; goes on with what is begun.

    Parameters
    ----------
    config : a file's path, a mapping or a config; a key `sweep` in it has values, too.
    values : by setting those that it is to have; nested settings by dotted names,
        ``{"learning_rate": [0.01, 0.1], "partition.alpha": [0.1, 1]}``.
    seeds : so many seeds, counted from the config's.
    jobs : runs side by side; None: as cores and GPUs allow.
    out : folder of the sweep; default ``~/.fedray/runs/<name>-sweep``.
    retry_failed : try runs again that have failed before.
    watch : called with a `SweepProgress` a few times a second.
    overrides : settings of all runs, as `fedray.run` takes them.

    Raises
    ------
    ConfigError
        With every mistake of every run, before the first starts.
    FedrayError
        A run that fails raises nothing: `results.table()` has a note of it.
    """
    grid, problems = read_mapping(values or {})
    words = Grid(grid.axes, overrides, grid.variants)
    plan = read_plan(config, words, seeds, problems)
    folder = run_plan(plan, out, jobs, retry_failed, watch or _watch_nothing)[0]
    return results(folder)


def run_plan(
    plan: SweepPlan,
    out: str | Path | None,
    n_jobs: int | None,
    retries: bool,
    watch: SweepWatch,
) -> tuple[Path, dict[str, End]]:
    """Run what is left of a sweep; its folder, and how its runs have ended by name.

    Raises
    ------
    FedrayError, OSError
        If the sweep was stopped, or cannot go on. What is done is kept.
    """
    if n_jobs is not None and n_jobs < 1:
        raise ConfigError([f"jobs must be 1 or more, got {n_jobs}"])
    folder = sweep_folder(plan, out)
    with open_record(folder, plan.keys) as record:
        ends = read_ends(plan.runs, folder, record.ends)
        if retries:
            ends = {name: end for name, end in ends.items() if end.state != FAILED}
        progress = SweepProgress(
            plan.name, folder, {run.name: run.config.rounds for run in plan.runs}
        )
        for name, end in ends.items():
            if end.state == DONE:
                progress.runs[name].take(RunFolder(folder / name).history())
            progress.end(name, end)
        _run_rest(plan, record, progress, n_jobs, watch)
        return folder, {run.name: _end_of(progress, run.name) for run in plan.runs}


def _run_rest(
    plan: SweepPlan,
    record: SweepRecord,
    progress: SweepProgress,
    n_jobs: int | None,
    watch: SweepWatch,
) -> None:
    runs = [r for r in plan.runs if progress.runs[r.name].state not in (DONE, FAILED)]
    if not runs:
        watch(progress)
        return
    thread = threading.Thread(target=preload, args=(runs,), daemon=True)
    thread.start()
    with cluster_connection(job=f"fedray:sweep {plan.name}"):
        thread.join()
        Conductor(record, progress, n_jobs, watch).run(runs)


def _end_of(progress: SweepProgress, run: str) -> End:
    own = progress.runs[run]
    return End(own.state, own.reason)


def sweep_folder(plan: SweepPlan, out: str | Path | None) -> Path:
    """The folder of a sweep.

    Raises
    ------
    RunFolderError
        If it is below a home that does not exist, or is a run's.
    """
    path = Path(out or runs_folder() / f"{plan.name}-sweep")
    try:
        path = path.expanduser().absolute()
    except RuntimeError:  # ~ without HOME, or of nobody
        reason = "there is no such home; write the whole path"
        raise RunFolderError(str(out), reason) from None
    if (path / "history.jsonl").exists() or (path / "config.yaml").exists():
        reason = "is the folder of a run; a sweep has one of its own"
        raise RunFolderError(str(path), reason, "Name another with --out")
    return path


def _watch_nothing(progress: SweepProgress) -> None:
    pass
