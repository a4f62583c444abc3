"""Commands on runs that exist: runs, status, stop, join, leave and query."""

import argparse
import json
import os
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from fedray.cli.exit_codes import ExitCode
from fedray.errors import ConfigError, UnknownRun, format_count
from fedray.untrusted_text import escape_line

if TYPE_CHECKING:
    from fedray.federation.runs import RunState


MAX_REASON = 150  # characters of why a run failed, in the list; status has all


def add(commands: Any) -> None:
    """Add the commands to the parser."""
    _add_runs(commands)
    _add_membership(commands)
    _add_query(commands)


def _add_runs(commands: Any) -> None:
    runs = commands.add_parser("runs", help="list runs: on the cluster, and past ones")
    runs.set_defaults(command=_runs)
    status = commands.add_parser("status", help="show the progress of a run")
    status.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="a run's name, or its folder (default: all that are going on)",
    )
    status.set_defaults(command=_status)
    stop = commands.add_parser("stop", help="stop a run; its finished rounds are kept")
    stop.add_argument("run", metavar="RUN", help="its name, or its folder")
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
        if state.reason:
            print(f"  {textwrap.shorten(state.reason, MAX_REASON, placeholder=' …')}")
    if not states:
        print("no runs")


def _status(arguments: argparse.Namespace) -> None:
    """Print how far the runs are; an error if one was asked for that does not exist."""
    from fedray.federation import runs

    states = _read_states()
    if arguments.run:
        folder = os.path.abspath(os.path.expanduser(arguments.run))
        wanted = [s for s in states if arguments.run == s.run or folder == s.folder]
        wanted = wanted or runs.read_past(folder)
    else:
        wanted = [s for s in states if not s.is_past]
    if arguments.run and not wanted:
        raise UnknownRun(arguments.run, [state.run for state in states])
    if arguments.json:
        print(json.dumps([state.to_json() for state in wanted], indent=2))
        return
    print("\n".join(map(_format_run, wanted)) or "no federation is running")


def _stop(arguments: argparse.Namespace) -> None:
    from fedray.federation import runs

    state = runs.stop(arguments.run)
    n_done = state.last.round if state.last else 0
    rounds = format_count(state.rounds, "round is", "rounds are")
    progress = f"{n_done} of {rounds} kept in {state.folder}"
    print(f"stopped {state.run}; at least {progress}; go on with --resume")


def _read_states() -> "list[RunState]":
    """States of all runs: those that are alive, then those that only have a folder."""
    from fedray.federation import runs

    alive = runs.list_running()
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
        n_chosen = format_count(state.chosen, "party", "parties")
        lines.append(f"  {state.reported} of {n_chosen} reported")
    lines += [f"  {line}" for line in state.reason.splitlines()]
    troubled = state.troubled or {}
    lines += [f"  party {name}: {reason}" for name, reason in troubled.items()]
    return "\n".join(lines)


def _scores(state: "RunState") -> tuple[str, str]:
    values = (state.last.loss, state.last.accuracy) if state.last else (None, None)
    loss, accuracy = ("-" if value is None else f"{value:.4f}" for value in values)
    return loss, accuracy


def _add_membership(commands: Any) -> None:
    join = commands.add_parser("join", help="add a party to a run")
    join.add_argument("run", metavar="RUN", help="its name, or its folder")
    join.add_argument("--name", required=True, help="name of the party")
    join.add_argument("--data", required=True, help="path of its data on its own node")
    join.add_argument(
        "--labels",
        default="",
        metavar="K=V,...",
        help="labels of the node that has the data",
    )
    join.add_argument(
        "--fields",
        default="",
        metavar="K=V,...",
        help="fields of the party, for `groups`",
    )
    join.add_argument(
        "--data-handler", help="data handler of the party (default: the run's)"
    )
    join.set_defaults(command=_join)
    leave = commands.add_parser(
        "leave", help="remove a party from a run, which goes on"
    )
    leave.add_argument("run", metavar="RUN", help="its name, or its folder")
    leave.add_argument("--name", required=True, help="name of the party")
    leave.set_defaults(command=_leave)


def _join(arguments: argparse.Namespace) -> None:
    from fedray.federation import join

    party = {
        "name": arguments.name,
        "data": arguments.data,
        "labels": _pairs("labels", arguments.labels),
        "fields": _pairs("fields", arguments.fields),
        "data_handler": arguments.data_handler,
    }
    reply = join(arguments.run, party)
    if reply.node:
        print(
            f"{arguments.name} has joined {arguments.run}: round {reply.round} is its"
        )
        where = f"on {reply.device} of node {reply.node[:8]}"
        n_train = format_count(reply.n_train, "sample")
        n_test = format_count(reply.n_test, "test")
        print(f"first; {n_train}, {n_test}, {where}")
    else:
        print(f"{arguments.run} is not running: {arguments.name} takes part from round")
        print(f"{reply.round} on, with --resume")


def _leave(arguments: argparse.Namespace) -> None:
    from fedray.federation import leave

    last = leave(arguments.run, arguments.name)
    print(f"{arguments.name} leaves {arguments.run}: no round after {last} asks for it")


def _pairs(what: str, text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    wrong = [key for key, equals, value in pairs if not (key.strip() and equals)]
    if wrong:
        raise ConfigError([f"--{what} must be like region=eu,site=a, got {text!r}"])
    return {key.strip(): value.strip() for key, _, value in pairs}


def _add_query(commands: Any) -> None:
    query = commands.add_parser(
        "query", help="find the parties' documents nearest to a text"
    )
    query.add_argument("run", metavar="RUN", help="a run's folder, or its name")
    query.add_argument("text", metavar="TEXT", help="words to search for")
    query.add_argument(
        "-k", type=int, default=10, help="number of documents to list (default 10)"
    )
    query.add_argument("--json", action="store_true", help="print one JSON object")
    query.set_defaults(command=_query)


def _query(arguments: argparse.Namespace) -> int:
    from fedray.federation import query

    hits, failures = query(arguments.run, arguments.text, arguments.k)
    hits = hits[: arguments.k]
    if arguments.json:
        result = {"nearest": [vars(hit) for hit in hits], "failed": failures}
        print(json.dumps(result, ensure_ascii=False))
    else:
        width = max([5, *(len(hit.party) for hit in hits)])
        print(f"score  {'party':<{width}}  tag")
        for hit in hits:
            print(f"{hit.score:5.3f}  {hit.party:<{width}}  {escape_line(hit.tag)}")
    for party, reason in failures.items():
        print(f"fedray: party {party} did not answer: {reason}", file=sys.stderr)
    return ExitCode.FAILED if failures else ExitCode.DONE
