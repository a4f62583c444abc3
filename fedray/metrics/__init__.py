"""What a run tells Prometheus and Grafana, all of it made from one table."""

import functools
from typing import Any

from fedray.config import FederationConfig
from fedray.messages import RoundReport
from fedray.metrics.grafana import dashboard
from fedray.metrics.table import COUNTER, TABLE, Metric
from fedray.metrics.tracking import Log, tracked

__all__ = ["COUNTER", "TABLE", "Log", "Metric", "dashboard", "publish", "tracked"]

N_PARTIES = 50  # that have curves of their own: every name is a series for good


def publish(run: str, config: FederationConfig, report: RoundReport) -> None:
    """Hand one round's numbers to Ray's metrics, which its nodes export.

    Only inside a Ray worker. Of the parties, the config's first `N_PARTIES` are shown.
    """
    names = range(min(config.num_parties, N_PARTIES))
    shown = {config.party_name(i) for i in names} | {None}
    for metric, meter in _meters():
        for tags, value in metric.of(report):
            if tags.get("party") not in shown:
                continue
            if metric.kind != COUNTER:
                meter.set(value, {"run": run, **tags})
            elif value > 0:  # Ray refuses to count nothing
                meter.inc(value, {"run": run, **tags})


@functools.cache
def _meters() -> list[tuple[Metric, Any]]:
    """Ray's objects, once in a process: that is where Ray keeps them too."""
    from ray.util.metrics import Counter, Gauge

    kinds = {True: Counter, False: Gauge}
    return [
        (m, kinds[m.kind == COUNTER](m.full_name, m.help, ("run", *m.tags)))
        for m in TABLE
    ]
