"""Privacy in report.html: what was spent, whose it is, and what that means."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedray.messages import RoundReport
from fedray.privacy.wording import how_many_times
from fedray.report.formatting import (
    NO_VALUE,
    escape,
    format_number,
    html_table,
    truncation_note,
)
from fedray.report.statistics import N_ROWS

MEANING = (
    "Epsilon {epsilon} at delta {delta}: whatever one concludes from what was released "
    "becomes at most {times} times as likely by one {unit}'s data; delta is the chance "
    "that this fails. Other runs with the same {units} add to it, those that tune "
    "settings too."
)
UNWEIGHTED = "Parties weighed equally, however many samples they have."
HIDDEN = (
    "It holds against those who did not see which parties trained: neither Ray's "
    "dashboard and metrics nor operator.jsonl."
)
UNITS = {"party": "parties", "sample": "samples"}


def privacy_section(history: Sequence[RoundReport], config: Mapping[str, Any]) -> str:
    """HTML of what a run has spent of privacy; empty of a run without."""
    spent = [report for report in history if report.epsilons]
    if not spent:
        return ""
    units = list(dict.fromkeys(unit for one in spent for unit in one.epsilons))
    notes = [_meaning(spent, unit) for unit in units]
    privacy = config.get("privacy") or {}
    if privacy.get("sampling") == "poisson":
        notes.append(HIDDEN)
    if "party" in units and config.get("fusion_algorithm") == "fedavg":
        notes.append(UNWEIGHTED)
    paragraphs = "".join(f"<p>{escape(note)}</p>" for note in filter(None, notes))
    return paragraphs + _table(spent, units)


def _meaning(spent: Sequence[RoundReport], unit: str) -> str:
    """What the largest epsilon means, in words; of groups, that of the group."""
    most = max((one for one in spent if unit in one.epsilons), key=_epsilon_of(unit))
    epsilon = most.epsilons[unit]
    times = how_many_times(epsilon)
    if times is None:
        return ""
    own = most.privacy if unit == "party" else most.privacy["samples"]
    return MEANING.format(
        epsilon=format_number(epsilon),
        delta=f"{own['delta']:g}",
        times=times,
        unit=unit,
        units=UNITS[unit],
    )


def _epsilon_of(unit: str) -> Any:
    return lambda report: report.epsilons[unit]


def _table(spent: Sequence[RoundReport], units: Sequence[str]) -> str:
    """Epsilon after each round, and of how many releases it is."""
    has_groups = any(report.group is not None for report in spent)
    titles = [f"epsilon of a {unit}" for unit in units]
    of_parties = ["releases"] if "party" in units else []
    head = ["round", *(["group"] if has_groups else []), *titles, *of_parties]
    rows = [
        [
            str(report.round),
            *([escape(report.group or "")] if has_groups else []),
            *(format_number(report.epsilons.get(unit)) for unit in units),
            *(str(report.privacy.get(name, NO_VALUE)) for name in of_parties),
        ]
        for report in spent[-N_ROWS:]
    ]
    note = truncation_note(len(rows), len(spent), "rounds, the last")
    table = html_table("Privacy", head, rows) + note
    return f"<details><summary>By round</summary>{table}</details>"
