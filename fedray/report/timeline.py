"""Where each party's time went: its training, and its waiting for the round to end."""

from collections.abc import Iterator, Sequence

from fedray.messages import PartyLine, RoundReport
from fedray.report.formatting import duration, is_number, text
from fedray.report.picture import CELL, MARKS, key
from fedray.report.statistics import Tally, cut, first_in_trouble

N_PARTIES, N_ROUNDS = 50, 40
WIDTH = 10_000  # units of the whole time shown
HALVES = {"train": 18, "wait": 4, "late": 8, "failed": 13, "refused": 18}  # of heights
CLASSES = {"train": "fused", "wait": "rest"}  # the others have their own name's
STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)


def timeline(parties: Sequence[Tally], history: Sequence[RoundReport]) -> str:
    """Html of the picture: a row for each party, time from left to right.

    Every bar starts with its round. A party whose update was late, failed or refused
    shows that instead of its training.
    """
    shown = first_in_trouble(parties, N_PARTIES)
    rounds = history[-N_ROUNDS:]
    whole = sum(report.seconds for report in rounds)
    if not whole:
        return ""
    names = "".join(f"<li>{text(party.name)}</li>" for party in shown)
    rows = {party.name: row for row, party in enumerate(shown)}
    return (
        f'{_legend()}<div class="picture"><ul>{names}</ul>'
        '<div class="scroll" role="region" tabindex="0" aria-label="Time by party">'
        f'<div style="min-width:{max(12, 0.75 * len(rounds)):g}rem">'
        f"{_drawn(rows, rounds, whole)}{_axis(whole)}</div></div></div>"
        + cut(len(shown), len(parties), "parties, those with most trouble")
        + cut(len(rounds), len(history), "rounds, the last")
    )


def _legend() -> str:
    marks = [("fused", MARKS["fused"], "train"), ("rest", MARKS["other"], "wait")]
    marks += [(kind, MARKS["refused"], kind) for kind in ("late", "failed", "refused")]
    return key(marks)


def _drawn(rows: dict[str, int], rounds: Sequence[RoundReport], whole: float) -> str:
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
    kind = line.outcome.partition(":")[0]
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


def _axis(whole: float) -> str:
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
