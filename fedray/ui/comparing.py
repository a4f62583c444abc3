"""Comparisons of runs that are ticked on the page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedray.errors import CallRefused, ConfigError, format_count
from fedray.experiments import FORMS, RunRecord, read_run
from fedray.runs_page import MAX_COMPARED, ask, comparison_answer, comparison_file

Chosen = Mapping[str, tuple[Path, str]]  # folder and name of each run, by its id


def check_count(n_runs: int) -> None:
    """Raise CallRefused unless so many runs can be compared."""
    if not 1 <= n_runs <= MAX_COMPARED:
        got = format_count(n_runs, "run is", "runs are")
        detail = f"{got} named; a comparison takes 1 to {MAX_COMPARED}."
        raise CallRefused(422, detail, "Tick others, or use `fedray compare`.")


def answer(chosen: Chosen, parameters: Mapping[str, str]) -> dict[str, Any]:
    """A comparison for the page; ids : the run of each row.

    Raises
    ------
    ConfigError
        If the question names what no run has.
    """
    records, ids, problems = [], [], []
    for key, (folder, name) in chosen.items():
        own, problem = _read(folder, name)
        records += own
        ids += [key] * len(own)
        problems += [problem] if problem else []
    plain = comparison_answer(records, ask(parameters), problems)
    return plain | {"ids": ids}


def file(form: str, chosen: Chosen, parameters: Mapping[str, str]) -> str:
    """A comparison as a file of `fedray compare`.

    Raises
    ------
    CallRefused
        404 for a form that there is not.
    ConfigError
        If the question names what no run has, or no run has a round.
    """
    if form not in FORMS:
        raise CallRefused(404, f"There is no form {form[:20]!r}.", ", ".join(FORMS))
    records = [
        one for folder, name in chosen.values() for one in _read(folder, name)[0]
    ]
    if not records:
        raise ConfigError(["no run has a round that is over"])
    return comparison_file(form, records, ask(parameters))


def _read(folder: Path, name: str) -> tuple[list[RunRecord], str]:
    """The records of a run under its name, or why it has none."""
    records = read_run(folder, name)
    if any(one.rounds for one in records):
        return records, ""
    return [], f"{name}: no round is over"
