"""How the global model does on each party's own tests, and beside training alone.

As HTML for report.html and as lines for the terminal.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedray import durable_files, untrusted_text
from fedray.errors import format_count
from fedray.messages import RoundReport
from fedray.report.formatting import (
    escape,
    format_number,
    format_percent,
    html_table,
    truncation_note,
)

COMPARISON = "comparison.json"  # in the run's folder
N_LISTED = 50  # parties that have a row each; of more, those that do worst
N_WORST = 10
N_LINES = 20  # of a terminal
SPREAD = {  # of `RoundReport.spread`
    "min": "least",
    "median": "median",
    "max": "greatest",
    "worst_tenth": "worst tenth",
}
KINDS = {"alone": "alone", "global": "global", "own": "own model"}  # of models compared
Columns = Mapping[str, Sequence[Any]]
WHO = ("party", "n_samples", "group")  # columns that say whose tests they are


def write_comparison(
    folder: Path, round: int, columns: Columns, missing: Sequence[str] = ()
) -> None:
    """Write the comparison with training alone, as of a round, in one step.

    missing : whose parties could not be asked.
    """
    comparison: dict[str, Any] = {"round": round, "columns": columns}
    if missing:
        comparison["missing"] = missing
    text = json.dumps(comparison)
    durable_files.write_text(folder / COMPARISON, text + "\n")


def read_comparison(folder: Path) -> dict[str, Any]:
    """What `write_comparison` wrote: `round` and `columns`; empty if there is none."""
    try:
        comparison = json.loads((folder / COMPARISON).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return comparison if isinstance(comparison, dict) else {}


def last_tests(history: Sequence[RoundReport]) -> list[RoundReport]:
    """The last report of each global model that has spreads over parties."""
    last = {report.group: report for report in history if report.spread}
    return list(last.values())


def spread_table(history: Sequence[RoundReport]) -> str:
    """HTML of how far the parties' own tests lie apart; empty for a single party."""
    return "".join(_tests_of(report) for report in last_tests(history))


def _tests_of(report: RoundReport) -> str:
    heading = f"<h3>{escape(report.group)}</h3>" if report.group else ""
    head = ("after round " + str(report.round), *SPREAD.values())
    rows = [
        [escape(name), *(_format(name, numbers.get(key)) for key in SPREAD)]
        for name, numbers in report.spread.items()
    ]
    note = (
        '<p class="small">The global model on each party\'s own test samples. Every '
        "party counts alike; the worst tenth is the mean of that many parties, rounded "
        "up.</p>"
    )
    return heading + note + html_table("Spread", head, rows) + _rows(report.tests)


def _rows(tests: Columns) -> str:
    """A row for each party where there are few, else for the worst ones."""
    names = _measures(tests)
    if not names:
        return ""
    n_parties = len(tests["party"])
    places = list(range(n_parties))
    if n_parties > N_LISTED:
        places = sorted(_worst_first(tests, names)[:N_WORST])
    rows = [
        [
            escape(tests["party"][i]),
            f"{tests['n_samples'][i]:,}",
            *(_format(name, tests[name][i]) for name in names),
        ]
        for i in places
    ]
    titles = (escape(name.replace("_", " ")) for name in names)
    head = ("party", "test samples", *titles)
    noun = "parties, those that do worst"
    return html_table("Tests", head, rows) + truncation_note(len(rows), n_parties, noun)


def _measures(columns: Columns) -> list[str]:
    """Columns that hold a number."""
    return [
        name
        for name, values in columns.items()
        if name not in WHO and any(value is not None for value in values)
    ]


def _worst_first(tests: Columns, names: Sequence[str]) -> list[int]:
    """Places of parties by accuracy, or by loss where there is none."""
    is_share = any(value is not None for value in tests.get("accuracy", ()))
    values = tests["accuracy" if is_share else names[0]]
    sign = 1 if is_share else -1
    scored = [i for i, value in enumerate(values) if value is not None]
    return sorted(scored, key=lambda i: sign * values[i])


def _format(name: str, value: float | None) -> str:
    return format_percent(value) if "accuracy" in name else format_number(value)


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """HTML of what each party has of the global model beside training alone."""
    if not comparison:
        return ""
    columns, sentences = comparison["columns"], _benefits(comparison)
    text = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    return text + _rows(columns)


def comparison_lines(comparison: Mapping[str, Any]) -> Iterator[str]:
    """The same as lines of text: a table where parties are few, and who benefits."""
    columns = comparison.get("columns", {})
    names, parties = _measures(columns), columns.get("party", ())
    if 0 < len(parties) <= N_LINES:
        shown = list(map(untrusted_text.escape, parties))
        width = max(map(len, ["party", *shown]))
        titles = "".join(f"  {name.replace('_', ' '):>18}" for name in names)
        yield f"{'party':<{width}}{titles}"
        for i, party in enumerate(shown):
            values = (columns[name][i] for name in names)
            texts = ("-" if value is None else f"{value:.4f}" for value in values)
            numbers = "".join(f"  {text:>18}" for text in texts)
            yield f"{party:<{width}}{numbers}"
    yield from _benefits(comparison)


def _benefits(comparison: Mapping[str, Any]) -> list[str]:
    """For how many parties another model is better than the one trained alone."""
    columns, sentences = comparison.get("columns", {}), []
    names = _measures(columns)
    is_share = "alone_accuracy" in names
    measure = "accuracy" if is_share else "loss"
    if f"alone_{measure}" not in names:
        return []
    alone = columns[f"alone_{measure}"]
    for kind in ("global", "own"):
        others = columns.get(f"{kind}_{measure}")
        if others is None:
            continue
        pairs = [
            (b - a) if is_share else (a - b)
            for a, b in zip(alone, others, strict=True)
            if a is not None and b is not None
        ]
        n_better, n_worse = sum(d > 0 for d in pairs), sum(d < 0 for d in pairs)
        n_parties = format_count(len(pairs), "party", "parties")
        model = KINDS[kind] + " model" * (kind == "global")
        sentences.append(
            f"after round {comparison['round']}, by {measure}, the {model} is better "
            f"than training alone for {n_better:,} of {n_parties}, worse for "
            f"{n_worse:,}"
        )
    return sentences


def spread_lines(history: Sequence[RoundReport]) -> Iterator[str]:
    """Lines of text about how far the parties' own tests lie apart."""
    for report in last_tests(history):
        of = f" of {report.group}" if report.group else ""
        for name, numbers in report.spread.items():
            parts = [
                f"{label} {numbers[key]:.4f}"
                for key, label in SPREAD.items()
                if key in numbers
            ]
            yield f"{name} by party{of}: {', '.join(parts)}"
