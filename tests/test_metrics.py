"""Metrics and their dashboard come from one table, and say what the history says."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

import fedray
from fedray import metrics
from fedray.cli import main
from fedray.config import FederationConfig
from fedray.messages import PartyLine, RoundReport
from fedray.metrics import COUNTER, TABLE, dashboard

REPORT = RoundReport(
    round=3, chosen=5, reported=4, fused=2, aggregated=True, refused=2, loss=0.5,
    accuracy=None, bytes_moved=1_000, seconds=2.5, train_seconds=1.5,
    evaluate_seconds=0.25, evaluated=10, wait_seconds=1.75, combine_seconds=0.5,
    bytes_saved=24, restarts=1,
    parties=[
        PartyLine("a", "n", 10, 0.25, 1.5, 1.0, "fused"),
        PartyLine("b", "n", 10, 0.75, 2.5, 1.5, "fused"),
        PartyLine("c", "n", 10, None, None, 1.0,
                  "refused: tensor 'w' is not finite (NaN or infinity)"),
        PartyLine("d", "n", 10, 0.5, 1.0, 1.0,
                  "refused: tensor 'w' got float32[3], needed float32[2]"),
        PartyLine("e", outcome="late"),
    ],
)  # fmt: skip


def values(name: str, report: RoundReport = REPORT) -> dict:
    (metric,) = [metric for metric in TABLE if metric.name == name]
    return {tuple(tags.values()): value for tags, value in metric.values(report)}


def test_metric_values_equal_the_fields_of_history_jsonl():
    line = REPORT.to_json()
    shared = [metric.name for metric in TABLE if metric.name in line]
    assert len(shared) == 16
    for name in shared:
        expected = {} if line[name] is None else {(): line[name]}
        assert values(name) == expected, name


def test_every_numeric_field_of_a_report_is_a_metric():
    numbers = {
        field.name for field in dataclasses.fields(RoundReport)
        if field.type in (int, float, "int", "float", float | None, int | None)
    }  # fmt: skip
    not_metrics = numbers - {metric.name for metric in TABLE}
    # refused is an outcome, with its reason; growth is the same in all rounds
    assert not_metrics == {"refused", "evaluated", "growth"}


def test_outcomes_are_counted_by_kind_and_reason():
    assert values("outcomes") == {
        ("fused", ""): 2, ("late", ""): 1,
        ("refused", "not finite"): 1, ("refused", "other tensors"): 1,
    }  # fmt: skip


def test_outcomes_include_parties_whose_lines_were_omitted():
    kinds = {"fused": 90, "refused": 7, "failed": 3}
    few = dataclasses.replace(REPORT, summary={"outcomes": kinds})
    assert values("outcomes", few) == {
        ("fused", ""): 90, ("failed", ""): 3, ("late", ""): 1,
        ("refused", "not finite"): 1, ("refused", "other tensors"): 1,
        ("refused", "other"): 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("said", "tag"),
    [
        ("sent a dict, not an Update", "no update"),
        ("n_samples must be a whole number from 1 to 9, got 0", "count"),
        ("tensors missing: ['w'], not of this model: []", "other tensors"),
        ("tensor 'w' is not finite (NaN or infinity)", "not finite"),
        ("its step of length 3 is above max_update_norm 1", "norm"),
        ("is of run r, round 1, party at place 0, asked for was run r", "origin"),
        ("its report is of round 1, not of round 2", "report"),
        ("something that nobody thought of", "other"),
    ],
)
def test_every_refusal_has_one_of_the_listed_reasons(said, tag):
    lines = [PartyLine("a", "n", 1, None, None, 1.0, f"refused: {said}")]
    one = dataclasses.replace(REPORT, parties=lines)
    assert values("outcomes", one) == {("refused", tag): 1}


def test_party_metrics_have_loss_seconds_and_drift_where_reported():
    assert values("party_loss") == {("a",): 0.25, ("b",): 0.75, ("d",): 0.5}
    assert values("party_drift") == {("a",): 1.5, ("b",): 2.5, ("d",): 1.0}
    assert set(values("party_seconds")) == {("a",), ("b",), ("c",), ("d",)}


def test_drift_and_threshold_metrics_exist_only_where_a_round_has_them():
    assert values("estimate") == values("threshold") == {}


class Recorder:
    """Stands for Ray's Gauge or Counter; keeps what is recorded."""

    recorded: dict = {}

    def __init__(self, name, help, tags):
        self.name, self.tags = name, tags

    def set(self, value, tags):
        assert set(tags) == set(self.tags)
        self.recorded[self.name, tags.get("party")] = value

    def inc(self, value, tags):
        assert value > 0
        self.set(value, tags)


@pytest.fixture
def recorded(monkeypatch):
    from ray.util import metrics as rays

    monkeypatch.setattr(Recorder, "recorded", {})
    for kind in ("Gauge", "Counter"):
        monkeypatch.setattr(rays, kind, Recorder)
    metrics._instruments.cache_clear()
    yield Recorder.recorded
    metrics._instruments.cache_clear()


