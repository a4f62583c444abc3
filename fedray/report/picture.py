"""A picture of rows and columns: what became of each party in each round."""

from collections.abc import Sequence

from fedray.messages import RoundReport
from fedray.report.formatting import text, ticks
from fedray.report.statistics import Tally, cut, first_in_trouble

N_PARTIES, N_ROUNDS = 50, 200
CELL = 50  # units of a cell; whole numbers keep the file small
MARKS = {  # shapes that differ without colour, and when stretched; from (0, 0)
    "fused": "m3 7h44v36h-44z",
    "apart": "m13 13h24v24h-24z",
    "late": "m3 27h44v16h-44z",
    "failed": "m10 10l30 30m0-30l-30 30",
    "refused": "m11 12h28v26h-28z",
    "other": "m3 21h44v8h-44z",
}


def picture(parties: Sequence[Tally], history: Sequence[RoundReport]) -> str:
    """Html of the picture, its legend, and what it leaves out."""
    shown = first_in_trouble(parties, N_PARTIES)
    all_rounds = sorted({report.round for report in history})
    rounds = all_rounds[-N_ROUNDS:]
    names = "".join(f"<li>{text(party.name)}</li>" for party in shown)
    n = len(rounds)
    return (
        f'{_legend(shown, rounds)}<div class="picture"><ul>{names}</ul>'
        '<div class="scroll" role="region" tabindex="0" aria-label="Parties by round">'
        f'<div style="min-width:{0.25 * n:.2f}rem;max-width:{1.8 * n:.2f}rem">'
        f"{_cells(shown, rounds)}{_axis(rounds)}</div></div></div>"
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


def _axis(rounds: Sequence[int]) -> str:
    words = "".join(
        f'<text x="{100 * (rounds.index(tick) + 0.5) / len(rounds):.2f}%" y="1.1em">'
        f"{tick}</text>"
        for tick in ticks(rounds)
        if tick in rounds
    )
    return f'<svg class="axis" aria-hidden="true">{words}</svg>'


def _legend(parties: Sequence[Tally], rounds: Sequence[int]) -> str:
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
