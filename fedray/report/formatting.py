"""Formatting of numbers, tables and untrusted text as HTML for report.html."""

import html
import math
from collections.abc import Iterable, Sequence
from typing import TypeGuard

from fedray import untrusted_text

NO_VALUE = "–"  # shown where nothing was measured
UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def escape(value: object) -> str:
    """Make untrusted text safe to show: escape markup and harmful characters."""
    return html.escape(untrusted_text.escape(str(value)))


def format_bytes(n_bytes: float | None) -> str:
    """Format bytes in decimal units: 4.8 MB."""
    if n_bytes is None:
        return NO_VALUE
    unit = 0
    while n_bytes >= 999.5 and unit < len(UNITS) - 1:
        n_bytes, unit = n_bytes / 1000, unit + 1
    digits = 1 if unit and n_bytes < 99.95 else 0
    return f"{n_bytes:.{digits}f} {UNITS[unit]}"


def format_duration(seconds: float | None) -> str:
    """Format seconds: 850 ms, 12.4 s, 1 min 05 s, 2 h 03 min."""
    if not is_number(seconds):
        return NO_VALUE
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def format_number(value: float | None) -> str:
    """Format a measured value with four significant digits."""
    if value is None:
        return NO_VALUE
    return f"{value:.4g}" if math.isfinite(value) else "not finite"


def format_percent(share: float | None) -> str:
    """Format a share of one as a percentage."""
    return f"{100 * share:.2f}%" if is_number(share) else format_number(share)


def total(values: Iterable[float | None]) -> float | None:
    """Sum of what rounds have; None where one of them hides it."""
    numbers = [*values]
    if None in numbers:
        return None
    return sum(number for number in numbers if number is not None)


def is_number(value: float | None) -> TypeGuard[float]:
    """Whether there is a value and it is finite."""
    return value is not None and math.isfinite(value)


def html_table(label: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Build a table that scrolls inside itself; cells are HTML, row headers first."""
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row">{first}</th>'
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>\n"
        for first, *cells in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">'
        f"<table><thead><tr>{heads}</tr></thead>\n<tbody>{lines}</tbody></table></div>"
    )


def truncation_note(n_shown: int, n_all: int, noun: str) -> str:
    """Say that only some are shown; empty where all are."""
    if n_shown == n_all:
        return ""
    return f'<p class="small">Shown: {n_shown:,} of {n_all:,} {noun}.</p>'


def axis_ticks(rounds: Sequence[int], n_most: int = 8) -> list[int]:
    """Choose round numbers for an axis: the first, then each 1, 2, 5, 10, 20, ...th."""
    first, last = rounds[0], rounds[-1]
    step, factors = 1, (2, 2.5, 2)
    for i in range(60):
        if (last - first) / step < n_most:
            break
        step = int(step * factors[i % 3])
    on_step = range((first // step + 1) * step, last + 1, step)
    return [first, *(tick for tick in on_step if tick - first > step / 2)]
