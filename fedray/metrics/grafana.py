"""The Grafana dashboard, made from the table of metrics: names cannot drift."""

from typing import Any

from fedray.metrics.table import COUNTER, SECONDS, TABLE, Metric

UNITS = {"": "short", "seconds": "s", "bytes": "decbytes", "share": "percentunit"}
RUN = 'run=~"$run"'
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT, N_COLUMNS = 12, 8, 2  # of a panel, in Grafana's 24 columns

Json = dict[str, Any]


def query(metric: Metric) -> str:
    """PromQL of a metric, one series for each run and each of its own tags.

    A gauge is that of the aggregator's newest process: Ray goes on exporting what an
    older one said last. A counter is the sum over all of them; seconds are shown as
    seconds per second, which is what share of the time a stage takes.
    """
    series, by = f"{metric.exported}{{{RUN}}}", ", ".join(("run", *metric.tags))
    if metric.kind != COUNTER:
        newest = f"topk by (run) (1, ray_fedray_closed{{{RUN}}})"
        return f"max by ({by}) ({series} and on (run, WorkerId) {newest})"
    if metric.unit == SECONDS:
        series = f"rate({series}[$__rate_interval])"
    return f"sum by ({by}) ({series})"


def dashboard() -> Json:
    """A dashboard of Grafana's classic JSON model, to be provisioned or imported."""
    panels: dict[str, list[Metric]] = {}
    for metric in TABLE:
        if metric.panel:
            panels.setdefault(metric.panel, []).append(metric)
    drawn = [_panel(i, *item) for i, item in enumerate(panels.items())]
    return {
        "uid": "fedray",
        "title": "fedray",
        "tags": ["fedray", "ray"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # one crosshair over all panels
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": [_source(), _runs()]},
        "panels": drawn,
    }


def _panel(place: int, title: str, metrics: list[Metric]) -> Json:
    unit = UNITS[metrics[0].unit]
    rated = metrics[0].kind == COUNTER and metrics[0].unit == SECONDS
    style = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 10, "spanNulls": True}
    return {
        "id": place + 1,
        "type": "timeseries",
        "title": title,
        "description": "\n".join(f"{m.name}: {m.help}" for m in metrics),
        "datasource": SOURCE,
        "gridPos": {
            "h": HEIGHT,
            "w": WIDTH,
            "x": place % N_COLUMNS * WIDTH,
            "y": place // N_COLUMNS * HEIGHT,
        },
        "fieldConfig": {
            "defaults": {"unit": "percentunit" if rated else unit, "custom": style},
            "overrides": [],
        },
        "options": {
            "legend": {
                "displayMode": "table",
                "placement": "bottom",
                "calcs": ["last"],
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [_target(i, metric) for i, metric in enumerate(metrics)],
    }


def _target(place: int, metric: Metric) -> Json:
    tags = " ".join(f"{{{{{tag}}}}}" for tag in ("run", *metric.tags))
    return {
        "refId": chr(ord("A") + place),
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": query(metric),
        "legendFormat": f"{tags} {metric.name}",
        "range": True,
    }


def _source() -> Json:
    return {
        "name": "datasource",
        "type": "datasource",
        "query": "prometheus",
        "label": "Prometheus",
        "refresh": 1,
    }


def _runs() -> Json:
    found = "label_values(ray_fedray_round, run)"
    return {
        "name": "run",
        "type": "query",
        "label": "Run",
        "datasource": SOURCE,
        "query": {"query": found, "refId": "runs"},
        "refresh": 2,  # whenever the time range changes
        "includeAll": True,
        "allValue": ".+",
        "multi": True,
        "current": {"text": ["All"], "value": ["$__all"]},
        "sort": 1,
    }
