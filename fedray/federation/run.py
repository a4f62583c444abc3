"""Runs one federation from its config to its result: `fedray.run`."""

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from fedray import data, fusion, models, policy
from fedray.aggregator import AggregatorPlan, put_starts
from fedray.checkpoint import (
    RunFolder,
    digest_inputs,
    open_run_folder,
    runs_folder,
    with_membership_changes,
    write_remedy,
)
from fedray.config import FederationConfig, parse, read_yaml
from fedray.ensemble import missing_files, workflow_of
from fedray.errors import ConfigError, FedrayError, ModelFileError, RunFolderError
from fedray.federation.actors import Watch, run_actors
from fedray.federation.connection import cluster_connection
from fedray.federation.run_addresses import announce_run
from fedray.federation.statistics import complete_by_statistics
from fedray.federation.survey import complete_plan
from fedray.messages import Progress, RoundReport, Score
from fedray.metrics import open_tracker, require_tracker
from fedray.observers import BackgroundObserver, Guard
from fedray.policy import merge_scores
from fedray.report import write_report
from fedray.untrusted_text import decode_name
from fedray.weights import Weights

LOG = logging.getLogger("fedray")


@dataclass(frozen=True)
class Result:
    """The result of a run.

    model : file of the global model; with groups, of the first.
    report : None if it could not be written.
    models : files by group; under None where there is one for all.
    ensemble : loss and accuracy of a whole ensemble on `test_data`.
    """

    folder: Path
    model: Path
    report: Path | None
    history: list[RoundReport]
    models: dict[str | None, Path] = field(default_factory=dict)
    ensemble: tuple[float, float] | None = None

    @property
    def loss(self) -> float | None:
        """Mean loss over the test samples; None if nothing was evaluated."""
        return self._scores[0]

    @property
    def accuracy(self) -> float | None:
        """Share of test samples classified correctly; None for regression."""
        return self._scores[1]

    def weights(self, group: str | None = None) -> Weights:
        """Weights of the last global model, of a group if there are any."""
        return RunFolder(self.folder, group=group).last_checkpoint().weights

    @property
    def _scores(self) -> tuple[float | None, ...]:
        """Loss and accuracy of the ensemble, or of the last global model.

        With groups over all of their models, each on its own samples.
        """
        if self.ensemble:
            return self.ensemble
        last = {report.group: report for report in self.history}.values()
        scores = [Score("", r.evaluated, r.loss, r.accuracy, 0) for r in last]
        return merge_scores(scores)[:2]


def read_config(
    config: FederationConfig | Mapping[str, Any] | str | Path, **overrides: Any
) -> FederationConfig:
    """Read and validate a config: a file, a mapping or a config, and overrides.

    Raises
    ------
    ConfigError
        Listing every mistake: unknown keys and names, values, missing files.
    """
    path = None
    if isinstance(config, FederationConfig):
        config = config.explicit_values()
    elif isinstance(config, str | Path):
        path = Path(config)
        config = read_yaml(path)
    parsed, mistakes = parse({**config, **overrides}, path)
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


def run(
    config: FederationConfig | Mapping[str, Any] | str | Path,
    *,
    run_dir: str | Path | None = None,
    resume: bool = False,
    watch: Watch | None = None,
    dashboard: bool = False,
    **overrides: Any,
) -> Result:
    """Run a federation to its last round.

    Uses the cluster this process is connected to, else the one that RAY_ADDRESS names,
    else starts one on this machine and ends it afterwards.

    Parameters
    ----------
    run_dir : folder of the run; default ``~/.fedray/runs/<name>``.
    resume : continue from the folder's newest checkpoint.
    watch : called with a `Progress` a few times a second, in the calling thread. It may
        raise KeyboardInterrupt, which stops the run as Ctrl-C does; any other exception
        is logged once, and the run goes on.
    dashboard : start Ray's dashboard with a local cluster.
    overrides : config keys, e.g. ``rounds=3``.

    Raises
    ------
    FedrayError
        Says who, what was got, what was needed; rounds done are kept in the folder.
    """
    config, watch = read_config(config, **overrides), _guarded(watch)
    path = folder_of_run(config, run_dir)
    config = with_membership_changes(path, config) if resume else config
    plan, weights = _read_plan(path, config)
    config = plan.config
    with (
        _opened(plan, path, resume) as (folder, plan),
        _kept_failure(folder, config),
        ThreadPoolExecutor(1) as executor,
        announce_run(plan.run, path) as announce,
    ):
        with cluster_connection(dashboard, f"fedray:{plan.run}") as may_join:
            announce(ray.get_runtime_context().gcs_address)
            plan, weights = complete_plan(plan, weights, watch, may_join)
            plan, weights = complete_by_statistics(plan, weights, watch, may_join)
            plan, start_ref = put_starts(plan, weights)
            del weights  # one copy of a large model is enough
            with _with_tracker(config, folder, watch) as tracked_watch:
                run_actors(plan, start_ref, tracked_watch, may_join)
                # as the tracker and Ray end
                finishing = executor.submit(_finish, folder, config, plan)
        return finishing.result()


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


def _guarded(watch: Watch | None) -> Watch:
    """The caller's function; an exception in it is said once and ends nothing."""
    return functools.partial(Guard("watch").call, watch) if watch else _watch_nothing


def _watch_nothing(progress: Progress) -> None:
    pass


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
    run, members = decode_name(path.name), initial.members
    plan = AggregatorPlan(run, config, blueprint, handlers, str(path), members)
    return plan, initial.weights


@contextlib.contextmanager
def _opened(
    plan: AggregatorPlan, path: Path, resume: bool
) -> Iterator[tuple[RunFolder, AggregatorPlan]]:
    """The run's folder, locked; the plan with what it says of an earlier start."""
    digests = digest_inputs(plan.config)
    with open_run_folder(path, plan.config, resume, digests) as (folder, inputs):
        done = folder.last_saved_round()
        yield (
            folder,
            dataclasses.replace(
                plan,
                run_id=inputs.run_id,
                recorded_rounds=done if done >= inputs.first_round else 0,
                changed_data=tuple(inputs.changed_data),
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
        keep(folder.write_failure, str(error))
        # REST serves the report, too: it names no log of a party
        Guard("report.html").call(_report, folder, config, error.summary)
        raise


def _report(
    folder: RunFolder,
    config: FederationConfig,
    note: str = "",
    ensemble: Mapping[str, Any] | None = None,
) -> Path:
    lines = [f"Round {r.round}: {n}." for r in folder.history() for n in r.notes]
    note = "\n".join(filter(None, [*fusion.notes(config), *lines, note]))
    plain = with_membership_changes(folder.path, config).to_dict()
    return write_report(folder.path, plain, folder.history(), note, ensemble)


def _finish(
    folder: RunFolder, config: FederationConfig, plan: AggregatorPlan
) -> Result:
    """Write the global models and the report of a finished run."""
    workflow = workflow_of(config)
    try:
        files, summary = workflow.finish(folder, plan.blueprint, plan.members)
    except (OSError, ModelFileError) as error:
        reason = f"{error}; every round is kept"
        raise RunFolderError(str(folder.path), reason, write_remedy(error)) from None
    write = Guard("report.html").call
    report = write(_report, folder, config, ensemble=summary or None)
    first = next(iter(files.values()))
    scores = (summary["loss"], summary["accuracy"]) if "loss" in summary else None
    return Result(folder.path, first, report, folder.history(), files, scores)
