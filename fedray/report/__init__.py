"""Report of a run as one self-contained HTML file, report.html."""

import contextlib
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedray import durable_files
from fedray.messages import RoundReport
from fedray.report.formatting import format_bytes, total
from fedray.report.notebook import progress_html, result_html
from fedray.report.page import render_page
from fedray.report.party_tests import (
    comparison_lines,
    read_comparison,
    spread_lines,
    write_comparison,
)

__all__ = [
    "comparison_lines",
    "format_bytes",
    "prepare",
    "progress_html",
    "read_comparison",
    "result_html",
    "spread_lines",
    "total",
    "write_comparison",
    "write_report",
]


def prepare() -> None:
    """Import matplotlib, if that can be, so that the end of a run need not."""
    with contextlib.suppress(Exception):
        importlib.import_module("matplotlib.figure")


def write_report(  # noqa: PLR0913  (most are left out)
    folder: Path,
    config: dict[str, Any],
    history: list[RoundReport],
    note: str = "",
    ensemble: Mapping[str, Any] | None = None,
    edges: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write `folder`/report.html atomically and return its path.

    Parameters
    ----------
    folder : Path
        The run's folder; the command that repeats the run names its config.yaml.
    config : dict
        The resolved settings, `FederationConfig.to_dict()`.
    history : list of RoundReport
        Oldest first; may be empty.
    note : str
        Shown under the title: why the run stopped, or an error.
    ensemble : mapping
        Of an ensemble's finished run, what `ensemble.json` holds: loss and accuracy of
        the ensemble and of the student, where `test_data` is given; `members`: name,
        model type and weight of each.
    edges : sequence of mapping
        Rows of parties outside the cluster, as `fedray edges list --json` has them.
    """
    folder = Path(folder)
    durable_files.make_folder(folder)
    html = render_page(folder, config, history, note, ensemble, edges)
    durable_files.write_text(folder / "report.html", html)
    return folder / "report.html"
