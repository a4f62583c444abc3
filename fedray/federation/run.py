"""Config in, result out."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from fedray import data, fusion, models, policy
from fedray.aggregator import AggregatorPlan
from fedray.checkpoint import RunFolder, opened, runs_folder, with_changes
from fedray.config import FederationConfig, parse, read_yaml
from fedray.ensemble import missing_files, workflow_of
from fedray.errors import ConfigError, FedrayError, RunFolderError
from fedray.federation.actors import Watch, conduct, connected
from fedray.federation.vocabulary import completed
from fedray.messages import Progress, RoundReport, Score
from fedray.metrics import open_tracker
from fedray.policy import overall
from fedray.report import write_report
from fedray.weights import Weights

LOG = logging.getLogger("fedray")


@dataclass(frozen=True)
class Result:
    """What a run gave.

    model : the global model's file; with groups, of the first.
    models : by group; under None where there is one for all.
    """

    folder: Path
    model: Path
    report: Path
    history: list[RoundReport]
    models: dict[str | None, Path] = field(default_factory=dict)
    ensemble: tuple[float, float] | None = None  # its loss and accuracy on `test_data`

    @property
    def loss(self) -> float | None:
        """Mean loss on the held-out samples; None if nothing was evaluated."""
        return self.ensemble[0] if self.ensemble else overall(self._last())[0]

    @property
    def accuracy(self) -> float | None:
        """Share of held-out samples answered right; None for regression."""
        return self.ensemble[1] if self.ensemble else overall(self._last())[1]

    def weights(self, group: str | None = None) -> Weights:
        """Arrays of the last global model, of a group if there are any."""
        return RunFolder(self.folder, group=group).newest()[0].weights

    def _last(self) -> list[Score]:
        """How the last global models do: with groups, each on its own samples."""
        last = {report.group: report for report in self.history}.values()
        return [Score("", r.evaluated, r.loss, r.accuracy, 0) for r in last]


def read_config(
    config: FederationConfig | Mapping[str, Any] | str | Path, **overrides: Any
) -> FederationConfig:
    """A checked config from a file, a mapping or a config, with keys overridden.

    Raises
    ------
    ConfigError
        With every mistake at once: keys, values, names that do not exist, files.
    """
    path = None
    if isinstance(config, FederationConfig):
        config = config.to_dict()
    elif isinstance(config, str | Path):
        path = Path(config)
        config = read_yaml(path)
    read, found = parse({**config, **overrides}, path)
    found += fusion.adaptive_problems(read)
    found += fusion.misfits(read, policy.fewest_updates(read))
    found += models.problems(read)
    for handler in read.handlers():
        found += data.problems(handler, read.model_type)
    if read.test_data and not Path(read.test_data).is_file():
        found.append(f"test_data {read.test_data} does not exist")
    found += missing_files(read)
    if found:
        raise ConfigError(found)
    return read


def run(
    config: FederationConfig | Mapping[str, Any] | str | Path,
    *,
    run_dir: str | Path | None = None,
    resume: bool = False,
    watch: Watch | None = None,
    dashboard: bool = False,
    **overrides: Any,
) -> Result:
    """Run one federation to its last round.

    Uses the cluster this process is connected to, else the one that RAY_ADDRESS names,
    else starts one on this machine and ends it afterwards.

    Parameters
    ----------
    run_dir : folder of the run; default ``~/.fedray/runs/<name>``.
    resume : go on from the folder's newest checkpoint.
    watch : called with a `Progress` a few times a second. It may raise
        KeyboardInterrupt, which stops the run as Ctrl-C does.
    dashboard : start Ray's dashboard with a local cluster.
    overrides : config keys, e.g. ``rounds=3``.

    Raises
    ------
    FedrayError
        Says who, what was got, what was needed; rounds done are kept in the folder.
    """
    config, watch = read_config(config, **overrides), watch or (lambda progress: None)
    path = Path(run_dir or runs_folder() / (config.name or "federation"))
    path = path.expanduser().absolute()
    config = with_changes(path, config) if resume else config
    initial = workflow_of(config).read()
    config, members = initial.config, initial.members
    blueprint = next(iter(initial.blueprints.values()))
    weights = initial.weights
    del initial
    for note in fusion.notes(config):
        LOG.warning(note)
    with opened(path, config, resume) as folder, ThreadPoolExecutor(1) as beside:
        with connected(dashboard, f"fedray:{path.name}") as may_join:
            handlers = {name: data.named(name) for name in config.handlers()}
            words = path.name, config, blueprint, handlers, str(path)
            plan = AggregatorPlan(*words, members)
            plan, weights = completed(plan, weights, watch, may_join)
            start_ref = ray.put(weights)
            del weights  # one copy of a large model is enough
            with _explained(folder, config), watched(config, folder, watch) as follower:
                conduct(plan, start_ref, follower, may_join)
            finishing = beside.submit(_finish, folder, config, plan)  # while Ray ends
        models_, report, told = finishing.result()
        first = next(iter(models_.values()))
        score = (told["loss"], told["accuracy"]) if "loss" in told else None
        return Result(path, first, report, folder.history(), models_, score)


@contextlib.contextmanager
def watched(
    config: FederationConfig, folder: RunFolder, watch: Watch
) -> Iterator[Watch]:
    """What is to be called with a run's progress.

    The track is given whole rounds, as their lines come to stand in the history:
    progress leaves out the lines of parties that did as they should.
    """
    if config.track == "none":
        yield watch
        return
    with open_tracker(config, folder.path) as log:
        history = folder.follow()

        def catch_up() -> None:
            for report in next(history):
                log(report)

        def follower(progress: Progress) -> None:
            if progress.reports:
                catch_up()
            watch(progress)

        try:
            yield follower
        finally:
            catch_up()


@contextlib.contextmanager
def _explained(folder: RunFolder, config: FederationConfig) -> Iterator[None]:
    """Let the report of a run that fails say why."""
    try:
        yield
    except FedrayError as error:
        if folder.is_started():
            with contextlib.suppress(OSError):  # what went wrong first is told
                _report(folder, config, str(error))
        raise


def _report(
    folder: RunFolder,
    config: FederationConfig,
    note: str = "",
    told: Mapping[str, Any] | None = None,
) -> Path:
    note = "\n".join(filter(None, [*fusion.notes(config), note]))
    plain = with_changes(folder.path, config).to_dict()
    return write_report(folder.path, plain, folder.history(), note, told)


def _finish(
    folder: RunFolder, config: FederationConfig, plan: AggregatorPlan
) -> tuple[dict[str | None, Path], Path, dict[str, Any]]:
    """Write the global models and the report of a finished run.

    Returns
    -------
    Models by group, the report, and what there is to tell of an ensemble.
    """
    workflow = workflow_of(config)
    try:
        files, scores = workflow.finish(folder, plan.blueprint, plan.members)
        return files, _report(folder, config, told=scores or None), scores
    except OSError as error:
        reason = f"{error.strerror}; every round is kept"
        remedy = "Make room, then go on with --resume"
        raise RunFolderError(str(folder.path), reason, remedy) from None
