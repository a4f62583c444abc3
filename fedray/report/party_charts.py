"""Charts with a row for each party: outcome by round, and a timeline of its work."""

from collections.abc import Iterator, Sequence

from fedray.messages import FAILED, LATE, PartyLine, RoundReport
from fedray.report.formatting import (
    axis_ticks,
    escape,
    format_duration,
    is_number,
    truncation_note,
)
from fedray.report.statistics import PartyStatistics, most_troubled

N_PARTIES = 50  # rows of a chart
N_GRID_ROUNDS, N_TIMELINE_ROUNDS = 200, 40
CELL = 50  # units of a cell; whole numbers keep the file small
MARKS = {  # shapes that differ without colour, and when stretched; from (0, 0)
    "fused": "m3 7h44v36h-44z",
    "apart": "m13 13h24v24h-24z",
    "late": "m3 27h44v16h-44z",
    "failed": "m10 10l30 30m0-30l-30 30",
    "refused": "m11 12h28v26h-28z",
    "other": "m3 21h44v8h-44z",
}
TIMELINE_WIDTH = 10_000  # units
HALF_HEIGHTS = {"train": 18, "wait": 4, "late": 8, "failed": 13, "refused": 18}
TIMELINE_CLASSES = {"train": "fused", "wait": "rest"}  # other kinds: their own names
TICK_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)


def outcome_grid(
    parties: Sequence[PartyStatistics], history: Sequence[RoundReport]
) -> str:
    """HTML of the grid of outcomes (party × round) and its legend."""
    shown = most_troubled(parties, N_PARTIES)
    all_rounds = sorted({report.round for report in history})
    rounds = all_rounds[-N_GRID_ROUNDS:]
    n = len(rounds)
    size = f"min-width:{0.25 * n:.2f}rem;max-width:{1.8 * n:.2f}rem"
    drawing = _outcome_marks(shown, rounds) + _round_axis(rounds)
    return (
        _outcome_legend(shown, rounds)
        + _frame("Parties by round", shown, size, drawing)
        + truncation_note(len(shown), len(parties), "parties, those with most trouble")
        + truncation_note(n, len(all_rounds), "rounds, the last")
    )


def timeline(parties: Sequence[PartyStatistics], history: Sequence[RoundReport]) -> str:
    """HTML of the timeline: training and waiting of each party, time to the right.

    Every bar starts with its round. A party whose update was late, failed or refused
    shows that instead of its training.
    """
    shown = most_troubled(parties, N_PARTIES)
    rounds = history[-N_TIMELINE_ROUNDS:]
    total_s = sum(report.seconds for report in rounds)
    if not total_s:
        return ""
    rows = {party.name: row for row, party in enumerate(shown)}
    size = f"min-width:{max(12, 0.75 * len(rounds)):g}rem"
    drawing = _timeline_bars(rows, rounds, total_s) + _time_axis(total_s)
    return (
        _timeline_legend()
        + _frame("Time by party", shown, size, drawing)
        + truncation_note(len(shown), len(parties), "parties, those with most trouble")
        + truncation_note(len(rounds), len(history), "rounds, the last")
    )


def legend(entries: Sequence[tuple[str, str, str]]) -> str:
    """HTML of a legend: (CSS class, shape, label) of each mark."""
    box = '<path class="band" d="M0 7h50v36h-50z"/>'
    items = "".join(
        f'<li><svg viewBox="0 0 50 50" aria-hidden="true">{box}'
        f'<path class="{css_class}" d="M0 0{shape}"/></svg>{label}</li>'
        for css_class, shape, label in entries
    )
    return f'<ul class="key">{items}</ul>'


def _frame(
    label: str, parties: Sequence[PartyStatistics], size: str, drawing: str
) -> str:
    """Names of the parties, and beside them the drawing, which scrolls sideways."""
    names = "".join(f"<li>{escape(party.name)}</li>" for party in parties)
    return (
        f'<div class="picture"><ul>{names}</ul>'
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">'
        f'<div style="{size}">{drawing}</div></div></div>'
    )


def _svg(size: tuple[int, int], n_rows: int, label: str, shapes: str) -> str:
    width, height = size
    return (
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none"'
        f' role="img" style="--n:{n_rows}" aria-label="{label}">{shapes}</svg>'
    )


def _paths(shapes: dict[str, list[str]]) -> str:
    """One SVG path for all shapes of a CSS class."""
    return "".join(
        f'<path class="{css_class}" d="{"".join(drawn)}"/>\n'
        for css_class, drawn in shapes.items()
        if drawn
    )


def _axis(labels: str) -> str:
    return f'<svg class="axis" aria-hidden="true">{labels}</svg>'


