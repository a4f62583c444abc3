"""Experiment tracking: the same table, round by round, to MLflow or TensorBoard."""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedray.config import FederationConfig
from fedray.errors import MissingExtra
from fedray.messages import RoundReport
from fedray.metrics.table import TABLE

Log = Callable[[RoundReport], None]


def values(report: RoundReport) -> Iterator[tuple[str, float]]:
    """Every number of a round under its name: ``loss``, ``party_loss/hospital-a``.

    A group's name comes between: ``loss/eu``.
    """
    for metric in TABLE:
        if metric.name not in ("round", "closed"):
            for tags, value in metric.of(report):
                words = metric.name, report.group, *tags.values()
                yield "/".join(filter(None, words)), value


@contextlib.contextmanager
def tracked(config: FederationConfig, folder: Path) -> Iterator[Log]:
    """What every closed round is to be given to, from the first: one track per start.

    Raises
    ------
    MissingExtra
        If the package that `track` names is not installed.
    """
    with TRACKS[config.track](config, folder) as log:
        yield log


@contextlib.contextmanager
def _tensorboard(config: FederationConfig, folder: Path) -> Iterator[Log]:
    """Events in `folder`/tensorboard, made anew: a resumed run tells all its rounds."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        raise MissingExtra("track: tensorboard", "tensorboard") from None
    events = folder / "tensorboard"
    shutil.rmtree(events, ignore_errors=True)
    writer = EventFileWriter(str(events))

    def log(report: RoundReport) -> None:
        told = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in values(report)
        ]
        summary, now = Summary(value=told), time.time()
        writer.add_event(Event(wall_time=now, step=report.round, summary=summary))
        writer.flush()

    try:
        yield log
    finally:
        writer.close()


@contextlib.contextmanager
def _mlflow(config: FederationConfig, folder: Path) -> Iterator[Log]:
    """A run at MLFLOW_TRACKING_URI, else in files under `folder`/mlruns."""
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
    except ImportError:
        raise MissingExtra("track: mlflow", "mlflow") from None
    where = os.environ.get("MLFLOW_TRACKING_URI")
    if not where:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # or it refuses files
        where = (folder / "mlruns").as_uri()
    client = MlflowClient(tracking_uri=where)
    known = client.get_experiment_by_name("fedray")
    experiment = known.experiment_id if known else client.create_experiment("fedray")
    run_id = client.create_run(experiment, run_name=folder.name).info.run_id
    plain = _flat(config.to_dict())
    client.log_batch(run_id, params=[Param(key, text) for key, text in plain])

    def log(report: RoundReport) -> None:
        now = int(1000 * time.time())
        told = [Metric(n, v, now, report.round) for n, v in values(report)]
        for start in range(0, len(told), 1000):  # all that a batch may hold
            client.log_batch(run_id, metrics=told[start : start + 1000])

    status = "FAILED"
    try:
        yield log
        status = "FINISHED"
    finally:
        client.set_terminated(run_id, status)


def _flat(plain: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, str(value)[:500]) for key, value in plain.items()]


TRACKS = {"mlflow": _mlflow, "tensorboard": _tensorboard}
