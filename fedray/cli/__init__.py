"""The command line: each file has commands, and `add` that adds them to the parser."""

import argparse
import atexit
import contextlib
import gc
import logging
import os
import signal
import sys
from importlib.metadata import version
from typing import Any

from fedray.cli import (
    compare,
    completion,
    config,
    edge,
    edges,
    files,
    init,
    operators,
    privacy,
    replay,
    run,
    runs,
    stats,
    sweep,
    trained,
    ui,
)
from fedray.cli.exit_codes import ExitCode
from fedray.config import FederationConfig, key_like, suggest_key
from fedray.config.suggestions import nearest
from fedray.errors import FedrayError, Stopped, describe_error
from fedray.untrusted_text import Terminal

NO_HOME = "Could not determine home directory."  # Python's words about a path with ~
COMMAND_FILES = (
    init,
    config,
    run,
    replay,
    stats,
    runs,
    sweep,
    compare,
    ui,
    trained,
    files,
    operators,
    edge,
    edges,
    privacy,
    completion,
)


def main(words: list[str] | None = None) -> int:
    """Run one command and give its exit code; see `ExitCode`."""
    _occupy_standard_files()
    out, messages = Terminal(sys.stdout), Terminal(sys.stderr, may_fail=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(messages):
        return _main(words)


def _main(words: list[str] | None) -> int:
    try:
        arguments = _parse(words)
        logging.basicConfig(format="%(message)s", level=logging.WARNING)
        logging.getLogger("fedray").setLevel(logging.INFO)
        atexit.register(gc.freeze)  # or Python looks through all of torch as it ends
        signal.signal(signal.SIGTERM, _interrupt)  # `ray job stop` stops as Ctrl-C does
        code = arguments.command(arguments) or ExitCode.DONE
        sys.stdout.flush()
        return code
    except Stopped as stopped:
        print(f"fedray: {stopped}", file=sys.stderr)
        return ExitCode.STOPPED
    except KeyboardInterrupt:
        print("fedray: interrupted", file=sys.stderr)
        return ExitCode.STOPPED
    except BrokenPipeError:  # such as `fedray config | head`
        return ExitCode.FAILED
    except FedrayError as error:
        print(f"fedray: {error}", file=sys.stderr)
        return ExitCode.FAILED
    except OSError as error:  # a path that cannot be, a full disk
        print(f"fedray: {describe_error(error)}", file=sys.stderr)
        return ExitCode.FAILED
    except RuntimeError as error:
        if str(error) != NO_HOME:
            raise
        print(f"fedray: {error} Write whole paths, without ~", file=sys.stderr)
        return ExitCode.FAILED


def _parse(words: list[str] | None) -> argparse.Namespace:
    """The command and its arguments; ends the process for help and mistakes."""
    parser = _parser()
    try:
        arguments, rest = parser.parse_known_args(words)
    except SystemExit:
        sys.stdout.flush()  # of --help and --version
        raise
    settings = [word for word in rest if "=" in word and not word.startswith("-")]
    takes_settings = hasattr(arguments, "overrides")
    if len(settings) < len(rest) or (rest and not takes_settings):
        is_of_config = takes_settings and _hint(rest, words or sys.argv[1:])
        hint = is_of_config or _near_options(parser, arguments, rest)
        parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    if settings:  # settings may also follow an option
        arguments.overrides = [*arguments.overrides, *settings]
    return arguments


def _hint(rest: list[str], words: list[str]) -> str:
    """What to write instead of options that are config keys: ``--rounds 3``."""
    settings, advice = [], []
    for word in (word for word in rest if word.startswith("--")):
        option, equals, value = word.partition("=")
        if key := key_like(option):
            follows = (*words[words.index(word) + 1 :], "...")[0]
            settings.append(f"{key}={value if equals else follows}")
        else:
            advice.append(suggest_key(option, "", FederationConfig))
    if settings:
        advice.append(f"config keys have no dashes: write {' '.join(settings)}")
    return "".join(f"; {text}" for text in advice if text)


def _near_options(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, rest: list[str]
) -> str:
    """The options of the command that unknown ones nearly are."""
    subparsers: Any = parser._subparsers
    (commands,) = subparsers._group_actions
    options = commands.choices[arguments.command_name]._option_string_actions
    names = [one for one in options if one.startswith("--")]
    wrong = [word.partition("=")[0] for word in rest if word.startswith("--")]
    near = [match for word in wrong if (match := nearest(word, names))]
    return f"; did you mean {' '.join(near)}?" if near else ""


def _occupy_standard_files() -> None:
    """Open what the shell has closed (>&-), or other files would get its numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedray", description="Model fusion and federated learning on Ray."
    )
    parser.add_argument(
        "--version", action="version", version=f"fedray {version('fedray')}"
    )
    commands = parser.add_subparsers(
        required=True, metavar="COMMAND", dest="command_name"
    )
    for file in COMMAND_FILES:
        file.add(commands)
    for action in commands._choices_actions:
        text = action.help or ""
        commands.choices[action.dest].description = f"{text[:1].upper()}{text[1:]}."
    return parser
