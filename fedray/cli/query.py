"""``fedray query``: every party's documents that are nearest to a text."""

import argparse
import json
import sys
from typing import Any

from fedray.cli.exit_codes import ExitCode


def add(commands: Any) -> None:
    """Add the command to the parser."""
    query = commands.add_parser(
        "query", help="find the parties' documents nearest to a text"
    )
    query.add_argument("run", metavar="RUN", help="a run's folder, or its name")
    query.add_argument("text", metavar="TEXT")
    query.add_argument("-k", type=int, default=10, help="documents (default 10)")
    query.add_argument("--json", action="store_true", help="print one JSON object")
    query.set_defaults(command=_query)


def _query(arguments: argparse.Namespace) -> int:
    from fedray.federation import query

    found, failed = query(arguments.run, arguments.text, arguments.k)
    found = found[: arguments.k]
    if arguments.json:
        plain = {"nearest": [vars(one) for one in found], "failed": failed}
        print(json.dumps(plain, ensure_ascii=False))
    else:
        width = max([5, *(len(one.party) for one in found)])
        print(f"score  {'party':<{width}}  tag")
        for one in found:
            print(f"{one.score:5.3f}  {one.party:<{width}}  {one.tag}")
    for party, why in failed.items():
        print(f"fedray: party {party} did not answer: {why}", file=sys.stderr)
    return ExitCode.FAILED if failed else ExitCode.DONE
