"""``fedray runs``, ``status``, ``stop``: lists runs, shows progress, stops a run."""

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from fedray.errors import ClusterError, UnknownRun

if TYPE_CHECKING:
    from fedray.federation.runs import RunState


def add(commands: Any) -> None:
    """Add the commands to the parser."""
    runs = commands.add_parser("runs", help="list runs: on the cluster, and past ones")
    runs.set_defaults(command=_runs)
    status = commands.add_parser("status", help="show the progress of a run")
    status.add_argument("run", nargs="?", metavar="RUN", help="default: all alive")
    status.set_defaults(command=_status)
    stop = commands.add_parser("stop", help="stop a run; its finished rounds are kept")
    stop.add_argument("run", metavar="RUN")
    stop.set_defaults(command=_stop)
    for command in (runs, status):
        command.add_argument(
            "--json", action="store_true", help="print one JSON list, for scripts"
        )


def _runs(arguments: argparse.Namespace) -> None:
    states = _read_states()
    if arguments.json:
        print(json.dumps([state.to_json() for state in states], indent=2))
        return
    for state in states:
        print(_format_line(state))
    if not states:
        print("no runs")


def _status(arguments: argparse.Namespace) -> None:
    """Print how far the runs are; an error if one was asked for that does not exist."""
    states = _read_states()
    wanted = [
        s for s in states if s.run == arguments.run or not (arguments.run or s.is_past)
    ]
    if arguments.run and not wanted:
        raise UnknownRun(arguments.run, [state.run for state in states])
    if arguments.json:
        print(json.dumps([state.to_json() for state in wanted], indent=2))
        return
    print("\n".join(map(_format_run, wanted)) or "no federation is running")


def _stop(arguments: argparse.Namespace) -> None:
    from fedray.federation import runs
    from fedray.federation.actors import existing_cluster

    with existing_cluster():
        state = runs.stop(arguments.run)
    n_done = state.last.round if state.last else 0
    progress = f"{n_done} of {state.rounds} rounds are kept in {state.folder}"
    print(f"stopped {state.run}; at least {progress}; go on with --resume")


def _read_states() -> "list[RunState]":
    """States of all runs: those on the cluster, then those that only have a folder."""
    from fedray.federation import runs
    from fedray.federation.actors import existing_cluster

    try:
        with existing_cluster():
            alive = runs.list_running()
    except ClusterError:
        if os.environ.get("RAY_ADDRESS"):
            raise  # a cluster was asked for
        alive = []
        reason = "no Ray cluster on this machine, and RAY_ADDRESS names none"
        print(f"fedray: {reason}; from folders only:", file=sys.stderr)
    folders = {state.folder for state in alive}
    return alive + [state for state in runs.list_past() if state.folder not in folders]


def _format_line(state: "RunState") -> str:
    """One line of the list."""
    loss, accuracy = _scores(state)
    done = f"{state.round} of {state.rounds}" if state.rounds else "?"
    scores = f"loss {loss:<8} accuracy {accuracy:<8}"
    return f"{state.run:<24} {state.stage:<11} round {done:<11} {scores} {state.folder}"


def _format_run(state: "RunState") -> str:
    """A run's line, then its parties that reported and those in trouble."""
    lines = [_format_line(state)]
    if not state.is_past and state.chosen:
        lines.append(f"  {state.reported} of {state.chosen} parties reported")
    troubled = state.troubled or {}
    lines += [f"  party {name}: {reason}" for name, reason in troubled.items()]
    return "\n".join(lines)


def _scores(state: "RunState") -> tuple[str, str]:
    values = (state.last.loss, state.last.accuracy) if state.last else (None, None)
    loss, accuracy = ("-" if value is None else f"{value:.4f}" for value in values)
    return loss, accuracy
