"""``fedray sweep``: one config with every combination of some values."""

import argparse
import signal
from pathlib import Path
from typing import Any

from fedray.cli.exit_codes import ExitCode

VALUES_HELP = (
    "values of a setting, nested ones by dotted names; one value alone is for all "
    "runs. Quote those with brackets or braces"
)


def add(commands: Any) -> None:
    """Add the command to the parser."""
    sweep = commands.add_parser(
        "sweep", help="run a config with every combination of some values, and compare"
    )
    sweep.add_argument("config", metavar="CONFIG", help="YAML file of settings")
    sweep.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=a,b,c",
        help=VALUES_HELP,
    )
    sweep.add_argument(
        "--seeds", type=int, metavar="N", help="N seeds, counted from the config's"
    )
    sweep.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="runs at a time (default: as cores and GPUs allow)",
    )
    sweep.add_argument(
        "--out",
        metavar="DIR",
        help="folder of the runs (default ~/.fedray/runs/<name>-sweep); "
        "a sweep that is there goes on",
    )
    sweep.add_argument(
        "--retry-failed", action="store_true", help="try again runs that have failed"
    )
    sweep.set_defaults(command=_sweep)


def _sweep(arguments: argparse.Namespace) -> int:
    """Run what is left of the sweep, then print the table of ``fedray compare``."""
    from fedray import experiments
    from fedray.experiments.grid import read_words
    from fedray.observers import Guard
    from fedray.sweep import read_plan, run_plan
    from fedray.sweep.display import SweepDisplay

    grid, problems = read_words(arguments.overrides)
    plan = read_plan(arguments.config, grid, arguments.seeds, problems)
    # the terminal may close before the end; Ray's own processes inherit this
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    display, guard = SweepDisplay(), Guard("standard output")
    folder, ends = run_plan(
        plan, arguments.out, arguments.jobs, arguments.retry_failed,
        lambda progress: guard.call(display, progress),
    )  # fmt: skip
    failed = [name for name, end in ends.items() if end.state == "failed"]
    print(_table(experiments, folder))
    print(f"runs     {folder}")
    if failed:
        print(f"failed   {len(failed)} of {len(ends)}; --retry-failed tries them again")
    return ExitCode.FAILED if failed else ExitCode.DONE


def _table(experiments: Any, folder: Path) -> str:
    """What ``fedray compare`` prints of the folder; of no round at all that."""
    from fedray.errors import RunFolderError

    try:
        records = experiments.find_runs([folder])
    except RunFolderError:
        return "no run has had a round"
    comparison = experiments.compare(records, experiments.Question())
    return str(experiments.to_text(comparison))
