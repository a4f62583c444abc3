"""Runs one federation from its config to its result: `fedray.run`."""

import contextlib
import contextvars
import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import ObjectRef

from fedray import data, fusion, models, policy
from fedray.aggregator import AggregatorPlan, Disclosure, put_starts
from fedray.checkpoint import (
    RunFolder,
    digest_inputs,
    find_model_files,
    open_run_folder,
    runs_folder,
    with_membership_changes,
    write_remedy,
)
from fedray.config import FederationConfig, parse, read_yaml
from fedray.edges.listing import list_edges
from fedray.edges.roster import Roster
from fedray.ensemble import missing_files, workflow_of, write_best
from fedray.errors import ConfigError, FedrayError, ModelFileError, RunFolderError
from fedray.experiments.grid import SWEEP
from fedray.federation.actors import Watch, run_actors
from fedray.federation.connection import cluster_connection, next_run_prepared
from fedray.federation.in_memory import CallObjects, free_name, take_objects
from fedray.federation.kernel import following
from fedray.federation.model_statistics import complete_by_statistics
from fedray.federation.result import Result
from fedray.federation.run_addresses import announce_run
from fedray.federation.survey import complete_plan
from fedray.messages import Progress, RoundReport
from fedray.metrics import open_tracker, require_tracker
from fedray.observers import BackgroundObserver, Guard
from fedray.report import write_report
from fedray.untrusted_text import decode_name
from fedray.user_code import IN_MEMORY, is_in_memory
from fedray.weights import Weights

LOG = logging.getLogger("fedray")
# models are made one at a time: frameworks have one random state for all threads
MODEL_LOCK = threading.Lock()
# has the actors of a run train all its rounds: `run_actors`
Conduct = Callable[[AggregatorPlan, ObjectRef, Watch, bool], None]


def read_config(
    config: FederationConfig | Mapping[str, Any] | str | Path, **overrides: Any
) -> FederationConfig:
    """Read and validate a config: a file, a mapping or a config, and overrides.

    Raises
    ------
    ConfigError
        Listing every mistake: unknown keys and names, values, missing files.
    """
    parsed, mistakes = _parse(config, overrides)
    return _check(parsed, mistakes)


def _parse(
    config: FederationConfig | Mapping[str, Any] | str | Path,
    overrides: Mapping[str, Any],
) -> tuple[FederationConfig, list[str]]:
    """A config, and what is wrong with it as far as it needs no file to be seen."""
    settings, file = read_settings(config)
    return _parse_settings({**settings, **overrides}, file)


def read_settings(
    config: FederationConfig | Mapping[str, Any] | str | Path,
) -> tuple[dict[str, Any], Path | None]:
    """The settings that a config gives, and the file that they are from.

    Raises
    ------
    ConfigError
        If it is none of these, or the file cannot be read.
    """
    if not isinstance(config, FederationConfig | Mapping | str | Path):
        got = f"the config is a {type(config).__module__}.{type(config).__qualname__}"
        needed = "a file's path or a mapping is needed; a model is given as model=..."
        raise ConfigError([f"{got}: {needed}"])
    if isinstance(config, FederationConfig):
        return config.explicit_values(), None
    if isinstance(config, Mapping):
        return dict(config), None
    return read_yaml(config), Path(config)


def _parse_settings(
    settings: Mapping[str, Any], file: Path | None
) -> tuple[FederationConfig, list[str]]:
    """As `_parse`, of settings that are from a file."""
    beside = file.parent if file else Path()
    settings, mistakes = find_model_files(settings, beside)
    if settings.pop(SWEEP, None) is not None:
        mistakes.append(f"{SWEEP} is for `fedray sweep`, which runs every combination")
    parsed, others = parse(settings, file)
    return parsed, mistakes + others


def check_settings(
    settings: Mapping[str, Any], file: Path | None = None
) -> tuple[FederationConfig | None, list[str]]:
    """The config of plain settings, or None and all that is wrong with them.

    file : that they are from: relative paths start beside it, and it names the run.
    """
    try:
        return _check(*_parse_settings(settings, file)), []
    except ConfigError as error:
        return None, error.problems


