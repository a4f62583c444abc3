"""Curves by round: drawn by matplotlib (extra `report`), put into the page as SVG."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from fedray.messages import RoundReport
from fedray.report.formatting import (
    duration,
    is_number,
    number,
    percent,
    sizes,
    text,
    ticks,
)
from fedray.report.party_charts import MARKS, key

N_POINTS = 500  # of one curve; longer histories are averaged down to this
N_BARS = 60  # more rounds than this are drawn as one outline
SIZE = (5.0, 2.5)  # inches at 72 dpi: text keeps its size from phone to print
IDS = r'(\bid="|href="#|url\(#)'
COLOURS = {  # drawn with the left, shown with the right: the page knows light and dark
    "#010101": "var(--soft)",
    "#020202": "var(--line)",
    "#030303": "var(--fused)",
    "#040404": "var(--late)",
    "#050505": "var(--rest)",
    "#060606": "var(--refused)",
    "#070707": "var(--failed)",
    "#080808": "var(--ink)",
}
INK, LINE, BLUE, ORANGE, GREY, PURPLE, RED, DARK = COLOURS
RC = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "fedray",  # the same history gives the same bytes
    "font.size": 10.5,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": LINE,
    "grid.color": LINE,
}
OF_MEMBERS = BLUE, ORANGE, PURPLE, RED, GREY  # as the page's classes m0, m1, ...
DASHES = "-", "--", ":", "-."  # once the colours are used up
SHOWN = {  # a value beside the title, and at the axis
    "loss": (number, lambda value: f"{value:g}"),
    "accuracy": (percent, lambda value: f"{100 * value:g}%"),
}


def curves(history: Sequence[RoundReport], prefix: str = "") -> str | None:
    """Html of all curves that have a point; None where matplotlib is not installed.

    prefix : of the ids, where a page has several.
    """
    drawn = _figures(history, _loss, _accuracy, _bytes, _seconds, _drift)
    return re.sub(IDS, rf"\g<1>{prefix}", drawn) if drawn and prefix else drawn


class Curves(NamedTuple):
    """Curves that share a picture: the rounds of each, and a level to compare with."""

    lines: Mapping[str, Sequence[RoundReport]]
    level: Mapping[str, float | None]  # of loss, of accuracy: all members together


def member_curves(history: Sequence[RoundReport], members: Curves) -> str | None:
    """As `curves`, of an ensemble: a line for each member, bars of all.

    history : one line a round.
    """
    return _figures(
        history,
        lambda mpl, history: _members(mpl, history, members, "loss"),
        lambda mpl, history: _members(mpl, history, members, "accuracy"),
        _bytes,
        _seconds,
    )


def _figures(
    history: Sequence[RoundReport], *figures: Callable[..., str]
) -> str | None:
    try:
        import matplotlib.figure
        import matplotlib.style
    except ImportError:
        return None
    with matplotlib.style.context(["default", RC]):
        drawn = "".join(make(matplotlib, history) for make in figures)
    step = _step(history)
    said = f'<p class="small">Each point is the mean of {step} rounds.</p>'
    return f'<div class="curves">{drawn}</div>{said if step > 1 else ""}'


def _members(
    mpl: ModuleType, history: Sequence[RoundReport], members: Curves, name: str
) -> str:
    values = {w: [getattr(r, name) for r in own] for w, own in members.lines.items()}
    if not any(is_number(value) for own in values.values() for value in own):
        return ""
    shown, tick = SHOWN[name]
    axes, words, bar = _axes(mpl, history, tick), [], MARKS["late"]
    for i, (who, own) in enumerate(members.lines.items()):
        colour, dash = OF_MEMBERS[i % 5], DASHES[i // 5 % len(DASHES)]
        _plot(axes, own, values[who], (colour, dash, f"line{i}"))
        words.append((f"m{i % 5}", bar, text(who)))
    level, said = members.level.get(name), ""
    if is_number(level):
        said = f"together {shown(level)}"
        axes.axhline(level, color=DARK, linestyle="--", linewidth=1.4, gid="together")
        words.append(("mean", bar, "together, after the last round"))
    return figure(name, name.capitalize(), said, axes, key(words))


def _loss(mpl: ModuleType, history: Sequence[RoundReport]) -> str:
    losses = [report.loss for report in history]
    if not any(map(is_number, losses)):
        return ""
    axes = _line(mpl, history, losses, SHOWN["loss"][1])
    return figure("loss", "Loss", f"last {number(_last(losses))}", axes)


def _accuracy(mpl: ModuleType, history: Sequence[RoundReport]) -> str:
    shares = [report.accuracy for report in history]
    if not any(map(is_number, shares)):
        return ""
    axes = _line(mpl, history, shares, SHOWN["accuracy"][1])
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.02), min(high, 1.02))  # there is nothing past all
    return figure("accuracy", "Accuracy", f"last {percent(_last(shares))}", axes)


def _bytes(mpl: ModuleType, history: Sequence[RoundReport]) -> str:
    moved = [float(report.bytes_moved) for report in history]
    axes = _axes(mpl, history, lambda value: sizes(value).replace(".0 ", " "))
    _bars(axes, history, [(moved, BLUE)])
    mean = sum(moved) / len(moved)
    return figure("bytes", "Bytes moved", f"mean {sizes(mean)} a round", axes)


def _seconds(mpl: ModuleType, history: Sequence[RoundReport]) -> str:
    train = [report.train_seconds for report in history]
    evaluate = [report.evaluate_seconds for report in history]
    rest = [max(0.0, r.seconds - r.train_seconds - r.evaluate_seconds) for r in history]
    axes = _axes(mpl, history, lambda value: f"{value:g}")
    _bars(axes, history, [(train, BLUE), (evaluate, ORANGE), (rest, GREY)])
    mean = sum(report.seconds for report in history) / len(history)
    box = MARKS["fused"]
    words = key(
        [("fused", box, "train"), ("late", box, "evaluate"), ("rest", box, "rest")]
    )
    return figure("seconds", "Seconds", f"mean {duration(mean)} a round", axes, words)


def _drift(mpl: ModuleType, history: Sequence[RoundReport]) -> str:
    """What an adaptive round decides by; a mark where it fused."""
    estimates = [report.estimate for report in history]
    if not any(map(is_number, estimates)):
        return ""
    axes = _line(mpl, history, estimates, lambda value: f"{value:g}")
    limits = _means([report.threshold for report in history], _step(history))
    axes.plot(_middles(history), limits, color=ORANGE, linewidth=1.4, gid="limit")
    axes.set_ylim(bottom=0)
    n_fused = sum(report.aggregated for report in history)
    bar = MARKS["late"]
    words = key([("fused", bar, "estimate"), ("late", bar, "fuse above")])
    said = f"fused in {n_fused} of {len(history)} rounds"
    return figure("drift", "Disagreement", said, axes, words)


def _line(
    mpl: ModuleType,
    history: Sequence[RoundReport],
    values: Sequence[float | None],
    said: Callable[[float], str],
) -> Any:
    """One measured value; rounds without it are gaps."""
    axes = _axes(mpl, history, said)
    _plot(axes, history, values, (BLUE, "-", "line"))
    return axes


def _plot(
    axes: Any,
    history: Sequence[RoundReport],
    values: Sequence[float | None],
    look: tuple[str, str, str],  # colour, dashes, id
) -> None:
    (colour, dashes, id_), x = look, _middles(history)
    points = _means(values, _step(history))
    axes.plot(x, points, dashes, color=colour, linewidth=1.8, gid=id_)
    dots = points if len(points) <= N_BARS else _alone(points)
    axes.plot(x, dots, "o", color=colour, markersize=4)


def _axes(
    mpl: ModuleType, history: Sequence[RoundReport], said: Callable[[float], str]
):
    rounds = [report.round for report in history]
    axes = mpl.figure.Figure(figsize=SIZE, dpi=72, layout="constrained").add_subplot()
    axes.set_xlim(rounds[0] - 0.6, rounds[-1] + 0.6)
    axes.set_xticks(ticks(rounds))
    axes.yaxis.set_major_locator(mpl.ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: said(value))
    axes.tick_params(length=0, pad=5)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def _bars(
    axes: Any, history: Sequence[RoundReport], parts: list[tuple[list[float], str]]
):
    """Parts stacked on each other."""
    step, x = _step(history), _middles(history)
    edges = [*(report.round - 0.5 for report in history[::step])]
    edges.append(history[-1].round + 0.5)
    low = [0.0] * len(x)
    for values, colour in parts:
        tall = _means([v if is_number(v) else 0.0 for v in values], step)
        top = [a + b for a, b in zip(low, tall, strict=True)]
        if len(x) > N_BARS:
            axes.stairs(top, edges, baseline=low, fill=True, color=colour)
        else:
            axes.bar(x, tall, 0.78, low, color=colour)
        low = top
    axes.set_ylim(0, 1.05 * max(low) or 1)


def _step(history: Sequence[RoundReport]) -> int:
    return math.ceil(len(history) / N_POINTS)


def _means(values: Sequence[float | None], step: int) -> list[float]:
    """The mean of each `step` values; nan where none of them was measured."""
    parts = [values[i : i + step] for i in range(0, len(values), step)]
    there = [[v for v in part if is_number(v)] for part in parts]
    return [sum(part) / len(part) if part else math.nan for part in there]


def _alone(points: list[float]) -> list[float]:
    """Points without a neighbour, of which a line shows nothing; nan for the others."""
    before, after = [math.nan, *points[:-1]], [*points[1:], math.nan]
    return [
        point if math.isnan(a) and math.isnan(b) else math.nan
        for a, point, b in zip(before, points, after, strict=True)
    ]


def _middles(history: Sequence[RoundReport]) -> list[float]:
    return _means([float(report.round) for report in history], _step(history))


def _last(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if is_number(value)), None)


def figure(name: str, title: str, said: str, axes: Any, words: str = "") -> str:
    """Html of a drawing with its title, what is said beside it and its legend."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    axes.figure.savefig(file, format="svg", metadata=nothing, transparent=True)
    heading = f"<div><b>{text(title)}</b> by round</div><span>{text(said)}</span>"
    svg = _inline(file.getvalue(), name, f"{title} by round, {said}")
    return f"<figure><figcaption>{heading}</figcaption>{svg}{words}</figure>\n"


def _inline(svg: str, name: str, label: str) -> str:
    """Only the drawing: no prolog, no style for all, ids that are the page's own."""
    view = re.search(r'viewBox="[^"]*"', svg)[0]
    inner = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    inner = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", inner, flags=re.S)
    inner = re.sub(IDS, rf"\g<1>{name}-", inner)
    inner = inner.replace("xlink:href", "href")
    for drawn, shown in COLOURS.items():
        inner = inner.replace(drawn, shown)
    return f'<svg {view} role="img" aria-label="{text(label)}">{inner.strip()}</svg>'
