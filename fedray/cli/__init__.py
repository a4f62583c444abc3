"""The command line; every command is a file of its own, with `add` and what it runs."""

import argparse
import atexit
import gc
import logging
import signal
import sys
from typing import Any

from fedray.cli import (
    check,
    fuse,
    grafana,
    keys,
    membership,
    query,
    run,
    runs,
    serve,
    split,
)
from fedray.errors import FedrayError, Stopped

STOPPED = 130  # as a shell tells of Ctrl-C
COMMANDS = (run, check, runs, membership, query, split, fuse, serve, keys, grafana)


def main(words: list[str] | None = None) -> int:
    """Run one command; 0 if all went well, 130 after a stop, else 1."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(words)
    settings = [word for word in rest if "=" in word and not word.startswith("-")]
    if len(settings) < len(rest) or (rest and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if settings:  # settings may also follow an option
        arguments.overrides += settings
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("fedray").setLevel(logging.INFO)
    atexit.register(gc.freeze)  # or Python looks through all of torch as it ends
    signal.signal(signal.SIGTERM, _interrupt)  # `ray job stop` stops as Ctrl-C does
    try:
        return arguments.command(arguments) or 0
    except Stopped as stopped:
        print(f"fedray: {stopped}", file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        print("fedray: interrupted", file=sys.stderr)
        return STOPPED
    except FedrayError as error:
        print(f"fedray: {error}", file=sys.stderr)
        return 1


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedray", description="Model fusion and federated learning on Ray."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
