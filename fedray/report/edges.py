"""Edges in report.html: how many there are, what each moved, how often it trained."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fedray.messages import RoundReport
from fedray.report.formatting import (
    NO_VALUE,
    escape,
    format_bytes,
    html_table,
    truncation_note,
)
from fedray.report.statistics import N_ROWS

STATES = ("enrolled", "present", "training")  # of a round's counts
HEAD = ("edge", "state", "last seen", "version", "sent", "fetched", "chosen")


def edges_section(
    history: Sequence[RoundReport], edges: Sequence[Mapping[str, Any]]
) -> str:
    """HTML of a run's edges; empty of a run without.

    edges : one row each, as `fedray edges list --json` gives them.
    """
    if not edges and not any(report.edges for report in history):
        return ""
    times = _times_chosen(history)
    rows = [_row(edge, times) for edge in edges[-N_ROWS:]]
    table = html_table("Edges", HEAD, rows) if rows else ""
    note = truncation_note(len(rows), len(edges), "edges, the last to enrol")
    return _counts(history) + _spread(times, edges) + table + note


def _counts(history: Sequence[RoundReport]) -> str:
    """Edges by state at the end of the last round that counted them."""
    last = next((one.edges for one in reversed(history) if one.edges), {})
    words = [f"{last[state]:,} {state}" for state in STATES if state in last]
    return f"<p>Edges after the last round: {', '.join(words)}.</p>" if words else ""


def _times_chosen(history: Sequence[RoundReport]) -> Counter[str]:
    """How often each edge was chosen, by name."""
    times: Counter[str] = Counter()
    for report in history:
        times.update(line.name for line in report.parties)
        listed = {line.name for line in report.parties}
        for first, last in report.edges.get("chosen", ()):
            names = {f"edge-{number}" for number in range(first, last + 1)}
            times.update(names - listed)
    return times


def _spread(times: Counter[str], edges: Sequence[Mapping[str, Any]]) -> str:
    """How many edges were chosen how often: a map of fairness."""
    counts = Counter(times[edge["name"]] for edge in edges)
    if len(edges) < 2:
        return ""
    rows = [[str(n), f"{counts[n]:,}"] for n in sorted(counts)]
    return html_table("Times chosen", ("times chosen", "edges"), rows)


def _row(edge: Mapping[str, Any], times: Counter[str]) -> list[str]:
    at = edge["last_seen"]
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(at)) if at else NO_VALUE
    return [
        escape(edge["name"]),
        escape(edge["state"]),
        when,
        escape(edge["version"] or NO_VALUE),
        format_bytes(edge["bytes_up"]),
        format_bytes(edge["bytes_down"]),
        str(times[edge["name"]]),
    ]