def _check(parsed: FederationConfig, mistakes: list[str]) -> FederationConfig:
    """The config, if nothing else is wrong with it either."""
    mistakes += fusion.adaptive_problems(parsed)
    mistakes += fusion.rule_problems(parsed, policy.fewest_updates(parsed))
    mistakes += models.problems(parsed)
    mistakes += data.config_problems(parsed)
    test_data = parsed.test_data or "/"
    # what is not absolute is no file: the config's own handler knows what it is
    if os.path.isabs(test_data) and not os.path.exists(test_data):
        mistakes.append(f"test_data {test_data} does not exist")
    mistakes += missing_files(parsed)
    if mistakes:
        raise ConfigError(mistakes)
    completed = data.complete_partition(parsed)
    if completed is not parsed and (problems := completed.problems()):
        raise ConfigError(problems)
    return completed


def run(  # noqa: PLR0913  (most are left out)
    config: FederationConfig | Mapping[str, Any] | str | Path | None = None,
    *,
    run_dir: str | Path | None = None,
    resume: bool = False,
    watch: Watch | None = None,
    dashboard: bool = False,
    as_new_run: bool = False,
    **overrides: Any,
) -> Result:
    """Run a federation to its last round.

    Uses the cluster this process is connected to, else the one that RAY_ADDRESS names,
    else starts one on this machine and ends it afterwards; in a notebook it stays for
    the next call, until `fedray.shutdown()` or the kernel's end.

    Parameters
    ----------
    config : a file's path, a mapping or a config; not needed where overrides say all.
    run_dir : folder of the run; default ``~/.fedray/runs/<name>``.
    resume : continue from the folder's newest checkpoint.
    watch : called with a `Progress` a few times a second, in the calling thread. It may
        raise KeyboardInterrupt, which stops the run as Ctrl-C does; any other exception
        is logged once, and the run goes on. Default in a notebook: a table.
    dashboard : start Ray's dashboard with a local cluster.
    as_new_run : with `resume`, in a copy of the folder of a run with privacy: go on as
        a run of its own, with another id and key; what both release adds up.
    overrides : config keys, e.g. ``rounds=3``. Some may be objects, for a simulation:

        model : a torch module, Keras model, ...; it is not changed.
        parties : by name ``(x, y)``, a data set, a DataFrame with a column `target`, or
            ``{"train": ..., "test": ...}`` of these; or a path.
        partition : with such data as its `source`.
        test : test samples of the aggregator, likewise.
        loss, optimizer, data_handler, architecture, model_type : the function or class.

    Raises
    ------
    FedrayError
        Says who, what was got, what was needed; rounds done are kept in the folder.
    """
    options = RunOptions(run_dir, resume, dashboard, as_new_run)
    return run_by(run_actors, config, options, watch, **overrides)


class RunOptions(NamedTuple):
    """Arguments of `run` that are no settings of the run."""

    run_dir: str | Path | None = None
    resume: bool = False
    dashboard: bool = False
    as_new_run: bool = False


def run_by(
    conduct: Conduct,
    config: FederationConfig | Mapping[str, Any] | str | Path | None,
    options: RunOptions,
    watch: Watch | None,
    **overrides: Any,
) -> Result:
    """As `run`, with actors that `conduct` has: `run_actors` starts and ends its own.

    Others are lent to it; `fedray status` and `stop` do not know such a run.
    """
    run_dir, resume, dashboard, as_new_run = options
    has_own = conduct is run_actors
    objects = take_objects(config, overrides)
    with data.in_memory(objects.handler) as handler:
        with MODEL_LOCK:
            config, path = _read_call(config, objects, run_dir, resume)
            plan, weights = _read_plan(path, config)
        with (
            following(plan.config, watch) as watch,
            _opened(plan, path, objects, resume, as_new_run) as (folder, plan),
            _kept_failure(folder, plan.config),
            ThreadPoolExecutor(1) as executor,
            announce_run(plan.run, path) if has_own else _unannounced() as announce,
        ):
            with cluster_connection(dashboard, f"fedray:{plan.run}") as may_join:
                announce(ray.get_runtime_context().gcs_address)
                objects.store(handler)
                with (
                    next_run_prepared(plan.config, watch) as watch,
                    _trained(conduct, folder, plan, weights, watch, may_join) as plan,
                ):
                    here = contextvars.copy_context()  # as the tracker and Ray end
                    finishing = executor.submit(here.run, _finish, folder, plan)
            return finishing.result()


