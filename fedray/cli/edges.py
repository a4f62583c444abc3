"""``fedray edges``: who may take part in a run from outside its cluster, who does."""

import argparse
import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fedray.errors import ConfigError, UnknownRun, format_count
from fedray.untrusted_text import name_problem

if TYPE_CHECKING:
    from fedray.edges.registry import Registry

RUN_HELP = "a run's name, or its folder; of the REST service the aggregator_id's"
DAYS_HELP = "days in which it can be used to enrol (default 7)"
SHOWN = 50  # lines of a list that is shown whole only with --all


def add(commands: Any) -> None:
    """Add the command to the parser."""
    edges = commands.add_parser(
        "edges", help="invite, list and shut out parties outside the cluster"
    )
    actions = edges.add_subparsers(
        required=True, metavar="ACTION", dest="action", help="what to do"
    )
    _add_invite(actions.add_parser("invite", help="make one-time invitations"))
    listing = actions.add_parser(
        "list", help="show enrolled edges: state, when last seen"
    )
    _add_run(listing, _list)
    _add_listing(listing)
    invitations = actions.add_parser(
        "invitations", help="show invitations: used, or until when"
    )
    _add_run(invitations, _list_invitations)
    _add_listing(invitations)
    revoke = actions.add_parser("revoke", help="shut out an edge, or an invitation")
    _add_run(revoke, _revoke)
    revoke.add_argument(
        "which",
        metavar="NAME",
        help="an edge's name, also one only invited; or an invitation's id",
    )
    rotate = actions.add_parser(
        "rotate", help="shut out a named edge's key, and invite it anew"
    )
    _add_run(rotate, _rotate)
    rotate.add_argument("name", metavar="NAME", help="the edge's name")
    _add_validity(rotate)


def _add_invite(invite: Any) -> None:
    _add_run(invite, _invite)
    who = invite.add_mutually_exclusive_group()
    who.add_argument(
        "--name", help="invite this party of the config (edge: true); default: any edge"
    )
    who.add_argument(
        "--count", type=int, metavar="N",
        help="N invitations, one an edge, to a run with `edges` (default 1)",
    )  # fmt: skip
    _add_validity(invite)


def _add_run(action: Any, command: Any) -> None:
    action.add_argument("run", metavar="RUN", help=RUN_HELP)
    action.set_defaults(command=command)


def _add_validity(action: Any) -> None:
    action.add_argument("--days", type=float, default=7.0, help=DAYS_HELP)
    action.add_argument(
        "--out",
        metavar="FILE",
        help="new file for them, readable by you alone (default: print them)",
    )


def _add_listing(action: Any) -> None:
    action.add_argument("--all", action="store_true", help="every line, however many")
    action.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _invite(arguments: argparse.Namespace) -> None:
    count = 1 if arguments.count is None else arguments.count
    with _output(arguments.out) as out:
        registry = _registry(arguments.run, is_new=True)
        texts = registry.invite(arguments.name, count, arguments.days)
        out.write("".join(f"{text}\n" for text in texts))
    _tell_new(arguments.run, registry.folder.parent)
    _tell_use(arguments, texts)


def _rotate(arguments: argparse.Namespace) -> None:
    with _output(arguments.out) as out:
        text = _registry(arguments.run).rotate(arguments.name, arguments.days)
        out.write(f"{text}\n")
    print(f"{arguments.name} is shut out until it enrols anew", file=sys.stderr)
    _tell_use(arguments, [text])


def _tell_use(arguments: argparse.Namespace, texts: Sequence[str]) -> None:
    """Say what to do with invitations, not where they are piped to."""
    what = format_count(len(texts), "invitation")
    where = f" in {arguments.out}, a line each" if arguments.out else ""
    days = f"{arguments.days:g} days"
    print(f"{what}{where}; each enrols one edge within {days}:", file=sys.stderr)
    use = "fedray edge --url https://HOST:8443 --invitation-file FILE"
    print(f"  {use} --data PATH --data-handler HANDLER", file=sys.stderr)


def _tell_new(run: str, folder: Path) -> None:
    """Say how the run has to be started to know its invitations, if it has not begun.

    A misspelt name would be a run of its own.
    """
    if (folder / "config.yaml").exists() or re.fullmatch("[0-9a-f]{32}", folder.name):
        return
    how = (
        f"--run-dir {folder}" if os.sep in run or run in (".", "..") else f"name={run}"
    )
    start = f"start it by `fedray run CONFIG {how}`"
    print(f"{run} has not begun: {start}, which knows its invitations", file=sys.stderr)


def _revoke(arguments: argparse.Namespace) -> None:
    what = _registry(arguments.run).revoke(arguments.which)
    print(f"{what} is shut out of {arguments.run}")


