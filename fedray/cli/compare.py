"""``fedray compare``: a table of several runs, with what is clear and what is noise."""

import argparse
from pathlib import Path
from typing import Any

from fedray.errors import ConfigError


def add(commands: Any) -> None:
    """Add the command to the parser."""
    compare = commands.add_parser(
        "compare", help="compare runs: means over seeds, and differences that are clear"
    )
    compare.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folders of runs, or folders with runs up to four levels below them",
    )
    _add_question(compare)
    names = {"html": "HTML", "csv": "CSV", "latex": "LaTeX"}
    for form in names:
        compare.add_argument(
            f"--{form}", metavar="FILE", help=f"also write it as {names[form]}"
        )
    compare.set_defaults(command=_compare)


def _add_question(compare: argparse.ArgumentParser) -> None:
    compare.add_argument(
        "--by",
        metavar="KEY",
        help="compare the values of this config key, over all other settings",
    )
    compare.add_argument(
        "--metric", metavar="NAME", help="compare by it (default accuracy, or loss)"
    )
    compare.add_argument(
        "--mode",
        choices=("max", "min"),
        help="whether more or less of the metric is better (default: by its name)",
    )
    compare.add_argument(
        "--target",
        type=float,
        metavar="X",
        help="also rounds, time and bytes until the metric is as good as X",
    )


def _compare(arguments: argparse.Namespace) -> None:
    from fedray import durable_files, experiments

    records = experiments.find_runs([Path(run) for run in arguments.runs])
    question = experiments.Question(
        arguments.by, arguments.metric, arguments.target, arguments.mode
    )
    comparison = experiments.compare(records, question)
    files = {form: Path(file) for form in experiments.FORMS
             if (file := getattr(arguments, form))}  # fmt: skip
    for file in files.values():
        if any(file.resolve().is_relative_to(one.folder) for one in records):
            raise ConfigError([f"{file} lies in a run's folder: name another place"])
    print(experiments.to_text(comparison))
    for form, file in files.items():
        durable_files.write_text(file, experiments.FORMS[form](comparison))
        print(f"{form:<8} {file}")
