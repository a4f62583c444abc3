"""Answers to the page's calls: what has changed, and a comparison as plain data."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from fedray.errors import ConfigError
from fedray.experiments import (
    FORMS,
    Comparison,
    Question,
    RunRecord,
    compare,
    series_of,
)
from fedray.experiments.comparison import UNSET, differing, metrics_of
from fedray.experiments.tables import cells, record_row
from fedray.runs_page.values import text

MAX_COMPARED = 200  # runs
MAX_SETTINGS = 100  # that a comparison may go by
N_POINTS = 200  # of one curve
AXES = ("rounds", "seconds", "bytes")


def unless_seen(answer: dict[str, Any], known_version: str = "") -> dict[str, Any]:
    """The answer with a version; the version alone if the page has it already.

    known_version : version that the page has.
    """
    plain = orjson.dumps(answer, option=orjson.OPT_NON_STR_KEYS)
    version = hashlib.sha256(plain).hexdigest()[:16]
    return (
        {"version": version}
        if version == known_version
        else answer | {"version": version}
    )


def ask(values: Mapping[str, str]) -> Question:
    """The question of a call's parameters; empty ones are left out.

    Raises
    ------
    ConfigError
        If one of them is no number, or neither max nor min.
    """
    texts = {name: value.strip() for name, value in values.items() if value.strip()}
    problems = []
    target: float | None = None
    if "target" in texts:
        try:
            target = float(texts["target"])
        except ValueError:
            target = math.nan
        if not math.isfinite(target):
            problems.append(
                f"target must be a finite number, got {texts['target'][:80]!r}"
            )
    mode = texts.get("mode")
    if mode not in (None, "max", "min"):
        problems.append(f"mode must be max or min, got {mode[:80]!r}")
    if problems:
        raise ConfigError(problems)
    return Question(texts.get("by"), texts.get("metric"), target, mode)  # type: ignore[arg-type]


def comparison_answer(
    records: Sequence[RunRecord], question: Question, problems: Sequence[str] = ()
) -> dict[str, Any]:
    """A comparison as plain data.

    problems : of runs that have no record.

    Raises
    ------
    ConfigError
        If no run has the metric or the setting that the question names.
    """
    if not records:
        return {"n_runs": 0, "rows": [], "notes": [*problems]}
    comparison = compare(records, question)
    rows = [dict(cells(comparison, one)) for one in comparison.variants]
    titles = [title for title in rows[0] if any(row[title] != UNSET for row in rows)]
    return {
        "n_runs": len(records),
        "metric": comparison.metric,
        "is_measured": comparison.is_measured,
        "is_more_better": comparison.is_more_better,
        "metrics": metrics_of(records)[:MAX_SETTINGS],
        "settings": differing(records)[:MAX_SETTINGS],
        "n_settings": len(comparison.columns),
        "titles": titles,
        "rows": [[text(row[title]) for title in titles] for row in rows],
        "findings": [text(one) for one in comparison.findings],
        "notes": [text(one) for one in (*problems, *comparison.notes)],
        "curves": {over: _curves(comparison, over) for over in AXES},
        "runs": _run_rows(comparison),
    }


def comparison_file(form: str, records: Sequence[RunRecord], question: Question) -> str:
    """A comparison as `fedray compare` writes it: html, csv or latex."""
    return FORMS[form](compare(records, question))


def _curves(comparison: Comparison, over: str) -> list[dict[str, Any]]:
    return [
        {
            "label": text(one.label, 120),
            "x": _thinned(one.x),
            "mean": _thinned(one.mean),
            "deviation": _thinned(one.deviation),
        }
        for one in series_of(comparison, over)
        if len(one.x)
    ]


def _thinned(values: Any) -> list[float | None]:
    n = len(values)
    n_points = min(n, N_POINTS)
    places = [i * (n - 1) // max(1, n_points - 1) for i in range(n_points)]
    numbers = (float(values[i]) for i in places)
    return [value if math.isfinite(value) else None for value in numbers]


def _run_rows(comparison: Comparison) -> dict[str, Any]:
    """A row for each run: its settings that differ, and its last values."""
    rows = [record_row(comparison, one) for one in comparison.records]
    return {
        "titles": [*rows[0]],
        "rows": [
            [v if isinstance(v, int | float) else text(v) for v in row.values()]
            for row in rows
        ],
    }
