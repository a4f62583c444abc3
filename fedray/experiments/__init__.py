"""Experiments: many runs, compared by their folders."""

from collections.abc import Callable

from fedray.experiments.comparison import Comparison, Question, Variant, compare
from fedray.experiments.page import series_of, to_html
from fedray.experiments.records import RunRecord, find_runs, read_run
from fedray.experiments.results import Results, results
from fedray.experiments.tables import to_csv, to_latex, to_text

FORMS: dict[str, Callable[[Comparison], str]] = {
    "html": to_html,
    "csv": to_csv,
    "latex": to_latex,
}

__all__ = [
    "FORMS",
    "Comparison",
    "Question",
    "Results",
    "RunRecord",
    "Variant",
    "compare",
    "find_runs",
    "read_run",
    "results",
    "series_of",
    "to_csv",
    "to_html",
    "to_latex",
    "to_text",
]
