"""``fedray replay``: an asynchronous run again, in the order in which updates came."""

import argparse
from collections.abc import Callable
from typing import Any

from fedray.cli.exit_codes import ExitCode
from fedray.messages import Progress
from fedray.progress_display import ProgressDisplay


def add(commands: Any) -> None:
    """Add the command to the parser."""
    replay = commands.add_parser(
        "replay",
        help="run an asynchronous run again in its recorded order; compare the bits",
    )
    replay.add_argument("run", metavar="RUN", help="a run's folder, or its name")
    replay.add_argument(
        "--run-dir", metavar="NEW", help="folder of the replay (default: RUN-replay)"
    )
    replay.set_defaults(command=_replay)


def _replay(arguments: argparse.Namespace) -> int:
    """Give FAILED if the bits are others."""
    from fedray.federation.replay import replay

    done = replay(arguments.run, arguments.run_dir, _display())
    rounds = done.result.history[-1].round
    print(f"history  {done.result.folder / 'history.jsonl'}")
    if done.difference:
        print(f"not the same bits: {done.difference}")
        return ExitCode.FAILED
    print(f"the same bits after round {rounds}")
    return ExitCode.DONE


def _display() -> Callable[[Progress], None]:
    """Print rounds as `fedray run` does, of as many as turn out to be replayed."""
    displays: list[ProgressDisplay] = []

    def show(progress: Progress) -> None:
        if progress.rounds and not displays:
            displays.append(ProgressDisplay(progress.rounds))
        for display in displays:
            display(progress)

    return show
