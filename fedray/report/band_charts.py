"""Curves of several series with bands around them, as SVG in a page."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fedray.observers import Guard
from fedray.report.charts import DASHES, MEMBER_COLOURS, RC, SIZE, to_svg
from fedray.report.formatting import escape
from fedray.report.party_charts import MARKS, legend

N_POINTS = 200  # of one curve; longer ones are thinned out
BAND_OPACITY = 0.18


class Series(NamedTuple):
    """One curve: places, values, and how far its band reaches to both sides.

    x, mean, deviation : (n,) floats; NaN where there is no value.
    """

    label: str
    x: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray


class Axis(NamedTuple):
    """What a chart is drawn over: its title, and the text of a tick."""

    name: str
    title: str
    tick: Callable[[float], str]


def draw_bands(
    title: str, charts: Sequence[tuple[Axis, Sequence[Series]]]
) -> str | None:
    """HTML of charts of the same series; None if matplotlib is missing or fails.

    title : of the values.
    """
    return Guard("drawing the curves").call(_render, title, charts)


def _render(title: str, charts: Sequence[tuple[Axis, Sequence[Series]]]) -> str | None:
    try:
        import matplotlib.figure
        import matplotlib.style
    except ImportError:
        return None
    with matplotlib.style.context(["default", RC]):
        figures = [_figure(matplotlib, title, axis, own) for axis, own in charts]
    labels = [series.label for series in charts[0][1]] if charts else []
    bar = MARKS["late"]
    entries = [(f"m{i % 5}", bar, escape(label)) for i, label in enumerate(labels)]
    return f'{legend(entries)}<div class="curves">{"".join(figures)}</div>'


def _figure(mpl: ModuleType, title: str, axis: Axis, each: Sequence[Series]) -> str:
    figure = mpl.figure.Figure(figsize=SIZE, dpi=72, layout="constrained")
    axes = figure.add_subplot()
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(6))
    axes.xaxis.set_major_formatter(lambda value, _: axis.tick(value))
    axes.tick_params(length=0, pad=5)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.8)
    axes.set_axisbelow(True)
    for i, series in enumerate(each):
        step = -(-len(series.x) // N_POINTS) or 1
        x, mean, around = (v[::step] for v in (series.x, series.mean, series.deviation))
        colour, dashes = MEMBER_COLOURS[i % 5], DASHES[i // 5 % len(DASHES)]
        axes.plot(x, mean, dashes, color=colour, linewidth=1.8, gid=f"line{i}")
        axes.fill_between(
            x, mean - around, mean + around, color=colour, alpha=BAND_OPACITY, lw=0
        )
    label = f"{title} over {axis.title}"
    heading = f"<div><b>{escape(title)}</b> over {escape(axis.title)}</div>"
    svg = to_svg(figure, axis.name, label)
    return f"<figure><figcaption>{heading}</figcaption>{svg}</figure>\n"
