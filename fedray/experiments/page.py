"""A comparison as one self-contained HTML file: table, curves with bands, notes."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fedray.errors import format_count
from fedray.experiments.comparison import Comparison, Variant
from fedray.experiments.records import RunRecord
from fedray.experiments.tables import cells, record_row
from fedray.report.band_charts import Axis, Series, draw_bands
from fedray.report.formatting import (
    NO_VALUE,
    escape,
    format_bytes,
    format_duration,
    format_number,
    html_table,
    truncation_note,
)
from fedray.report.page import NO_CURVES, document, section

N_DRAWN = 10  # variants with a curve; more could not be told apart
N_RUNS = 1000  # with a row of their own
AXES = (
    Axis("rounds", "rounds", lambda value: f"{value:g}"),
    Axis("seconds", "time", format_duration),
    Axis("bytes", "bytes moved", lambda v: format_bytes(v).replace(".0 ", " ")),
)


def to_html(comparison: Comparison) -> str:
    """The whole file."""
    return document(
        "comparison",
        [
            _header(comparison),
            section("Settings that differ", table_html(comparison)),
            _list("Results", comparison.findings),
            section("Curves", _curves(comparison)),
            _list("Notes", comparison.notes),
            section("Runs", _runs(comparison)),
        ],
    )


def _list(title: str, texts: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return section(title, f"<ul>{items}</ul>") if items else ""


def table_html(comparison: Comparison) -> str:
    """The table of variants, as a page or a notebook shows it."""
    rows = [dict(cells(comparison, one)) for one in comparison.variants]
    titles = [t for t in rows[0] if any(row[t] != NO_VALUE for row in rows)]
    head = [escape(title) for title in titles]
    lines = [[escape(row[title]) for title in titles] for row in rows]
    return html_table("Comparison", head, lines)


def _header(comparison: Comparison) -> str:
    n_runs = format_count(len(comparison.records), "run")
    n_variants = format_count(len(comparison.variants), "variant")
    return (
        f'<header><p class="small">fedray compare</p><h1>{n_runs}, {n_variants}</h1>'
        f"{_explanation(comparison)}</header>"
    )


def _explanation(comparison: Comparison) -> str:
    if not comparison.is_measured:
        return ""
    better = "more" if comparison.is_more_better else "less"
    return (
        f"<p>By <b>{escape(comparison.metric)}</b> after the last round, {better} is "
        "better. Means ± standard deviations over seeds; differences to the best mean "
        "are paired by seed, with 95 % intervals.</p>"
    )


def _curves(comparison: Comparison) -> str:
    charts = [(axis, series_of(comparison, axis.name)) for axis in AXES]
    charts = [(axis, own) for axis, own in charts if any(len(s.x) for s in own)]
    html = draw_bands(comparison.metric, charts) if charts else ""
    n_drawn = min(N_DRAWN, len(comparison.variants))
    note = truncation_note(n_drawn, len(comparison.variants), "variants")
    return (f"<p>{NO_CURVES}</p>" if html is None else html) + note


def series_of(comparison: Comparison, over: str) -> list[Series]:
    """The curves of the best variants, over ``rounds``, ``seconds`` or ``bytes``."""
    drawn = [one for one in comparison.variants if one.final is not None][:N_DRAWN]
    return [_series(comparison.metric, variant, over) for variant in drawn]


def _series(metric: str, variant: Variant, over: str) -> Series:
    """Mean and deviation of a variant's runs, round by round.

    Over time and bytes a round stands where its runs were on average.
    """
    points: dict[int, list[tuple[float, float]]] = {}
    for record in variant.records:
        for round, x, value in _points(record, metric, over):
            points.setdefault(round, []).append((x, value))
    columns = np.full((3, len(points)), math.nan)
    for i, round in enumerate(sorted(points)):
        own = np.array(points[round])
        columns[0, i], columns[1, i] = own.mean(axis=0)
        columns[2, i] = own[:, 1].std(ddof=1) if len(own) > 1 else 0.0
    return Series(variant.label, *columns)


def _points(
    record: RunRecord, metric: str, over: str
) -> Iterator[tuple[int, float, float]]:
    """(round, place on the axis, value) of each round that was measured."""
    places: dict[str, Sequence[float | None]] = {
        "rounds": record.rounds, "seconds": record.seconds, "bytes": record.n_bytes
    }  # fmt: skip
    values = record.metrics.get(metric, [])
    for round, x, value in zip(record.rounds, places[over], values, strict=False):
        if x is not None and value is not None:
            yield round, x, value


def _runs(comparison: Comparison) -> str:
    """A row for each run, with a link to its report."""
    rows = [record_row(comparison, one) for one in comparison.records[:N_RUNS]]
    formats: dict[str, Callable[..., str]] = {
        "seconds": format_duration, "bytes": format_bytes
    }  # fmt: skip
    lines = []
    for row, record in zip(rows, comparison.records, strict=False):
        texts = [_text(value, formats.get(name)) for name, value in row.items()]
        report = record.folder / "report.html"
        if report.is_file():
            texts[0] = f'<a href="{escape(report.as_uri())}">{texts[0]}</a>'
        lines.append(texts)
    n_all = len(comparison.records)
    note = truncation_note(len(rows), n_all, "runs; --csv has all")
    return html_table("Runs", [escape(name) for name in rows[0]], lines) + note


def _text(value: object, form: Callable[..., str] | None) -> str:
    if value is None:
        return NO_VALUE
    if form is not None:
        return form(value)
    return escape(format_number(value) if isinstance(value, float) else value)
