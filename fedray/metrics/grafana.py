"""Grafana dashboard, generated from the table of metrics."""

from typing import Any

from fedray.metrics.table import COUNTER, SECONDS, TABLE, Metric

UNITS = {"": "short", "seconds": "s", "bytes": "decbytes", "share": "percentunit"}
RUN = 'run=~"$run"'
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
PANEL_WIDTH, PANEL_HEIGHT, N_COLUMNS = 12, 8, 2  # Grafana's grid has 24 columns

Json = dict[str, Any]


def query(metric: Metric) -> str:
    """PromQL query of a metric: one series for each run and each of its tags.

    A gauge is read from the aggregator's newest process, since Ray goes on exporting
    the last values of older ones. A counter is summed over all processes; seconds are
    shown as a rate, which is the share of the time that a stage takes.
    """
    series, by = f"{metric.exported}{{{RUN}}}", ", ".join(("run", *metric.tags))
    if metric.kind != COUNTER:
        newest = f"topk by (run) (1, ray_fedray_closed{{{RUN}}})"
        return f"max by ({by}) ({series} and on (run, WorkerId) {newest})"
    if metric.unit == SECONDS:
        series = f"rate({series}[$__rate_interval])"
    return f"sum by ({by}) ({series})"


def dashboard() -> Json:
    """Build the dashboard in Grafana's classic JSON model, to provision or import."""
    panels: dict[str, list[Metric]] = {}
    for metric in TABLE:
        if metric.panel:
            panels.setdefault(metric.panel, []).append(metric)
    items = enumerate(panels.items())
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
        "templating": {"list": [_source_variable(), _run_variable()]},
        "panels": [_panel(i, title, metrics) for i, (title, metrics) in items],
    }


def _panel(index: int, title: str, metrics: list[Metric]) -> Json:
    unit = UNITS[metrics[0].unit]
    is_rate = metrics[0].kind == COUNTER and metrics[0].unit == SECONDS
    style = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 10, "spanNulls": True}
    return {
        "id": index + 1,
        "type": "timeseries",
        "title": title,
        "description": "\n".join(f"{m.name}: {m.help}" for m in metrics),
        "datasource": SOURCE,
        "gridPos": {
            "h": PANEL_HEIGHT,
            "w": PANEL_WIDTH,
            "x": index % N_COLUMNS * PANEL_WIDTH,
            "y": index // N_COLUMNS * PANEL_HEIGHT,
        },
        "fieldConfig": {
            "defaults": {"unit": "percentunit" if is_rate else unit, "custom": style},
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


def _target(index: int, metric: Metric) -> Json:
    tags = " ".join(f"{{{{{tag}}}}}" for tag in ("run", *metric.tags))
    return {
        "refId": chr(ord("A") + index),
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": query(metric),
        "legendFormat": f"{tags} {metric.name}",
        "range": True,
    }


def _source_variable() -> Json:
    return {
        "name": "datasource",
        "type": "datasource",
        "query": "prometheus",
        "label": "Prometheus",
        "refresh": 1,
    }


def _run_variable() -> Json:
    runs = "label_values(ray_fedray_round, run)"
    return {
        "name": "run",
        "type": "query",
        "label": "Run",
        "datasource": SOURCE,
        "query": {"query": runs, "refId": "runs"},
        "refresh": 2,  # whenever the time range changes
        "includeAll": True,
        "allValue": ".+",
        "multi": True,
        "current": {"text": ["All"], "value": ["$__all"]},
        "sort": 1,
    }