@contextlib.contextmanager
def _unannounced() -> Iterator[Callable[[str], None]]:
    """In place of `announce_run` for a run that has no address file."""
    yield lambda cluster: None


@contextlib.contextmanager
def _trained(  # noqa: PLR0913
    conduct: Conduct,
    folder: RunFolder,
    plan: AggregatorPlan,
    weights: dict[str | None, Weights],
    watch: Watch,
    may_join: bool,
) -> Iterator[AggregatorPlan]:
    """Train all rounds from the initial weights, which are let go; the complete plan.

    What watches the run ends after the block.
    """
    with MODEL_LOCK:
        plan, complete = complete_plan(plan, weights, watch, may_join)
        plan, complete = complete_by_statistics(plan, complete, watch, may_join)
    plan, start_ref = put_starts(plan, complete)
    complete.clear()  # one copy of a large model is enough
    weights.clear()
    with _with_tracker(plan.config, folder, watch) as tracked_watch:
        conduct(plan, start_ref, tracked_watch, may_join)
        yield plan


def _read_call(
    config: FederationConfig | Mapping[str, Any] | str | Path | None,
    objects: CallObjects,
    run_dir: str | Path | None,
    resume: bool,
) -> tuple[FederationConfig, Path]:
    """The checked config of a call, and its run's folder, with the initial model."""
    if config is None or isinstance(config, Mapping):
        config = {}  # its settings are among the objects'
    parsed, mistakes = _parse(config, objects.settings)
    if objects.model is None:
        parsed = _check(parsed, mistakes)
    else:
        own_file = parsed.model_file
        parsed = _check(parsed.with_changes(model_file=None), mistakes)
        parsed = parsed.with_changes(model_file=own_file)
    if run_dir is None and parsed.name is None and not objects.is_empty:
        run_dir = runs_folder() / free_name(resume)
    path = folder_of_run(parsed, run_dir)
    if file := objects.write_start_model(path, resume):
        parsed = parsed.with_changes(model_file=str(file))
    return with_membership_changes(path, parsed) if resume else parsed, path


def folder_of_run(config: FederationConfig, run_dir: str | Path | None) -> Path:
    """The folder of a run; its name is the run's for all that lists runs.

    Raises
    ------
    RunFolderError
        If it is below a home that does not exist.
    """
    path = Path(run_dir or runs_folder() / (config.name or "federation"))
    try:
        return path.expanduser().absolute()
    except RuntimeError:  # ~ without HOME, or of nobody
        reason = "there is no such home; write the whole path"
        raise RunFolderError(str(run_dir), reason) from None


def _read_plan(
    path: Path, config: FederationConfig
) -> tuple[AggregatorPlan, dict[str | None, Weights]]:
    """Read models and handlers, log what is notable; plan, initial weights by group."""
    require_tracker(config)
    initial = workflow_of(config).read()
    config, blueprint = initial.config, next(iter(initial.blueprints.values()))
    for note in fusion.notes(config):
        LOG.warning(note)
    handlers = {name: data.named(name) for name in config.handlers()}
    if is_in_memory(config.test_data or ""):
        handlers[IN_MEMORY] = data.named(IN_MEMORY)
    run, members = decode_name(path.name), initial.members
    plan = AggregatorPlan(run, config, blueprint, handlers, str(path), members)
    return plan, initial.weights


