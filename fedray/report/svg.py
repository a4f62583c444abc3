"""What matplotlib has drawn, as SVG in the page: its colours, its ids, a title."""

import io
import re
from typing import Any

from fedray.report.formatting import text

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
