"""The page of runs: what it is made of, and what of a run's folder it shows.

``fedray ui`` serves it for all runs of this machine, the REST service at ``/`` for the
federations of a client. Folders are read as they grow and never written; of a private
run they hold what `fedray.aggregator.disclosure` lets out, and `operator.jsonl`, which
has the rest, is not read.
"""

from pathlib import Path

from fedray.runs_page.answers import (
    MAX_COMPARED,
    ask,
    comparison_answer,
    comparison_file,
    unless_seen,
)
from fedray.runs_page.run_details import RunDetails
from fedray.runs_page.run_reader import RunReader, model_files

FOLDER = Path(__file__).with_name("page")
PAGE_FILES = {  # by the paths that they are served at
    "/": FOLDER / "page.html",
    "/page.js": FOLDER / "page.js",
    "/curves.js": FOLDER / "curves.js",
    "/page.css": FOLDER / "page.css",
}

__all__ = [
    "MAX_COMPARED",
    "PAGE_FILES",
    "RunDetails",
    "RunReader",
    "ask",
    "comparison_answer",
    "comparison_file",
    "model_files",
    "unless_seen",
]