def _mark_of(party: PartyStatistics, round_: int) -> str | None:
    """Key of `MARKS` for a party's outcome; None where it was not chosen."""
    kind = party.kinds.get(round_)
    return kind if kind is None or kind in MARKS else "other"


def _outcome_marks(parties: Sequence[PartyStatistics], rounds: Sequence[int]) -> str:
    marks: dict[str, list[str]] = {kind: [] for kind in MARKS}
    for row, party in enumerate(parties):
        for column, round_ in enumerate(rounds):
            if kind := _mark_of(party, round_):
                marks[kind].append(f"M{column * CELL} {row * CELL}{MARKS[kind]}")
    width, height = len(rounds) * CELL, len(parties) * CELL
    bands = "".join(
        f"M0 {row * CELL + 7}h{width}v36h-{width}z" for row in range(len(parties))
    )
    label = "The outcome of each party in each round; the table of parties has counts."
    shapes = f'<path class="band" d="{bands}"/>\n{_paths(marks)}'
    return _svg((width, height), len(parties), label, shapes)


def _round_axis(rounds: Sequence[int]) -> str:
    labels = "".join(
        f'<text x="{100 * (rounds.index(tick) + 0.5) / len(rounds):.2f}%" y="1.1em">'
        f"{tick}</text>"
        for tick in axis_ticks(rounds)
        if tick in rounds
    )
    return _axis(labels)


def _outcome_legend(parties: Sequence[PartyStatistics], rounds: Sequence[int]) -> str:
    present = {_mark_of(party, round_) for party in parties for round_ in rounds}
    kinds = [k for k in MARKS if k not in ("other", "apart") or k in present]
    entries = [(kind, MARKS[kind], kind) for kind in kinds]
    return legend([*entries, ("", "", "not chosen")])


def _timeline_legend() -> str:
    entries = [("fused", MARKS["fused"], "train"), ("rest", MARKS["other"], "wait")]
    for kind in ("late", "failed", "refused"):
        entries.append((kind, MARKS["refused"], kind))
    return legend(entries)


def _timeline_bars(
    rows: dict[str, int], rounds: Sequence[RoundReport], total_s: float
) -> str:
    paths: dict[str, list[str]] = {
        TIMELINE_CLASSES.get(kind, kind): [] for kind in HALF_HEIGHTS
    }
    scale, start_s = TIMELINE_WIDTH / total_s, 0.0
    for report in rounds:
        for line in report.parties:
            if line.name not in rows:
                continue
            for kind, begin_s, end_s in _spans(line, report.seconds):
                span = scale * (start_s + begin_s), scale * (start_s + end_s)
                bar = _bar(span, rows[line.name], HALF_HEIGHTS[kind])
                paths[TIMELINE_CLASSES.get(kind, kind)].append(bar)
        start_s += report.seconds
    size = TIMELINE_WIDTH, len(rows) * CELL
    label = "When each party trained and waited; the table of parties has mean times."
    return _svg(size, len(rows), label, "\n" + _paths(paths))


def _spans(line: PartyLine, round_s: float) -> Iterator[tuple[str, float, float]]:
    """(kind, start, end) of what a party did, in seconds from the round's start."""
    kind = line.result.kind if line.result else None
    end_s = min(line.seconds, round_s) if is_number(line.seconds) else None
    if kind in (LATE, FAILED) and end_s is None:
        yield kind, 0.0, round_s
        return
    end_s = end_s or 0.0
    yield ("train" if kind not in HALF_HEIGHTS else kind), 0.0, end_s
    yield "wait", end_s, round_s


def _bar(span: tuple[float, float], row: int, half_height: int) -> str:
    start, end = span
    gap = min(15.0, (end - start) / 4)  # between one round and the next
    width, top = round(end - start - gap), row * CELL + CELL // 2 - half_height
    if width <= 0:
        return ""
    return f"M{round(start)} {top}h{width}v{2 * half_height}h-{width}z"


def _time_axis(total_s: float) -> str:
    step_s = next((s for s in TICK_STEPS_S if total_s / s <= 6), total_s / 4)
    times = [i * step_s for i in range(1, int(total_s / step_s) + 1)]
    labels = "".join(
        f'<text x="{100 * time / total_s:.2f}%" y="1.1em">{_tick_label(time)}</text>'
        for time in times
        if 0.08 * total_s < time < 0.97 * total_s
    )
    return _axis(f'<text x="0" y="1.1em" style="text-anchor:start">0</text>{labels}')


def _tick_label(seconds: float) -> str:
    return format_duration(seconds).replace(".0 s", " s").replace(" min 00 s", " min")