@contextlib.contextmanager
def _opened(
    plan: AggregatorPlan,
    path: Path,
    objects: CallObjects,
    resume: bool,
    as_new_run: bool,
) -> Iterator[tuple[RunFolder, AggregatorPlan]]:
    """The run's folder, locked; the plan with what it says of an earlier start."""
    digests = {**digest_inputs(plan.config), **objects.digests}
    opened = open_run_folder(path, plan.config, resume, digests, as_new_run)
    with opened as (folder, inputs):
        done = folder.last_saved_round()
        yield (
            folder,
            dataclasses.replace(
                plan,
                run_id=inputs.run_id,
                recorded_rounds=done if done >= inputs.first_round else 0,
                changed_data=tuple(inputs.changed_data),
                changed_rates=tuple(inputs.changed_rates),
            ),
        )


@contextlib.contextmanager
def _with_tracker(
    config: FederationConfig, folder: RunFolder, watch: Watch
) -> Iterator[Watch]:
    """Extend `watch` to log every finished round with the experiment tracker."""
    if config.track == "none":
        yield watch
        return
    tracker: BackgroundObserver[None] = BackgroundObserver(
        Guard(f"track: {config.track}"), lambda: _follow(config, folder)
    )

    def tracked_watch(progress: Progress) -> None:
        if progress.reports:
            tracker(None)
        watch(progress)

    with tracker:
        yield tracked_watch


@contextlib.contextmanager
def _follow(
    config: FederationConfig, folder: RunFolder
) -> Iterator[Callable[[None], None]]:
    """Open the tracker; yields the function that logs every round that is new.

    Rounds are read from the history, which is complete: progress leaves out the lines
    of parties without trouble. One that could not be logged is tried again with the
    next.
    """
    with open_tracker(config, folder.path) as log:
        history, pending = folder.follow(), list[RoundReport]()

        def log_new_rounds(_: None = None) -> None:
            pending.extend(next(history))
            while pending:
                log(pending[0])
                del pending[0]

        try:
            yield log_new_rounds
        finally:
            log_new_rounds()


@contextlib.contextmanager
def _kept_failure(folder: RunFolder, config: FederationConfig) -> Iterator[None]:
    """Keep why a run fails, in its folder and in its report, before round 1 too."""
    keep = Guard("failure.txt").call
    keep(folder.write_failure, "")
    try:
        yield
    except FedrayError as error:
        guard = Guard("operator.jsonl")
        public = Disclosure(config, folder.path, guard).error(error)
        keep(folder.write_failure, str(public))
        # REST serves the report, too: it names no log of a party
        summary = getattr(public, "summary", "")
        Guard("report.html").call(_report, folder, config, summary)
        if public is error:
            raise
        raise public from None


def _report(
    folder: RunFolder,
    config: FederationConfig,
    note: str = "",
    ensemble: Mapping[str, Any] | None = None,
) -> Path:
    history = folder.history()
    lines = [f"Round {r.round}: {n}." for r in history for n in r.notes]
    lines += [f"{r.stop_note}.".capitalize() for r in history if r.stop_note]
    note = "\n".join(filter(None, [*fusion.notes(config), *lines, note]))
    plain = with_membership_changes(folder.path, config).to_dict()
    edges = list_edges(Roster(folder.path)) if config.has_edges else []
    return write_report(folder.path, plain, folder.history(), note, ensemble, edges)


def _finish(folder: RunFolder, plan: AggregatorPlan) -> Result:
    """Write the global models and the report of a finished run."""
    config = plan.config
    workflow = workflow_of(config)
    try:
        with MODEL_LOCK:
            files, summary = workflow.finish(folder, plan.blueprint, plan.members)
            best = write_best(folder, config, plan.blueprint)
    except (OSError, ModelFileError) as error:
        reason = f"{error}; every round is kept"
        raise RunFolderError(str(folder.path), reason, write_remedy(error)) from None
    notes = [plan.blueprint.personal_note]
    notes += [f"Best model: {one}." for one in best.values()]
    note = "\n".join(filter(None, notes))
    write = Guard("report.html").call
    report = write(_report, folder, config, note, summary or None)
    first = next(iter(files.values()))
    scores = (summary["loss"], summary["accuracy"]) if "loss" in summary else None
    return Result(folder.path, first, report, folder.history(), files, scores, best)
