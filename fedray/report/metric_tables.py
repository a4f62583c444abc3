"""The metrics that a config names, in report.html: values, by class, confusion."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedray.errors import FedrayError
from fedray.messages import RoundReport
from fedray.report.formatting import (
    NO_VALUE,
    escape,
    format_number,
    html_table,
    truncation_note,
)
from fedray.report.statistics import by_group
from fedray.survey import read_codes
from fedray.user_code import is_source

N_CLASSES = 50  # that a table of classes shows
CONFUSION = "confusion_matrix"
PER_CLASS = "_per_class"
MEANS = (
    "{} is a function of the config's: the mean over batches, weighted by samples, "
    "which is the value over all samples only where that is such a mean."
)


def read_label_names(folder: Path) -> tuple[str, ...]:
    """Names of the classes, where the run has read names; else nothing."""
    try:
        codes = read_codes(folder)
    except (FedrayError, OSError, ValueError):
        return ()
    return codes.labels if codes else ()


def metric_tables(
    history: Sequence[RoundReport], config: Mapping[str, Any], labels: Sequence[str]
) -> str:
    """HTML of the last values of all metrics, of each group; empty without any.

    labels : names of the classes, by number.
    """
    parts = []
    for group, reports in by_group(history).items():
        last = next((one for one in reversed(reports) if one.metrics), None)
        if last is not None:
            title = f"<h3>{escape(group)}</h3>" if group else ""
            parts.append(title + _tables(last, labels))
    if not parts:
        return ""
    functions = [name for name in config.get("metrics") or () if is_source(str(name))]
    names = [name.rpartition(":")[2].rpartition("/")[2] for name in functions]
    notes = [MEANS.format(escape(name)) for name in names]
    notes += [escape(note) for note in _notes(history)]
    return "\n".join(parts) + "".join(f'<p class="small">{n}</p>' for n in notes)


def _notes(history: Sequence[RoundReport]) -> list[str]:
    """Why metrics have no value, each once."""
    notes = (note for report in history for note in report.notes)
    return list(dict.fromkeys(note for note in notes if note.startswith("metric ")))


def _tables(report: RoundReport, labels: Sequence[str]) -> str:
    rows = [[escape(name), format_number(value)] for name, value in report.numbers]
    numbers = html_table("Metrics", ("metric", f"round {report.round}"), rows)
    by_class = {
        name: value
        for name, value in report.metrics.items()
        if name.endswith(PER_CLASS) and isinstance(value, list)
    }
    parts = [numbers] if rows else []
    if by_class:
        parts.append(_class_table(by_class, labels))
    matrix = report.metrics.get(CONFUSION)
    if isinstance(matrix, list):
        parts.append(_confusion_table(matrix, labels))
    return "\n".join(parts)


def _class_table(
    by_class: Mapping[str, Sequence[float | None]], labels: Sequence[str]
) -> str:
    n_classes = max(map(len, by_class.values()))
    names = _class_names(n_classes, labels)
    rows = [
        [escape(name), *(_cell(values, place) for values in by_class.values())]
        for place, name in enumerate(names[:N_CLASSES])
    ]
    head = ["class", *(escape(name.removesuffix(PER_CLASS)) for name in by_class)]
    return html_table("Metrics by class", head, rows) + truncation_note(
        len(rows), n_classes, "classes"
    )


def _cell(values: Sequence[float | None], place: int) -> str:
    return format_number(values[place]) if place < len(values) else NO_VALUE


def _confusion_table(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """Targets down, what the model says across."""
    names = [escape(name) for name in _class_names(len(matrix), labels)]
    rows = [
        [name, *(f"{count:,}" for count in row[:N_CLASSES])]
        for name, row in zip(names[:N_CLASSES], matrix, strict=False)
    ]
    head = ["true class", *(f"said {name}" for name in names[:N_CLASSES])]
    return html_table("Confusion matrix", head, rows) + truncation_note(
        len(rows), len(matrix), "classes"
    )


def _class_names(n_classes: int, labels: Sequence[str]) -> list[str]:
    own = list(labels) if len(labels) == n_classes else []
    return own or [str(number) for number in range(n_classes)]
