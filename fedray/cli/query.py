"""``fedray query``: searches all parties' documents for those nearest to a text."""

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

    hits, failures = query(arguments.run, arguments.text, arguments.k)
    hits = hits[: arguments.k]
    if arguments.json:
        result = {"nearest": [vars(hit) for hit in hits], "failed": failures}
        print(json.dumps(result, ensure_ascii=False))
    else:
        width = max([5, *(len(hit.party) for hit in hits)])
        print(f"score  {'party':<{width}}  tag")
        for hit in hits:
            print(f"{hit.score:5.3f}  {hit.party:<{width}}  {hit.tag}")
    for party, reason in failures.items():
        print(f"fedray: party {party} did not answer: {reason}", file=sys.stderr)
    return ExitCode.FAILED if failures else ExitCode.DONE
