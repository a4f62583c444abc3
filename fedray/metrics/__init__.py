"""Metrics for Prometheus, Grafana, MLflow and TensorBoard, all from one table."""

import functools
from typing import TYPE_CHECKING

from fedray.config import FederationConfig
from fedray.messages import RoundReport
from fedray.metrics.grafana import dashboard
from fedray.metrics.table import COUNTER, TABLE, Metric
from fedray.metrics.tracking import LogRound, open_tracker, require_tracker

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Gauge

__all__ = [
    "COUNTER",
    "TABLE",
    "LogRound",
    "Metric",
    "dashboard",
    "open_tracker",
    "publish",
    "require_tracker",
]

N_PARTIES = 50  # with series of their own: Prometheus keeps every series


def publish(run: str, config: FederationConfig, report: RoundReport) -> None:
    """Record one round's metrics with Ray, whose nodes export them to Prometheus.

    Only inside a Ray worker. Metrics by party cover the config's first `N_PARTIES`.
    """
    places = range(min(config.num_parties or 0, N_PARTIES))
    exported = {config.party_name(place) for place in places}
    gauges, counters = _instruments()
    for metric in TABLE:
        for tags, value in metric.values(report):
            if "party" in tags and tags["party"] not in exported:
                continue
            tags = {key: _to_ascii(tag) for key, tag in {"run": run, **tags}.items()}
            if metric.kind != COUNTER:
                gauges[metric.name].set(value, tags)
            elif value > 0:  # Ray refuses to increment by 0
                counters[metric.name].inc(value, tags)


def _to_ascii(tag: str) -> str:
    """A tag as Ray takes it; other letters are written as Python escapes them."""
    return tag.encode("ascii", "backslashreplace").decode("ascii")


@functools.cache
def _instruments() -> "tuple[dict[str, Gauge], dict[str, Counter]]":
    """Ray's gauges and counters by metric name, once in a process: Ray keeps them."""
    from ray.util.metrics import Counter, Gauge

    gauges, counters = {}, {}
    for metric in TABLE:
        tag_keys = "run", *metric.tags
        if metric.kind == COUNTER:
            counters[metric.name] = Counter(metric.full_name, metric.help, tag_keys)
        else:
            gauges[metric.name] = Gauge(metric.full_name, metric.help, tag_keys)
    return gauges, counters
