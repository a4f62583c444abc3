"""Runs as trials of Ray Tune: searches beyond a grid, with its samplers and schedulers.

>>> from ray import tune
>>> from fedray.tune import trainable
>>> space = {"learning_rate": tune.loguniform(0.001, 1)}
>>> results = tune.Tuner(trainable("mnist.yaml"), param_space=space).fit()
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedray.checkpoint import RunFolder
from fedray.config import FederationConfig
from fedray.errors import ConfigError, MissingExtra
from fedray.experiments.grid import with_value
from fedray.federation import check_settings, read_settings, run
from fedray.messages import Progress, RoundReport

REPORTED = "reported.json"  # in a checkpoint: the last round that Tune knows of
CHECKPOINTS = "checkpoints"
NO_EDGES = (
    "a search does not go with edges, each of its trials would need invitations of its "
    "own: run them one by one"
)
N_TRIES = 10  # to copy a run's folder while its rounds go on
Trial = Callable[[dict[str, Any]], None]


def trainable(
    config: FederationConfig | Mapping[str, Any] | str | Path, **overrides: Any
) -> Trial:
    """A function for ``ray.tune.Tuner`` that runs a config with a trial's values.

    Keys of the trial's config are settings, nested ones by dotted names
    (``partition.alpha``). Every round is reported: `round`, `loss`, `accuracy`, other
    metrics, `bytes_moved`, `seconds`, and `folder`, where the run is. A trial that is
    paused, or killed, goes on after the last round that was saved.

    What a trial reserves (`tune.with_resources`; one core by default) is for all of its
    parties: they reserve nothing themselves, unless the config has `party_cpus`.

    Raises
    ------
    ConfigError
        With every mistake in the config; those of a trial's values end the trial.
    MissingExtra
        Without Ray Tune.
    """
    _import_tune()
    settings, file = read_settings(config)
    for key, value in overrides.items():
        settings = with_value(settings, key, value)
    settings.setdefault("party_cpus", 0)
    checked, problems = check_settings(settings, file)
    if checked is not None and (
        checked.groups is not None or checked.has_member_models
    ):
        problems = ["a search goes by the values of one model: not of groups' models"]
    if checked is not None and checked.has_edges:
        problems = [*problems, NO_EDGES]
    if checked is None or problems:
        raise ConfigError(problems)
    base = checked.explicit_values()  # with whole paths: trials run elsewhere

    def fedray_trial(config: dict[str, Any]) -> None:
        _run_trial(base, config)

    return fedray_trial


def _import_tune() -> Any:
    try:
        from ray import tune
    except ImportError:
        raise MissingExtra("fedray.tune", "tune") from None
    return tune


def _run_trial(base: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Run a trial in its process; Tune ends it by SystemExit in `report`."""
    tune = _import_tune()
    settings: dict[str, Any] = dict(base)
    for key in sorted(values, key=lambda key: key.count(".")):
        settings = with_value(settings, key, values[key])
    config, problems = check_settings(settings)
    if config is None:
        raise ConfigError(problems)
    context = tune.get_context()
    # in names of actors: no other trial has it
    folder = Path(context.get_trial_dir()) / f"run-{context.get_trial_id()}"
    n_reported = _restore(tune.get_checkpoint(), folder)
    reporter = Reporter(tune, folder, n_reported)
    run(config, run_dir=folder, resume=True, watch=reporter)
    reporter.finish()


class Reporter:
    """Reports each round of a run to Ray Tune, with a checkpoint.

    tune : the module.
    n_reported : rounds that Tune knows already.
    """

    def __init__(self, tune: Any, folder: Path, n_reported: int):
        self.tune, self.folder, self.n_reported = tune, folder, n_reported
        self.values: dict[str, Any] = {}  # the last of each that was measured

    def __call__(self, progress: Progress) -> None:
        """Report rounds that are new."""
        self.report(progress.reports)

    def finish(self) -> None:
        """Report what came after the last look."""
        self.report(RunFolder(self.folder).history())

    def report(self, reports: list[RoundReport]) -> None:
        """Report those that Tune does not know; the newest has a checkpoint."""
        new = [report for report in reports if report.round > self.n_reported]
        for report in new:
            self.values |= metrics_of(report)
            values = {**self.values, "folder": str(self.folder)}
            if report is new[-1]:
                self._report_with_checkpoint(report.round, values)
            else:
                self.tune.report(values)
            self.n_reported = report.round

    def _report_with_checkpoint(self, round: int, values: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as aside:
            checkpoint = None
            if _copy_run(self.folder, Path(aside)):
                text = json.dumps({"round": round})
                Path(aside, REPORTED).write_text(text, encoding="utf-8")
                checkpoint = self.tune.Checkpoint.from_directory(aside)
            self.tune.report(values, checkpoint=checkpoint)


def metrics_of(report: RoundReport) -> dict[str, Any]:
    """The numbers of a round that were measured."""
    values: dict[str, Any] = {
        "round": report.round,
        "loss": report.loss,
        "accuracy": report.accuracy,
        "bytes_moved": report.bytes_moved,
        "seconds": report.seconds,
        **dict(report.numbers),
    }
    return {name: value for name, value in values.items() if value is not None}


def _restore(checkpoint: Any, folder: Path) -> int:
    """Put a trial's checkpoint where its run is; the last round that Tune knows of."""
    if checkpoint is None:
        return 0
    shutil.rmtree(folder, ignore_errors=True)  # of this trial, before it was paused
    with checkpoint.as_directory() as own:
        shutil.copytree(own, folder)
    (folder / ".lock").touch()  # which says that a run wrote what is there
    file = folder / REPORTED
    n_reported = int(json.loads(file.read_text(encoding="utf-8"))["round"])
    file.unlink()
    return n_reported


def _copy_run(folder: Path, target: Path) -> bool:
    """Copy what a run needs to go on, while it does; False if it has nothing yet.

    Its files are replaced as wholes; a checkpoint may be deleted meanwhile.
    """
    for _ in range(N_TRIES):
        saved = RunFolder(folder).saved_rounds()
        if not saved:
            return False
        newest = Path(CHECKPOINTS, f"round-{saved[-1]:05d}")
        for path in target.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        try:
            for path in folder.iterdir():
                if path.name.startswith(".") or path.name == CHECKPOINTS:
                    continue
                copy: Any = shutil.copytree if path.is_dir() else shutil.copy2
                copy(path, target / path.name)
            shutil.copytree(folder / newest, target / newest)
            return True
        except (FileNotFoundError, shutil.Error):
            continue
    return False
