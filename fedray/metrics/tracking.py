"""Experiment tracking: logs every round's metrics to MLflow or TensorBoard."""

import contextlib
import importlib.util
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from fedray.config import FederationConfig
from fedray.errors import MissingExtra
from fedray.messages import RoundReport
from fedray.metrics.table import TABLE
from fedray.untrusted_text import decode_name

LogRound = Callable[[RoundReport], None]
MAX_BATCH = 1000  # metrics that MLflow takes at once
MAX_PARAM = 500  # characters of a setting that MLflow takes
NOT_IN_METRICS = re.compile(r"[^/\w.\- :]")  # characters that MLflow does not take


def metric_values(report: RoundReport) -> Iterator[tuple[str, float]]:
    """Every number of a round under its name: ``loss``, ``party_loss/hospital-a``.

    A group's name comes between: ``loss/eu``.
    """
    for metric in TABLE:
        if metric.name not in ("round", "closed"):
            for tags, value in metric.values(report):
                parts = metric.name, report.group, *tags.values()
                yield "/".join(filter(None, parts)), value


@contextlib.contextmanager
def open_tracker(config: FederationConfig, folder: Path) -> Iterator[LogRound]:
    """Open the tracker that `track` names; yields the function that logs a round.

    Rounds are to be logged from the first on, also by a resumed run. What the tracker
    itself raises is not caught, and it may take long: see `fedray.observers`.
    """
    with TRACKERS[config.track](config, folder) as log:
        yield log


def require_tracker(config: FederationConfig) -> None:
    """Raise MissingExtra if the package that `track` names is not installed."""
    if config.track != "none" and not _is_installed(config.track):
        raise MissingExtra(f"track: {config.track}", config.track)


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


@contextlib.contextmanager
def _tensorboard(config: FederationConfig, folder: Path) -> Iterator[LogRound]:
    """Write events to `folder`/tensorboard, which is emptied first."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    events = folder / "tensorboard"
    shutil.rmtree(events, ignore_errors=True)
    writer = EventFileWriter(str(events))

    def log(report: RoundReport) -> None:
        scalars = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in metric_values(report)
        ]
        summary, now = Summary(value=scalars), time.time()
        writer.add_event(Event(wall_time=now, step=report.round, summary=summary))
        writer.flush()

    try:
        yield log
    finally:
        writer.close()


@contextlib.contextmanager
def _mlflow(config: FederationConfig, folder: Path) -> Iterator[LogRound]:
    """Log a run at MLFLOW_TRACKING_URI, else in files under `folder`/mlruns."""
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # not a line for each attempt
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # or it refuses files
        uri = (folder / "mlruns").as_uri()
    client, run_name = MlflowClient(tracking_uri=uri), decode_name(folder.name)
    experiment = client.get_experiment_by_name("fedray")
    create = client.create_experiment
    experiment_id = experiment.experiment_id if experiment else create("fedray")
    run_id = client.create_run(experiment_id, run_name=run_name).info.run_id
    settings = config.to_dict().items()
    params = [Param(key, str(value)[:MAX_PARAM]) for key, value in settings]
    client.log_batch(run_id, params=params)

    def log(report: RoundReport) -> None:
        now, step = int(1000 * time.time()), report.round
        values = metric_values(report)
        metrics = [Metric(_metric_name(name), v, now, step) for name, v in values]
        for start in range(0, len(metrics), MAX_BATCH):
            client.log_batch(run_id, metrics=metrics[start : start + MAX_BATCH])

    status = "FAILED"
    try:
        yield log
        status = "FINISHED"
    finally:
        client.set_terminated(run_id, status)


def _metric_name(name: str) -> str:
    """A name as MLflow takes it: other characters by their numbers, as ``:93f``."""
    return NOT_IN_METRICS.sub(lambda match: f":{ord(match[0]):x}", name)


Tracker = Callable[[FederationConfig, Path], AbstractContextManager[LogRound]]
TRACKERS: dict[str, Tracker] = {"mlflow": _mlflow, "tensorboard": _tensorboard}