def test_only_the_first_50_parties_have_series_of_their_own(recorded):
    config = FederationConfig(num_parties=100_000)
    lines = [PartyLine(f"party-{i}", "n", 1, 0.5, 0.5, 0.5, "fused")
             for i in (3, 49, 50, 99_999)]  # fmt: skip
    metrics.publish("run", config, dataclasses.replace(REPORT, parties=lines))
    parties = {party for name, party in recorded if name == "fedray_party_loss"}
    assert parties == {"party-3", "party-49"}
    assert recorded["fedray_round", None] == 3


def test_names_of_any_script_are_tags_that_ray_takes(monkeypatch, recorded):
    tags = []
    monkeypatch.setattr(Recorder, "set", lambda self, value, tag: tags.append(tag))
    party = {"name": "病院", "data": "x"}
    config = FederationConfig(num_parties=1, parties=[party])
    line = PartyLine("病院", "n", 1, 0.5, 0.5, 0.5, "fused")
    metrics.publish("größe", config, dataclasses.replace(REPORT, parties=[line]))
    assert {"run": r"gr\xf6\xdfe", "party": r"\u75c5\u9662"} in tags
    assert all(value.isascii() for tag in tags for value in tag.values())


def test_counters_are_not_incremented_by_zero(recorded):
    config = FederationConfig(num_parties=5)
    metrics.publish("r", config, dataclasses.replace(REPORT, restarts=0, bytes_saved=0))
    assert ("fedray_restarts", None) not in recorded
    assert ("fedray_bytes_saved", None) not in recorded


def exported(text: str) -> set[str]:
    return set(re.findall(r"ray_fedray_\w+", text))


def test_the_dashboard_shows_every_metric_and_no_other():
    queries = [t["expr"] for p in dashboard()["panels"] for t in p["targets"]]
    assert exported(" ".join(queries)) == {metric.exported for metric in TABLE}
    assert len(queries) == len(TABLE) - 1  # `closed` only tells which process is newest


def test_the_dashboard_is_valid_for_grafana():
    made = dashboard()
    assert made["schemaVersion"] == 39
    names = {variable["name"] for variable in made["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(made)))
    assert used - names <= {"__rate_interval", "__all"}
    ids = [panel["id"] for panel in made["panels"]]
    assert len(set(ids)) == len(ids)
    taken = set()
    for panel in made["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"])
                 for y in range(at["y"], at["y"] + at["h"])}  # fmt: skip
        assert max(x for x, _ in cells) < 24
        assert not taken & cells, "panels lie on each other"
        taken |= cells
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)
        assert all(target["expr"].count("(") == target["expr"].count(")")
                   for target in panel["targets"])  # fmt: skip


def test_the_page_on_clusters_names_every_metric():
    page = (Path(__file__).parent.parent / "docs" / "cluster.md").read_text("utf-8")
    cells = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    rows = [row[1] for row in cells if row[2].strip() in ("gauge", "counter")]
    names = re.findall(r"`(\w+)`", " ".join(rows))
    exported_names = [m.exported.removeprefix("ray_fedray_") for m in TABLE]
    assert sorted(names) == sorted(exported_names)


def test_the_command_prints_the_dashboard(capsys):
    assert main(["grafana"]) == 0
    assert json.loads(capsys.readouterr().out) == dashboard()


def test_names_are_those_that_prometheus_and_ray_accept():
    assert len({metric.name for metric in TABLE}) == len(TABLE)
    for metric in TABLE:
        assert re.fullmatch(r"[a-z_]+", metric.full_name)
        assert metric.exported.endswith("_total") == (metric.kind == COUNTER)


@pytest.mark.usefixtures("cluster")
def test_stage_times_add_up_to_the_round_and_restarts_are_counted(
    settings, tmp_path, trouble
):
    trouble("die")
    result = fedray.run(settings, run_dir=tmp_path / "run", rounds=3)
    for report in result.history:
        parts = report.wait_seconds + report.combine_seconds + report.evaluate_seconds
        assert np.isclose(parts, report.seconds)
        assert 0 < report.train_seconds < report.seconds
        assert report.wait_seconds > 0 < report.combine_seconds
    assert [report.restarts for report in result.history] == [1, 0, 0]


@pytest.mark.usefixtures("cluster")
def test_bytes_saved_are_relative_to_sending_whole_models(settings, tmp_path):
    model = 4 * (784 * 16 + 16 + 16 * 10 + 10)
    history = fedray.run(settings, run_dir=tmp_path / "plain").history
    # one node: the new weights reach it once a round, an update comes from each party
    assert [report.bytes_moved for report in history] == [4 * model, 3 * model]
    assert [report.bytes_saved for report in history] == [0, model]
    halved = fedray.run(
        settings, run_dir=tmp_path / "half", wire_dtype="bfloat16"
    ).history
    assert [report.bytes_saved for report in halved] == [
        2 * model,
        4 * model - 3 * model // 2,
    ]
