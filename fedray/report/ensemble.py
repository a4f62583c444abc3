"""Report of an ensemble: its members beside each other, and scores of all together.

`summary` is what `ensemble.json` holds: loss and accuracy of the ensemble and of the
student, where `test_data` is given; `members`: name, model type and weight of each.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fedray.messages import RoundReport
from fedray.report.charts import MemberCurves, draw_member_curves
from fedray.report.formatting import (
    NO_VALUE,
    escape,
    format_number,
    format_percent,
    html_table,
    is_number,
)
from fedray.report.statistics import by_group, last_scores, merge_groups

TESTED_ON_OWN = "Each member was tested on its own party's samples, which differ."
TESTED_ON_TEST_DATA = "All were tested by the aggregator on test_data."
TESTED_ON_HALVES = (
    "Members were tested on all of test_data. Every second sample of it made their "
    "weights; together and student are tested on the others."
)


def is_ensemble(config: Mapping[str, Any]) -> bool:
    """Whether a run's parties are members of an ensemble."""
    return config.get("fusion_algorithm") == "ensemble"


def ensemble_scores(summary: Mapping[str, Any] | None) -> dict[str, str]:
    """Loss and accuracy of the whole ensemble, for the top of the page."""
    if not summary or "loss" not in summary:
        return {}
    return {
        "Loss together": format_number(summary["loss"]),
        "Accuracy together": format_percent(summary["accuracy"]),
    }


def member_table(
    history: Sequence[RoundReport],
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
) -> str:
    """HTML table: a row for each member, then all together, then the student."""
    lines, rows = by_group(history), []
    total = sum(weight for _, _, weight in summary["members"])
    for name, model_type, weight in summary["members"]:
        loss, accuracy, _ = last_scores(lines.get(name, []))
        row = [escape(name), escape(model_type), format_percent(weight / total)]
        rows.append([*row, format_number(loss), format_percent(accuracy)])
    for label, prefix in (("together", ""), ("student", "student_")):
        loss, accuracy = summary.get(f"{prefix}loss"), summary.get(f"{prefix}accuracy")
        if is_number(loss):
            row = [f"<b>{label}</b>", NO_VALUE, NO_VALUE]
            rows.append([*row, format_number(loss), format_percent(accuracy)])
    head = "member", "model", "weight", "last loss", "last accuracy"
    note = f'<p class="small">{_test_note(config)}</p>'
    return html_table("Members", head, rows) + note


def _test_note(config: Mapping[str, Any]) -> str:
    if config.get("member_weights") == "accuracy":
        return TESTED_ON_HALVES
    return TESTED_ON_TEST_DATA if config.get("test_data") else TESTED_ON_OWN


def member_charts(
    history: Sequence[RoundReport], summary: Mapping[str, Any] | None
) -> str | None:
    """HTML of the charts: a curve for each member; bytes and seconds of all.

    None where matplotlib is not installed.
    """
    lines = {str(name): own for name, own in by_group(history).items()}
    summary = summary or {}
    together = {name: summary.get(name) for name in ("loss", "accuracy")}
    return draw_member_curves(merge_groups(history), MemberCurves(lines, together))
