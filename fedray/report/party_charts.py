"""Charts with a row for each party: outcomes by round, and where its time went."""

from collections.abc import Iterator, Sequence

from fedray.messages import PartyLine, RoundReport
from fedray.report.formatting import duration, is_number, text, ticks
from fedray.report.statistics import Tally, cut, first_in_trouble

N_PARTIES = 50
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
WIDTH = 10_000  # units of the whole time shown
HALVES = {"train": 18, "wait": 4, "late": 8, "failed": 13, "refused": 18}  # of heights
CLASSES = {"train": "fused", "wait": "rest"}  # the others have their own name's
STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)


def picture(parties: Sequence[Tally], history: Sequence[RoundReport]) -> str:
    """Html of the picture, its legend, and what it leaves out."""
    shown = first_in_trouble(parties, N_PARTIES)
    all_rounds = sorted({report.round for report in history})
    rounds = all_rounds[-N_GRID_ROUNDS:]
    names = "".join(f"<li>{text(party.name)}</li>" for party in shown)
    n = len(rounds)
    return (
        f'{_outcome_legend(shown, rounds)}<div class="picture"><ul>{names}</ul>'
        '<div class="scroll" role="region" tabindex="0" aria-label="Parties by round">'
        f'<div style="min-width:{0.25 * n:.2f}rem;max-width:{1.8 * n:.2f}rem">'
        f"{_cells(shown, rounds)}{_round_axis(rounds)}</div></div></div>"
        + cut(len(shown), len(parties), "parties, those with most trouble")
        + cut(n, len(all_rounds), "rounds, the last")
    )


def _kind(party: Tally, round_: int) -> str | None:
    kind = party.kinds.get(round_)
    return kind if kind is None or kind in MARKS else "other"


def _cells(parties: Sequence[Tally], rounds: Sequence[int]) -> str:
    marks: dict[str, list[str]] = {kind: [] for kind in MARKS}
    for row, party in enumerate(parties):
        for column, round_ in enumerate(rounds):
            if kind := _kind(party, round_):
                marks[kind].append(f"M{column * CELL} {row * CELL}{MARKS[kind]}")
    width, height = len(rounds) * CELL, len(parties) * CELL
    bands = "".join(
        f"M0 {row * CELL + 7}h{width}v36h-{width}z" for row in range(len(parties))
    )
    paths = "".join(
        f'<path class="{kind}" d="{"".join(drawn)}"/>\n'
        for kind, drawn in marks.items()
        if drawn
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img"'
        f' style="--n:{len(parties)}" aria-label="The outcome of each'
        ' party in each round; the table of parties has the counts.">'
        f'<path class="band" d="{bands}"/>\n{paths}</svg>'
    )


def _round_axis(rounds: Sequence[int]) -> str:
    words = "".join(
        f'<text x="{100 * (rounds.index(tick) + 0.5) / len(rounds):.2f}%" y="1.1em">'
        f"{tick}</text>"
        for tick in ticks(rounds)
        if tick in rounds
    )
    return f'<svg class="axis" aria-hidden="true">{words}</svg>'


def _outcome_legend(parties: Sequence[Tally], rounds: Sequence[int]) -> str:
    seen = {_kind(party, round_) for party in parties for round_ in rounds}
    kinds = [k for k in MARKS if k not in ("other", "apart") or k in seen]
    return key([(kind, MARKS[kind], kind) for kind in kinds] + [("", "", "not chosen")])


def key(entries: Sequence[tuple[str, str, str]]) -> str:
    """A legend: (class, shape, word) of each mark."""
    box = '<path class="band" d="M0 7h50v36h-50z"/>'
    items = "".join(
        f'<li><svg viewBox="0 0 50 50" aria-hidden="true">{box}'
        f'<path class="{kind}" d="M0 0{shape}"/></svg>{word}</li>'
        for kind, shape, word in entries
    )
    return f'<ul class="key">{items}</ul>'


