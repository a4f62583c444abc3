"""report.html: what one run did, in one file that needs nothing else to be read."""

import contextlib
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedray.messages import RoundReport
from fedray.report.formatting import sizes
from fedray.report.page import page

__all__ = ["prepare", "sizes", "write_report"]


def prepare() -> None:
    """Import what draws the curves, if it is there, so that a run's end need not."""
    with contextlib.suppress(ImportError):
        importlib.import_module("matplotlib.figure")


def write_report(
    folder: Path,
    config: dict[str, Any],
    history: list[RoundReport],
    note: str = "",
    told: Mapping[str, Any] | None = None,
) -> Path:
    """Write `folder`/report.html; an older one is replaced only by a whole new one.

    Parameters
    ----------
    folder : Path
        The run's folder; it is also what the report tells to repeat.
    config : dict
        The resolved settings, `FederationConfig.to_dict()`.
    history : list of RoundReport
        Oldest first; may be empty.
    note : str
        Said under the title: why the run stopped, or an error.
    told : mapping
        Of an ensemble's finished run, as `fedray.report.ensemble` says.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".report.html.{os.getpid()}"
    try:
        aside.write_text(page(folder, config, history, note, told), encoding="utf-8")
        os.replace(aside, folder / "report.html")
    finally:
        aside.unlink(missing_ok=True)
    return folder / "report.html"
