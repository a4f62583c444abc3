"""A comparison as a table of text, CSV and LaTeX."""

import csv
import io
import math
from collections.abc import Callable, Iterator
from typing import Any

from fedray.experiments.comparison import UNSET, Comparison, Variant, metrics_of, show
from fedray.experiments.records import SEED, RunRecord
from fedray.experiments.statistics import Summary
from fedray.report import format_bytes
from fedray.report.formatting import format_duration
from fedray.untrusted_text import escape_line

Cell = tuple[str, str]  # title of the column, text
Format = Callable[[float], str]
LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
}


def cells(comparison: Comparison, variant: Variant) -> Iterator[Cell]:
    """A variant's row: its settings, then what was measured."""
    metric, variants = comparison.metric, comparison.variants
    yield from variant.settings.items()
    yield "runs", str(len(variant.records))
    yield metric, number_text(variant.final)
    if len(variants) > 1 and comparison.is_measured:
        yield "to the best", difference_text(variant)
        yield "", comparison.verdict(variant)
    if any(one.best != one.final for one in variants):
        yield f"best {metric}", number_text(variant.best)
    if any(one.worst for one in variants):
        yield "worst party", number_text(variant.worst)
        yield "over parties", number_text(variant.spread)
    yield _rounds_done(comparison), spread_text(variant.rounds, _count)
    yield "time", spread_text(variant.seconds, format_duration)
    yield "bytes", spread_text(variant.n_bytes, format_bytes)
    if comparison.question.target is not None:
        yield from _target_cells(variant, f"{comparison.question.target:g}")


def _rounds_done(comparison: Comparison) -> str:
    """Name of the column of rounds: another where `rounds` is a setting's."""
    return "rounds done" if "rounds" in comparison.columns else "rounds"


def _target_cells(variant: Variant, target: str) -> Iterator[Cell]:
    yield f"reach {target}", f"{variant.n_reached} of {len(variant.records)}"
    formats: tuple[Format, ...] = (_count, format_duration, format_bytes)
    for (name, summary), form in zip(variant.to_target.items(), formats, strict=True):
        yield f"{name} to {target}", spread_text(summary, form)


def number_text(summary: Summary | None) -> str:
    """A mean with the digits that its deviation leaves meaning to: 0.9124 ± 0.0041."""
    if summary is None:
        return UNSET
    if not has_deviation(summary):
        return f"{summary.mean:.4g}"
    deviation = summary.deviation or 0.0
    n_decimals = max(0, 1 - math.floor(math.log10(deviation)))
    return f"{summary.mean:.{n_decimals}f} ± {deviation:.{n_decimals}f}"


def spread_text(summary: Summary | None, show_it: Format) -> str:
    """A mean and its deviation over seeds, with units: 4.0 s ± 120 ms."""
    if summary is None:
        return UNSET
    mean = show_it(summary.mean)
    if not has_deviation(summary):
        return mean
    return f"{mean} ± {show_it(summary.deviation or 0.0)}"


def has_deviation(summary: Summary) -> bool:
    """Whether values differ by more than rounding."""
    return (summary.deviation or 0.0) > 1e-9 * abs(summary.mean)


def difference_text(variant: Variant) -> str:
    """A mean difference with its interval: −0.031 [−0.040, −0.022]."""
    difference = variant.difference
    if difference is None:
        return ""
    mean = _signed(difference.mean)
    if difference.low is None or difference.high is None:
        return mean
    return f"{mean} [{_signed(difference.low)}, {_signed(difference.high)}]"


def to_text(comparison: Comparison) -> str:
    """The table for a terminal: settings that differ, then numbers; notes below."""
    rows = [dict(cells(comparison, one)) for one in comparison.variants]
    titles = [title for title in rows[0] if any(row[title] != UNSET for row in rows)]
    table = [titles, *([escape_line(row[title]) for title in titles] for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(titles))]
    n_left = len(comparison.columns)
    lines = []
    for row in table:
        texts = [
            text.ljust(width) if i < n_left or titles[i] == "" else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(texts).rstrip())
    findings = [f"result   {escape_line(text)}" for text in comparison.findings]
    notes = [f"note     {escape_line(note)}" for note in comparison.notes]
    return "\n".join([*lines, *findings, *notes])


def to_csv(comparison: Comparison) -> str:
    """One line a run: every setting that differs, its seed, all last values."""
    file = io.StringIO()
    rows = [record_row(comparison, record) for record in comparison.records]
    writer = csv.DictWriter(file, [*rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def record_row(comparison: Comparison, record: RunRecord) -> dict[str, Any]:
    """One run as plain values, by column; None where there is none."""
    metric, is_more = comparison.metric, comparison.is_more_better
    row: dict[str, Any] = {"run": record.name, "state": record.state}
    row |= {name: show(record, name) for name in comparison.columns}
    row |= {SEED: record.seed, _rounds_done(comparison): len(record.rounds)}
    row["seconds"] = record.seconds[-1] if record.seconds else None
    row["bytes"] = record.n_bytes[-1] if record.n_bytes else None
    row |= {name: record.last(name) for name in metrics_of(comparison.records)}
    row[f"best_{metric}"] = record.best(metric, is_more)
    row["worst_party"] = (record.lowest if is_more else record.highest).get(metric)
    if (target := comparison.question.target) is not None:
        place = record.place_of(metric, target, is_more)
        amounts = dict.fromkeys(("rounds", "seconds", "bytes"))
        amounts |= {} if place is None else record.amounts_at(place)
        row |= {f"{name}_to_target": amount for name, amount in amounts.items()}
    return row


def to_latex(comparison: Comparison) -> str:
    """The table for a paper, with the rules of the package booktabs."""
    rows = [dict(cells(comparison, one)) for one in comparison.variants]
    titles = [title for title in rows[0] if any(row[title] != UNSET for row in rows)]
    n_left = len(comparison.columns)
    form = "l" * n_left + "r" * (len(titles) - n_left)
    lines = [rf"\begin{{tabular}}{{{form}}}", r"\toprule", _latex_row(titles),
             r"\midrule"]  # fmt: skip
    lines += [_latex_row([row[title] for title in titles]) for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex_row(texts: list[str]) -> str:
    escaped = ["".join(LATEX.get(c, c) for c in text) for text in texts]
    return " & ".join(escaped) + r" \\"


def _count(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−")
