"""How numbers and foreign text are put into the report."""

import html
import math
from collections.abc import Iterable, Sequence

NOTHING = "–"  # where there is no number
UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def text(foreign: object) -> str:
    """Make foreign text safe to show: markup is escaped, what cannot be seen is marked.

    Control, surrogate and direction-changing characters could break the file, or make
    a name look like another.
    """
    seen = (c if c.isprintable() or c in "\n\t" else _mark(c) for c in str(foreign))
    return html.escape("".join(seen))


def _mark(character: str) -> str:
    return " " if character.isspace() else "\N{REPLACEMENT CHARACTER}"


def sizes(n_bytes: float) -> str:
    """Bytes in decimal units: 4.8 MB."""
    unit = 0
    while n_bytes >= 999.5 and unit < len(UNITS) - 1:
        n_bytes, unit = n_bytes / 1000, unit + 1
    digits = 1 if unit and n_bytes < 99.95 else 0
    return f"{n_bytes:.{digits}f} {UNITS[unit]}"


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 850 ms, 12.4 s, 1 min 05 s, 2 h 03 min."""
    if not is_number(seconds):
        return NOTHING
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def number(value: float | None) -> str:
    """Four digits of a measured value."""
    if value is None:
        return NOTHING
    return f"{value:.4g}" if math.isfinite(value) else "not finite"


def percent(share: float | None) -> str:
    """A share of one as a percentage."""
    return f"{100 * share:.2f}%" if is_number(share) else number(share)


def count(n: int, one: str, many: str) -> str:
    """The number with its noun: 1 party, 1,200 parties."""
    return f"{n:,} {one if n == 1 else many}"


def is_number(value: float | None) -> bool:
    """Whether there is a value, and a finite one."""
    return value is not None and math.isfinite(value)


def table(label: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are html, the first names its row; a wide table scrolls inside itself."""
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row">{first}</th>'
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>\n"
        for first, *cells in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(label)}">'
        f"<table><thead><tr>{heads}</tr></thead>\n<tbody>{lines}</tbody></table></div>"
    )


def ticks(rounds: Sequence[int], n_most: int = 8) -> list[int]:
    """Round numbers for an axis: the first, then every 1, 2, 5, 10, 20, ... of them."""
    first, last = rounds[0], rounds[-1]
    step, grow = 1, (2, 2.5, 2)
    for i in range(60):
        if (last - first) / step < n_most:
            break
        step = int(step * grow[i % 3])
    on_step = range((first // step + 1) * step, last + 1, step)
    return [first, *(tick for tick in on_step if tick - first > step / 2)]
