"""Charts by round (loss, accuracy, bytes, seconds, disagreement) as SVG in the page.

Drawn by matplotlib, which the extra `report` installs.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from fedray.errors import format_count
from fedray.messages import RoundReport
from fedray.observers import Guard
from fedray.report.formatting import (
    axis_ticks,
    escape,
    format_bytes,
    format_duration,
    format_number,
    format_percent,
    is_number,
)
from fedray.report.party_charts import MARKS, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_POINTS = 500  # of one curve; longer histories are averaged down to this
N_BARS = 60  # more rounds than this are drawn as one outline
SIZE = (5.0, 2.5)  # inches at 72 dpi: text keeps its size from phone to print
ID_PATTERN = r'(\bid="|href="#|url\(#)'
COLOURS = {  # drawn with the left, shown with the right: CSS has light and dark themes
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
MEMBER_COLOURS = BLUE, ORANGE, PURPLE, RED, GREY  # as the CSS classes m0, m1, ...
DASHES = "-", "--", ":", "-."  # once the colours are used up

Values = Sequence[float | None]


class MemberCurves(NamedTuple):
    """What the charts of an ensemble compare."""

    lines: Mapping[str, Sequence[RoundReport]]  # rounds of each member
    together: Mapping[str, float | None]  # loss and accuracy of the whole ensemble


@dataclass(frozen=True)
class Chart:
    """A chart and what stands around it; `name` prefixes the ids of its SVG."""

    name: str
    title: str
    caption: str
    axes: "Axes"
    legend: str = ""

    def to_html(self) -> str:
        """Render title, caption, SVG and legend."""
        label = f"{self.title} by round, {self.caption}"
        svg = to_svg(self.axes.figure.canvas.figure, self.name, label)
        heading = (
            f"<div><b>{escape(self.title)}</b> by round</div>"
            f"<span>{escape(self.caption)}</span>"
        )
        caption = f"<figcaption>{heading}</figcaption>"
        return f"<figure>{caption}{svg}{self.legend}</figure>\n"


Draw = Callable[[ModuleType, Sequence[RoundReport]], Chart | None]


def draw_curves(history: Sequence[RoundReport], prefix: str = "") -> str | None:
    """HTML of all charts of one global model; None if matplotlib is missing or fails.

    prefix : of the ids, where a page has several models.
    """
    html = _draw(history, *CHARTS)
    return re.sub(ID_PATTERN, rf"\g<1>{prefix}", html) if html and prefix else html


def draw_scores(history: Sequence[RoundReport], prefix: str) -> str | None:
    """HTML of the charts of loss and accuracy alone; None without matplotlib."""
    html = _draw(history, _loss, _accuracy)
    return re.sub(ID_PATTERN, rf"\g<1>{prefix}", html) if html else html


def draw_member_curves(
    history: Sequence[RoundReport], members: MemberCurves
) -> str | None:
    """HTML of the charts of an ensemble; None without matplotlib, or where it fails.

    history : one line a round, all members merged.
    """
    return _draw(
        history,
        lambda mpl, history: _member_chart(mpl, history, members, "loss"),
        lambda mpl, history: _member_chart(mpl, history, members, "accuracy"),
        _bytes,
        _seconds,
    )


def _draw(history: Sequence[RoundReport], *charts: Draw) -> str | None:
    return Guard("drawing the report's curves").call(_render, history, *charts)


def _render(history: Sequence[RoundReport], *charts: Draw) -> str | None:
    try:
        import matplotlib.figure
        import matplotlib.style
    except ImportError:
        return None
    with matplotlib.style.context(["default", RC]):
        drawn = [draw(matplotlib, history) for draw in charts]
        html = "".join(chart.to_html() for chart in drawn if chart)
    step = _step(history)
    note = f'<p class="small">Each point is the mean of {step} rounds.</p>'
    return f'<div class="curves">{html}</div>{note if step > 1 else ""}'


def _member_chart(
    mpl: ModuleType, history: Sequence[RoundReport], members: MemberCurves, name: str
) -> Chart | None:
    values = {w: [getattr(r, name) for r in own] for w, own in members.lines.items()}
    if not any(is_number(value) for own in values.values() for value in own):
        return None
    axes = _new_axes(mpl, history, _percent_tick if name == "accuracy" else _tick)
    bar, entries = MARKS["late"], []
    for i, (member, own) in enumerate(members.lines.items()):
        colour, dash = MEMBER_COLOURS[i % 5], DASHES[i // 5 % len(DASHES)]
        _plot(axes, own, values[member], Line(f"line{i}", colour, dash))
        entries.append((f"m{i % 5}", bar, escape(member)))
    together, caption = members.together.get(name), ""
    if is_number(together):
        show = format_percent if name == "accuracy" else format_number
        caption = f"together {show(together)}"
        level = axes.axhline(together, color=DARK, linestyle="--", linewidth=1.4)
        level.set_gid("together")
        entries.append(("mean", bar, "together, after the last round"))
    return Chart(name, name.capitalize(), caption, axes, legend(entries))


def _loss(mpl: ModuleType, history: Sequence[RoundReport]) -> Chart | None:
    losses = [report.loss for report in history]
    if not any(map(is_number, losses)):
        return None
    axes = _line_axes(mpl, history, losses, _tick)
    return Chart("loss", "Loss", f"last {format_number(_last(losses))}", axes)


def _accuracy(mpl: ModuleType, history: Sequence[RoundReport]) -> Chart | None:
    shares = [report.accuracy for report in history]
    if not any(map(is_number, shares)):
        return None
    axes = _line_axes(mpl, history, shares, _percent_tick)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.02), min(high, 1.02))  # margins past 0 and 100 %
    caption = f"last {format_percent(_last(shares))}"
    return Chart("accuracy", "Accuracy", caption, axes)


def _bytes(mpl: ModuleType, history: Sequence[RoundReport]) -> Chart | None:
    n_bytes = [float(r.bytes_moved) for r in history if r.bytes_moved is not None]
    if len(n_bytes) < len(history):
        return None
    axes = _new_axes(mpl, history, lambda v: format_bytes(v).replace(".0 ", " "))
    _plot_bars(axes, history, [(n_bytes, BLUE)])
    caption = f"mean {format_bytes(sum(n_bytes) / len(n_bytes))} a round"
    return Chart("bytes", "Bytes moved", caption, axes)


def _seconds(mpl: ModuleType, history: Sequence[RoundReport]) -> Chart:
    train = [report.train_seconds for report in history]
    trained = [0.0 if seconds is None else seconds for seconds in train]
    evaluate = [report.evaluate_seconds for report in history]
    rest = [
        max(0.0, report.seconds - seconds - report.evaluate_seconds)
        for report, seconds in zip(history, trained, strict=True)
    ]
    axes = _new_axes(mpl, history, _tick)
    _plot_bars(axes, history, [(trained, BLUE), (evaluate, ORANGE), (rest, GREY)])
    mean_s = sum(report.seconds for report in history) / len(history)
    stages = [("fused", "train"), ("late", "evaluate"), ("rest", "rest")]
    if None in train:  # hidden
        stages = stages[1:]
    entries = [(css_class, MARKS["fused"], label) for css_class, label in stages]
    caption = f"mean {format_duration(mean_s)} a round"
    return Chart("seconds", "Seconds", caption, axes, legend(entries))


def _disagreement(mpl: ModuleType, history: Sequence[RoundReport]) -> Chart | None:
    """Adaptive fusion: the estimate that it decides by, and its threshold."""
    estimates = [report.estimate for report in history]
    if not any(map(is_number, estimates)):
        return None
    axes = _line_axes(mpl, history, estimates, _tick)
    limits = _block_means([report.threshold for report in history], _step(history))
    axes.plot(_centres(history), limits, color=ORANGE, linewidth=1.4, gid="limit")
    axes.set_ylim(bottom=0)
    n_fused = sum(report.aggregated for report in history)
    bar = MARKS["late"]
    entries = [("fused", bar, "estimate"), ("late", bar, "fuse above")]
    caption = f"fused in {n_fused} of {format_count(len(history), 'round')}"
    return Chart("drift", "Disagreement", caption, axes, legend(entries))


def _staleness(mpl: ModuleType, history: Sequence[RoundReport]) -> Chart | None:
    """Asynchronous fusion: mean steps by which the updates of each step are stale."""
    ages = [report.staleness for report in history]
    if not any(map(is_number, ages)):
        return None
    axes = _line_axes(mpl, history, ages, _tick)
    axes.set_ylim(bottom=0)
    caption = f"last {format_number(_last(ages))} steps"
    return Chart("staleness", "Staleness", caption, axes)


CHARTS = (_loss, _accuracy, _bytes, _seconds, _disagreement, _staleness)


def _tick(value: float) -> str:
    return f"{value:g}"


def _percent_tick(value: float) -> str:
    return f"{100 * value:g}%"


@dataclass(frozen=True)
class Line:
    """How a curve is drawn; `id` is of its SVG group."""

    id: str = "line"
    colour: str = BLUE
    dashes: str = "-"


def _line_axes(
    mpl: ModuleType,
    history: Sequence[RoundReport],
    values: Values,
    tick_label: Callable[[float], str],
) -> "Axes":
    """Axes with one curve; rounds without a value are gaps."""
    axes = _new_axes(mpl, history, tick_label)
    _plot(axes, history, values, Line())
    return axes


def _plot(
    axes: "Axes", history: Sequence[RoundReport], values: Values, line: Line
) -> None:
    x, points = _centres(history), _block_means(values, _step(history))
    axes.plot(x, points, line.dashes, color=line.colour, linewidth=1.8, gid=line.id)
    dots = points if len(points) <= N_BARS else _isolated(points)
    axes.plot(x, dots, "o", color=line.colour, markersize=4)


def _new_axes(
    mpl: ModuleType,
    history: Sequence[RoundReport],
    tick_label: Callable[[float], str],
) -> "Axes":
    rounds = [report.round for report in history]
    figure = mpl.figure.Figure(figsize=SIZE, dpi=72, layout="constrained")
    axes: Axes = figure.add_subplot()
    axes.set_xlim(rounds[0] - 0.6, rounds[-1] + 0.6)
    axes.set_xticks(axis_ticks(rounds))
    axes.yaxis.set_major_locator(mpl.ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: tick_label(value))
    axes.tick_params(length=0, pad=5)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def _plot_bars(
    axes: "Axes",
    history: Sequence[RoundReport],
    layers: list[tuple[list[float], str]],
) -> None:
    """Plot a stacked bar for each round; layers are (values, colour), lowest first."""
    step, x = _step(history), _centres(history)
    edges = [report.round - 0.5 for report in history[::step]]
    edges.append(history[-1].round + 0.5)
    bottom = [0.0] * len(x)
    for values, colour in layers:
        heights = _block_means([v if is_number(v) else 0.0 for v in values], step)
        top = [a + b for a, b in zip(bottom, heights, strict=True)]
        if len(x) > N_BARS:
            axes.stairs(top, edges, baseline=bottom, fill=True, color=colour)
        else:
            axes.bar(x, heights, 0.78, bottom, color=colour)
        bottom = top
    axes.set_ylim(0, 1.05 * max(bottom) or 1)


def _step(history: Sequence[RoundReport]) -> int:
    """How many rounds make one point."""
    return math.ceil(len(history) / N_POINTS)


def _block_means(values: Values, step: int) -> list[float]:
    """The mean of each `step` values; nan where none of them was measured."""
    blocks = [values[i : i + step] for i in range(0, len(values), step)]
    measured = [[v for v in block if is_number(v)] for block in blocks]
    return [sum(block) / len(block) if block else math.nan for block in measured]


def _isolated(points: list[float]) -> list[float]:
    """Points without a neighbour, which a line does not show; nan for the others."""
    before, after = [math.nan, *points[:-1]], [*points[1:], math.nan]
    return [
        point if math.isnan(a) and math.isnan(b) else math.nan
        for a, point, b in zip(before, points, after, strict=True)
    ]


def _centres(history: Sequence[RoundReport]) -> list[float]:
    return _block_means([float(report.round) for report in history], _step(history))


def _last(values: Values) -> float | None:
    return next((value for value in reversed(values) if is_number(value)), None)


def to_svg(figure: "Figure", name: str, label: str) -> str:
    """A figure as part of a page; `name` prefixes its ids, `label` is read aloud."""
    file = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=no_metadata, transparent=True)
    return _inline_svg(file.getvalue(), name, label)


def _inline_svg(svg: str, name: str, label: str) -> str:
    """Make matplotlib's file part of the page: no prolog or style, ids of its own."""
    start = svg.index(">", svg.index("<svg"))
    view = svg[svg.index('viewBox="') :].split('"', 2)[1]
    inner = svg[start + 1 : svg.rindex("</svg>")]
    inner = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", inner, flags=re.S)
    inner = re.sub(ID_PATTERN, rf"\g<1>{name}-", inner)
    inner = inner.replace("xlink:href", "href")
    for placeholder, css_colour in COLOURS.items():
        inner = inner.replace(placeholder, css_colour)
    attributes = f'viewBox="{view}" role="img" aria-label="{escape(label)}"'
    return f"<svg {attributes}>{inner.strip()}</svg>"
