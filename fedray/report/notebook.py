"""HTML that a notebook shows: a run under way, and a finished one.

One block that brings its own style and runs no script; in both themes.
"""

import secrets
from collections.abc import Sequence

from fedray.errors import format_count
from fedray.messages import RoundReport
from fedray.report.charts import draw_scores
from fedray.report.formatting import (
    NO_VALUE,
    escape,
    format_bytes,
    format_duration,
    format_number,
    format_percent,
    html_table,
    total,
    truncation_note,
)
from fedray.report.statistics import by_group, merge_groups

N_LIVE, N_FINISHED = 10, 5  # rounds of the table
LIGHT = """\
--paper: #fff; --ink: #1b2027; --soft: #59636f; --line: #dce1e7; --fused: #0072b2;
--late: #d68f00; --rest: #98a2ae; --band: #f1f3f6; --failed: #c8400a;"""
DARK = """\
--paper: #14181d; --ink: #e4e8ec; --soft: #9ca7b3; --line: #303842; --fused: #4ea8e0;
--late: #f0b429; --rest: #76818e; --band: #1e252d; --failed: #ff7a45;"""
STYLE = f"""\
.fedray {{ {LIGHT} }}
@media (prefers-color-scheme: dark) {{
  body:not([data-jp-theme-light="true"]):not(.vscode-light) .fedray {{ {DARK} }}
}}
[data-jp-theme-light="false"] .fedray, .vscode-dark .fedray, [theme="dark"] .fedray {{
  {DARK}
}}
.fedray {{
  background: var(--paper); color: var(--ink); padding: .5rem .75rem; max-width: 60rem;
  font: .875rem/1.45 system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif;
}}
.fedray p {{ margin: 0 0 .35rem; }}
.fedray .small, .fedray figcaption span {{ color: var(--soft); }}
.fedray .bar {{
  height: 4px; max-width: 30rem; background: var(--line); margin: .25rem 0 .5rem;
}}
.fedray .bar div {{ height: 4px; background: var(--fused); }}
.fedray .trouble {{ color: var(--failed); overflow-wrap: anywhere; }}
.fedray .scroll {{ overflow-x: auto; }}
.fedray table {{
  border-collapse: collapse; font-size: .8125rem; color: var(--ink); margin: 0;
  border: 0;
}}
.fedray thead, .fedray tr, .fedray tbody tr:nth-child(odd), .fedray tbody tr:hover {{
  background: var(--paper); border: 0;
}}
.fedray th, .fedray td {{
  padding: .2rem .7rem .2rem 0; text-align: right; white-space: nowrap; border: 0;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums;
  color: var(--ink); background: var(--paper);
}}
.fedray thead th {{ color: var(--soft); font-weight: 500; }}
.fedray tbody th {{ font-weight: 500; }}
.fedray .curves {{
  display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr));
  gap: .5rem 1.5rem; margin-top: .6rem; max-width: 48rem;
}}
.fedray figure {{ margin: 0; min-width: 0; max-width: 24rem; }}
.fedray figcaption {{ display: flex; justify-content: space-between; }}
.fedray svg {{ display: block; width: 100%; height: auto; background: none; }}
.fedray svg text {{ font-family: inherit !important; }}
.fedray h4 {{ margin: .6rem 0 .2rem; font-size: .875rem; }}
"""


def result_html(
    name: str,
    history: Sequence[RoundReport],
    note: str = "",
    scores: tuple[float | None, ...] = (None, None),
) -> str:
    """HTML of a finished run: a line, curves of loss and accuracy, the last rounds.

    scores : loss and accuracy of the result.
    """
    loss, accuracy = scores
    seconds = sum(report.seconds for report in merge_groups(history))
    n_bytes = total(report.bytes_moved for report in history)
    facts = [
        format_count(len({report.round for report in history}), "round"),
        f"loss {format_number(loss)}",
        f"accuracy {format_percent(accuracy)}",
        f"{format_bytes(n_bytes)} moved",
        format_duration(seconds),
        *_epsilons(history),
    ]
    title = f"<p><b>{escape(name)}</b>: {', '.join(facts)}</p>"
    more = f'<p class="small">{escape(note)}</p>' if note else ""
    parts = [title, more]
    for group, own in by_group(history).items():
        heading = f"<h4>{escape(group)}</h4>" if group else ""
        parts += [heading, _table(own, N_FINISHED), _curves(own)]
    return _block("".join(parts))


def progress_html(
    title: str, share: float, history: Sequence[RoundReport], lines: Sequence[str]
) -> str:
    """HTML of a run under way: what is done, a bar, the last rounds, what went wrong.

    share : of the rounds that are done, 0..1.
    """
    width = f"{100 * min(1.0, max(0.0, share)):.0f}%"
    bar = f'<div class="bar"><div style="width:{width}"></div></div>'
    trouble = "".join(f'<p class="trouble">{escape(line)}</p>' for line in lines)
    rows = _table(history, N_LIVE) if history else ""
    return _block(f"<p>{escape(title)}</p>{bar}{rows}{trouble}")


def _table(history: Sequence[RoundReport], n_rows: int) -> str:
    """HTML table of the last rounds."""
    has_groups = any(report.group is not None for report in history)
    units = list(dict.fromkeys(unit for one in history for unit in one.epsilons))
    head = ["round", *(["group"] if has_groups else []), "fused", "loss", "accuracy",
            "moved", "time", *(f"epsilon a {unit}" for unit in units)]  # fmt: skip
    rows = [
        [
            str(report.round),
            *([escape(report.group or "")] if has_groups else []),
            _format_share(report.fused, report.chosen),
            format_number(report.loss),
            format_percent(report.accuracy),
            format_bytes(report.bytes_moved),
            format_duration(report.seconds),
            *(format_number(report.epsilons.get(unit)) for unit in units),
        ]
        for report in history[-n_rows:]
    ]
    note = truncation_note(len(rows), len(history), "rounds, the last")
    return html_table("Rounds", head, rows) + note


def _epsilons(history: Sequence[RoundReport]) -> list[str]:
    """What is spent of privacy, at the group that has spent most."""
    spent: dict[str, float] = {}
    for report in history:
        for unit, epsilon in report.epsilons.items():
            spent[unit] = max(epsilon, spent.get(unit, 0.0))
    return [f"epsilon {value:.3g} a {unit}" for unit, value in spent.items()]


def _format_share(part: int | None, whole: int | None) -> str:
    """How many of how many; a dash where that is hidden."""
    if part is None or whole is None:
        return NO_VALUE
    return f"{part:,} of {whole:,}"


def _curves(history: Sequence[RoundReport]) -> str:
    if len(history) < 2:
        return ""
    # ids of their own: a notebook is one page
    return draw_scores(history, f"f{secrets.token_hex(4)}-") or ""


def _block(inside: str) -> str:
    return f'<div class="fedray"><style>{STYLE}</style>{inside}</div>'
