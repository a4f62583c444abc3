"""An ensemble in the report: its members beside each other, and what they are together.

`told` is what its `ensemble.json` says: loss and accuracy of all together and of the
student, where `test_data` is given; `members`: name, model type and weight of each.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fedray.messages import RoundReport
from fedray.report.charts import Curves, member_curves
from fedray.report.formatting import NOTHING, is_number, number, percent, table, text
from fedray.report.statistics import by_group, scores, whole

OWN = "Each member was tested on its own party's samples, which differ."
GIVEN = "All were tested by the aggregator on test_data."
HALF = (
    "Members were tested on all of test_data. Every second sample of it made their "
    "weights; together and student are tested on the others."
)


def is_ensemble(config: Mapping[str, Any]) -> bool:
    """Whether a run's parties are members that answer together."""
    return config.get("fusion_algorithm") == "ensemble"


def together(told: Mapping[str, Any] | None) -> dict[str, str]:
    """What stands at the top of the page."""
    if not told or "loss" not in told:
        return {}
    scored = number(told["loss"]), percent(told["accuracy"])
    return {"Loss together": scored[0], "Accuracy together": scored[1]}


def member_table(
    history: Sequence[RoundReport], config: Mapping[str, Any], told: Mapping[str, Any]
) -> str:
    """One row a member, then all together, then the student if there is one."""
    lines, rows = by_group(history), []
    sum_ = sum(weight for _, _, weight in told["members"])
    for name, kind, weight in told["members"]:
        loss, accuracy, _ = scores(lines.get(name, []))
        share = percent(weight / sum_)
        rows.append([text(name), text(kind), share, number(loss), percent(accuracy)])
    for who, key in (("together", ""), ("student", "student_")):
        scored = told.get(f"{key}loss"), told.get(f"{key}accuracy")
        if is_number(scored[0]):
            row = [f"<b>{who}</b>", NOTHING, NOTHING]
            rows.append([*row, number(scored[0]), percent(scored[1])])
    said = GIVEN if config.get("test_data") else OWN
    if config.get("member_weights") == "accuracy":
        said = HALF
    head = "member", "model", "weight", "last loss", "last accuracy"
    return table("Members", head, rows) + f'<p class="small">{said}</p>'


def figures(
    history: Sequence[RoundReport], told: Mapping[str, Any] | None
) -> str | None:
    """A curve for each member in one picture, bytes and seconds of all."""
    lines = {str(name): own for name, own in by_group(history).items()}
    told = told or {}
    level = {name: told.get(name) for name in ("loss", "accuracy")}
    return member_curves(whole(history), Curves(lines, level))
