"""``fedray join`` and ``fedray leave``: adds a party to a run, removes one."""

import argparse
from typing import Any

from fedray.errors import ConfigError


def add(commands: Any) -> None:
    """Add the commands to the parser."""
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
    join.add_argument("--data-handler", help="its data handler, if not the run's")
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
        print(f"first; {reply.n_train} samples, {reply.n_test} tests, {where}")
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