def _list(arguments: argparse.Namespace) -> None:
    from fedray.edges.listing import list_edges

    edges = list_edges(_registry(arguments.run))
    if arguments.json:
        print(json.dumps(edges, indent=2))
        return
    rows = [
        [
            edge["name"],
            _state(edge),
            _ago(edge["last_seen"]),
            edge["version"] or "-",
            "-" if edge["round"] is None else f"round {edge['round']}",
            f"up {_size(edge['bytes_up'])}, down {_size(edge['bytes_down'])}",
            f"{_size(edge['bytes_per_s'])}/s" if edge["bytes_per_s"] else "-",
        ]
        for edge in edges
    ]
    _print_rows(arguments, rows, "no edge has enrolled")


def _list_invitations(arguments: argparse.Namespace) -> None:
    states = [*_registry(arguments.run).invitations()]
    if arguments.json:
        print(json.dumps([asdict(state) for state in states], indent=2))
        return
    rows = [
        [state.id, state.name or "-", state.state, _until(state.expires)]
        for state in states
    ]
    _print_rows(arguments, rows, "nobody is invited")


def _print_rows(
    arguments: argparse.Namespace, rows: list[list[str]], nothing: str
) -> None:
    """Print a table, the newest lines of a long one."""
    n_hidden = 0 if arguments.all else max(0, len(rows) - SHOWN)
    shown = rows[n_hidden:]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    if n_hidden:
        print(f"... {n_hidden} more before these; --all shows them")
    for row in shown:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    if not rows:
        print(nothing)


def _state(edge: dict[str, Any]) -> str:
    """Enrolled or revoked; what an enrolled one did when it was last seen."""
    activity = f", {edge['activity']}" if edge["activity"] else ""
    return f"{edge['state']}{activity}"


def _ago(at: float | None) -> str:
    """How long ago a time was, in its largest unit."""
    if at is None:
        return "never seen"
    seconds = max(0.0, time.time() - at)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"seen {seconds / length:.0f} {unit} ago"
    return f"seen {seconds:.0f} s ago"


def _until(expires: float | None) -> str:
    if expires is None:
        return ""
    return time.strftime("until %Y-%m-%d %H:%M", time.localtime(expires))


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


@contextlib.contextmanager
def _output(file: str | None) -> Iterator[TextIO]:
    """Where invitations go: standard output, or a new file for this user alone.

    The file is opened before anything is made, and is not left behind empty.
    """
    if file is None:
        yield sys.stdout
        return
    path = Path(file).expanduser()
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        problem = f"--out {path} is there already, and has other invitations maybe"
        raise ConfigError([f"{problem}: name a new file"]) from None
    except OSError as error:
        raise ConfigError([f"--out {path}: {error.strerror}"]) from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _registry(run: str, is_new: bool = False) -> "Registry":
    """The registry of a run.

    is_new : whether nobody need have been invited yet; the run need not have begun.

    Raises
    ------
    UnknownRun, ConfigError
        If there is no such run, or nobody was invited to it.
    """
    from fedray.edges.registry import Registry

    registry = Registry(_find_folder(run, is_new))
    if not registry.exists and not is_new:
        problem = f"nobody was invited to {run}: do so by `fedray edges invite {run}`"
        raise ConfigError([problem])
    return registry


def _require_own(path: Path) -> None:
    """Refuse to put invitations into a folder of other things."""
    try:
        names = {entry.name for entry in path.iterdir()} if path.exists() else set()
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from None
    others = {name for name in names if not name.startswith(".")}
    if others and not others & {"config.yaml", "edges"}:
        problem = f"{path} is no run's folder, it has {min(others)[:80]!r} in it"
        raise ConfigError([f"{problem}: name a run, or its --run-dir"])


def _find_folder(run: str, is_new: bool) -> Path:
    """The folder of a run: a path, a name, or the id of one of the REST service."""
    from fedray.checkpoint import runs_folder
    from fedray.service.settings import Settings

    path = Path(run).expanduser()
    if os.sep in run or run in (".", ".."):
        if not path.is_dir() and not is_new:
            raise UnknownRun(run, [])
        if is_new:
            _require_own(path)
        return path.absolute()
    own = runs_folder() / run
    if problem := name_problem(run):
        raise ConfigError([f"{run[:80]!r} cannot be a run's name: {problem}"])
    if re.fullmatch("[0-9a-f]{32}", run):
        served = Settings.from_environment().folder / run
        return served if served.is_dir() else own
    if own.is_dir():
        return own
    from fedray.federation.run_addresses import find_runs

    alive = find_runs()
    for entry in alive:
        if entry.run == run:
            return Path(entry.folder)
    if not is_new:
        raise UnknownRun(run, [entry.run for entry in alive])
    return own
