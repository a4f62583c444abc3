"""Epsilon that a run has spent, wherever a run shows its numbers."""

import dataclasses
import io
import re

import pytest

from fedray.messages import RoundReport
from fedray.metrics import TABLE
from fedray.progress_display import round_line
from fedray.report.notebook import progress_html, result_html
from fedray.report.privacy import privacy_section
from fedray.service.federation_actor import update_metrics
from fedray.service.schemas import summarize
from fedray.service.store import State

PLAIN = RoundReport(
    round=1, chosen=5, reported=5, fused=5, aggregated=True, refused=0, loss=0.5,
    accuracy=0.25, bytes_moved=1_000, seconds=2.5, train_seconds=1.5,
    evaluate_seconds=0.25, evaluated=10,
)  # fmt: skip
OF_PARTIES = {"epsilon": 1.25, "delta": 1e-5, "releases": 3}
OF_SAMPLES = {"samples": {"epsilon": 2.5, "delta": 1e-4}}


def report_with(privacy, **fields):
    return dataclasses.replace(PLAIN, privacy=privacy, **fields)


def epsilon_metrics(report):
    (metric,) = [metric for metric in TABLE if metric.name == "privacy_epsilon"]
    return {tags["unit"]: value for tags, value in metric.values(report)}


def test_a_round_without_privacy_shows_and_keeps_nothing_of_it():
    assert "privacy" not in PLAIN.to_json()
    assert PLAIN.epsilons == epsilon_metrics(PLAIN) == {}
    assert "epsilon" not in round_line(PLAIN, 3) + result_html("run", [PLAIN])
    assert privacy_section([PLAIN], {}) == ""
    assert "privacy" not in update_metrics({}, PLAIN)


def test_the_history_has_what_was_spent_and_reads_it_back():
    report = report_with(OF_PARTIES)
    line = report.to_json()
    assert line["privacy"] == OF_PARTIES
    assert RoundReport.from_json(line) == report


@pytest.mark.parametrize(
    ("privacy", "epsilons"),
    [
        (OF_PARTIES, {"party": 1.25}),
        (OF_SAMPLES, {"sample": 2.5}),
        (OF_PARTIES | OF_SAMPLES, {"party": 1.25, "sample": 2.5}),
    ],
)
def test_epsilon_is_in_the_terminal_metrics_and_notebook(privacy, epsilons):
    report = report_with(privacy)
    assert report.epsilons == epsilon_metrics(report) == epsilons
    for shown in (round_line(report, 3), result_html("run", [report])):
        for unit, epsilon in epsilons.items():
            assert f"epsilon {epsilon} a {unit}" in shown


def test_a_notebooks_live_table_has_a_column_of_epsilon_where_there_is_one():
    private = progress_html("run", 0.5, [PLAIN, report_with(OF_PARTIES)], [])
    assert "epsilon a party" in private
    assert "<td>1.25</td>" in private
    assert "epsilon" not in progress_html("run", 0.5, [PLAIN], [])


def test_the_group_that_has_spent_most_is_shown_for_all():
    reports = [
        report_with({**OF_PARTIES, "epsilon": value}, group=group)
        for group, value in (("north", 2.0), ("south", 1.0))
    ]
    assert "epsilon 2 a party" in result_html("run", reports)
    section = privacy_section(reports, {"privacy": {}})
    assert "Epsilon 2" in section
    assert [*map(section.count, ("north", "south"))] == [1, 1]


def test_the_report_says_what_epsilon_means_and_against_whom_it_holds():
    history = [report_with({**OF_PARTIES, "epsilon": 2.0}), PLAIN]
    config = {"privacy": {"sampling": "poisson"}, "fusion_algorithm": "fedavg"}
    section = privacy_section(history, config)
    assert "at most 7.39 times as likely by one party&#x27;s data" in section  # e²
    assert "those who did not see which parties trained" in section
    assert "Parties weighed equally" in section
    other = privacy_section(history, {"fusion_algorithm": "iter_avg"})
    assert not re.search("did not see|equally", other)


def test_releases_are_of_parties():
    assert "releases" in privacy_section([report_with(OF_PARTIES)], {})
    assert "releases" not in privacy_section([report_with(OF_SAMPLES)], {})


def test_an_epsilon_beyond_words_stays_a_number():
    section = privacy_section([report_with({**OF_PARTIES, "epsilon": 900.0})], {})
    assert "900" in section
    assert "likely" not in section


def test_rest_answers_have_what_was_spent_last():
    metrics = update_metrics({}, report_with(OF_PARTIES))
    metrics = update_metrics(metrics, dataclasses.replace(PLAIN, round=2))
    assert metrics["privacy"] == OF_PARTIES
    state = State("a", None, {}, 5, metrics=metrics)
    assert summarize(state)["metrics"]["privacy"] == OF_PARTIES
    assert "privacy" not in summarize(dataclasses.replace(state, metrics={}))["metrics"]


def test_a_run_prints_it(tmp_path):
    from fedray.messages import Progress
    from fedray.progress_display import ProgressDisplay

    out = io.StringIO()
    report = report_with(OF_PARTIES)
    ProgressDisplay(1, out)(Progress([report], 1, "done", 5, 5, {}, []))
    assert "epsilon 1.25 a party" in out.getvalue()