def timeline(parties: Sequence[Tally], history: Sequence[RoundReport]) -> str:
    """Html of the picture: a row for each party, time from left to right.

    Every bar starts with its round. A party whose update was late, failed or refused
    shows that instead of its training.
    """
    shown = first_in_trouble(parties, N_PARTIES)
    rounds = history[-N_TIMELINE_ROUNDS:]
    whole = sum(report.seconds for report in rounds)
    if not whole:
        return ""
    names = "".join(f"<li>{text(party.name)}</li>" for party in shown)
    rows = {party.name: row for row, party in enumerate(shown)}
    return (
        f'{_time_legend()}<div class="picture"><ul>{names}</ul>'
        '<div class="scroll" role="region" tabindex="0" aria-label="Time by party">'
        f'<div style="min-width:{max(12, 0.75 * len(rounds)):g}rem">'
        f"{_time_bars(rows, rounds, whole)}{_time_axis(whole)}</div></div></div>"
        + cut(len(shown), len(parties), "parties, those with most trouble")
        + cut(len(rounds), len(history), "rounds, the last")
    )


def _time_legend() -> str:
    marks = [("fused", MARKS["fused"], "train"), ("rest", MARKS["other"], "wait")]
    marks += [(kind, MARKS["refused"], kind) for kind in ("late", "failed", "refused")]
    return key(marks)


def _time_bars(
    rows: dict[str, int], rounds: Sequence[RoundReport], whole: float
) -> str:
    paths: dict[str, list[str]] = {kind: [] for kind in HALVES}
    start = 0.0
    for report in rounds:
        for line in report.parties:
            if line.name in rows:
                for kind, begin, end in _spans(line, report.seconds):
                    at = WIDTH * (start + begin) / whole
                    to = WIDTH * (start + end) / whole
                    paths[kind].append(_bar(at, to, rows[line.name], HALVES[kind]))
        start += report.seconds
    drawn = "".join(
        f'<path class="{CLASSES.get(kind, kind)}" d="{"".join(bars)}"/>\n'
        for kind, bars in paths.items()
        if bars
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {len(rows) * CELL}" preserveAspectRatio="none"'
        f' role="img" style="--n:{len(rows)}" aria-label="When each party trained and'
        f' when it waited; the table of parties has mean times.">\n{drawn}</svg>'
    )


def _spans(line: PartyLine, seconds: float) -> Iterator[tuple[str, float, float]]:
    """(what, from, to) of one party in one round, in seconds from the round's start."""
    kind = line.result.kind
    trained = min(line.seconds, seconds) if is_number(line.seconds) else None
    if kind in ("late", "failed") and trained is None:
        yield kind, 0.0, seconds
        return
    end = trained or 0.0
    yield ("train" if kind not in HALVES else kind), 0.0, end
    yield "wait", end, seconds


def _bar(start: float, end: float, row: int, half: int) -> str:
    gap = min(15.0, (end - start) / 4)  # between one round and the next
    width, top = round(end - start - gap), row * CELL + CELL // 2 - half
    if width <= 0:
        return ""
    return f"M{round(start)} {top}h{width}v{2 * half}h-{width}z"


def _time_axis(whole: float) -> str:
    step = next((step for step in STEPS if whole / step <= 6), whole / 4)
    times = [i * step for i in range(1, int(whole / step) + 1)]
    words = "".join(
        f'<text x="{100 * time / whole:.2f}%" y="1.1em">{_clock(time)}</text>'
        for time in times
        if 0.08 * whole < time < 0.97 * whole
    )
    started = '<text x="0" y="1.1em" style="text-anchor:start">0</text>'
    return f'<svg class="axis" aria-hidden="true">{started}{words}</svg>'


def _clock(seconds: float) -> str:
    return duration(seconds).replace(".0 s", " s").replace(" min 00 s", " min")
