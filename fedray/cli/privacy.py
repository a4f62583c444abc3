"""``fedray privacy``: what has been spent of a party's data, for whoever owns it."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from fedray.config import PARTY_DIR
from fedray.errors import ConfigError, LedgerError, format_count
from fedray.untrusted_text import escape_line

FOLDER_HELP = f"party_dir of the party, on its own node (default {PARTY_DIR})"


def add(commands: Any) -> None:
    """Add the commands to the parser."""
    privacy = commands.add_parser(
        "privacy", help="show or reset what has been spent of a party's data"
    )
    actions = privacy.add_subparsers(required=True, metavar="ACTION", help="what to do")
    show = actions.add_parser("show", help="show epsilon over all runs")
    show.add_argument("--json", action="store_true", help="print one JSON object")
    show.set_defaults(command=_show)
    limit = actions.add_parser(
        "limit", help="set the most that all runs together may spend of any data set"
    )
    limit.add_argument("epsilon", type=float, metavar="EPSILON", help="above 0")
    limit.set_defaults(command=_limit)
    reset = actions.add_parser(
        "reset", help="forget what has been spent; that it was forgotten is recorded"
    )
    reset.add_argument("--yes", action="store_true", help="do not ask")
    reset.set_defaults(command=_reset)
    for action in (show, limit, reset):
        action.add_argument(
            "party_dir", nargs="?", default=PARTY_DIR, metavar="PARTY_DIR",
            help=FOLDER_HELP,
        )  # fmt: skip


def _show(arguments: argparse.Namespace) -> None:
    from fedray.privacy.party_book import PartyBook
    from fedray.privacy.party_summary import summarize

    book = PartyBook(_existing_folder(arguments))
    with book.locked(may_make=False):
        summary = summarize(book)
    if arguments.json:
        print(json.dumps(summary, indent=2))
        return
    for line in _lines(summary):
        print(line)


def _limit(arguments: argparse.Namespace) -> None:
    from fedray.privacy.party_book import OWNER_LIMIT, PartyBook
    from fedray.privacy.party_summary import summarize

    epsilon = arguments.epsilon
    if not epsilon > 0 or math.isinf(epsilon):
        raise ConfigError([f"EPSILON must be a number above 0, got {epsilon:g}"])
    book = PartyBook(_folder(arguments))
    with book.locked():
        before = book.accounts.owner_epsilon
        book.add(OWNER_LIMIT, epsilon=epsilon)
        spent = max((own["epsilon"] for own in summarize(book)["data"]), default=0.0)
    was = "" if before is None else f" (it was {before:g})"
    print(f"all runs together may spend epsilon {epsilon:g} of any data set{was}")
    if spent >= epsilon:
        print(f"{spent:.4g} is spent already of one: nothing more is trained on it")


def _reset(arguments: argparse.Namespace) -> None:
    from fedray.privacy import party_book
    from fedray.privacy.party_summary import summarize

    folder = _existing_folder(arguments)
    book, problem = party_book.PartyBook(folder), ""
    try:
        with book.locked(may_make=False) as is_there:
            summary = summarize(book)
    except LedgerError as error:
        problem, is_there = error.reason, True
    if not is_there:
        print(f"nothing is recorded in {folder}")
        return
    if problem:
        print(f"the books in {book.books} cannot be used: it {problem}")
        print("They are put aside, and what they say of earlier runs no longer counts.")
    else:
        for line in _lines(summary):
            print(line)
    _confirm(arguments)
    if problem:
        party_book.begin_anew(folder, problem)
        print("A limit of the owner is lost, too: `fedray privacy limit` sets it again")
    else:
        party_book.forget_all(folder)
    print("forgotten; the ledger says so. Every data set begins with its next run")


def _confirm(arguments: argparse.Namespace) -> None:
    """Ask whether to forget what was spent."""
    question = "Forget all that was spent? What was released stays released. Type yes: "
    if arguments.yes:
        return
    answer = ""
    if sys.stdin is not None and sys.stdin.isatty():
        answer = input(question)
    if answer.strip().lower() != "yes":
        needed = "nothing was reset: type yes when asked, or give --yes"
        raise ConfigError([needed])


def _folder(arguments: argparse.Namespace) -> Path:
    """The party_dir; also where the folder within it was named."""
    from fedray.privacy.party_book import BOOKS, FOLDER

    folder = Path(arguments.party_dir).expanduser()
    is_within = folder.name == FOLDER and (folder / BOOKS).is_dir()
    return folder.parent if is_within else folder


def _existing_folder(arguments: argparse.Namespace) -> Path:
    """The party_dir; a folder that was named, and is not there, is a mistake."""
    folder = _folder(arguments)
    if arguments.party_dir != PARTY_DIR and not folder.is_dir():
        raise ConfigError([f"{folder} is no folder: name the party_dir of the party"])
    return folder


def _lines(summary: dict[str, Any]) -> list[str]:
    """What the books say, for people."""
    lines = [f"privacy in {summary['party_dir']}"]
    if summary["limit"] is not None:
        lines.append(f"limit of the owner, for any data set: {summary['limit']:g}")
    if not summary["data"] and not summary["central"]:
        lines.append("no training with dp_sgd and no noised sum is recorded")
    for data in summary["data"]:
        lines += _data_lines(data)
    for central in summary["central"]:
        lines += _central_lines(central)
    for reset in summary["resets"]:
        problem = reset.get("problem")
        why = f": the books could not be used: {problem}" if problem else ""
        lines.append(f"reset {reset['at']}{why}")
    return [escape_line(line) for line in lines]


def _data_lines(data: dict[str, Any]) -> list[str]:
    names = ", ".join(data["parties"][:3]) + ", ..." * (len(data["parties"]) > 3)
    n_samples = format_count(data["n_samples"], "sample")
    most = ""
    if data["n_parts"]:
        n_parts = format_count(data["n_parts"], "part")
        most = f", cut into {n_parts}: the one that has spent most"
    limit = "no limit yet"
    if data["limit"] is not None:
        limit = f"of {data['limit']:.4g}, the limit set by its {data['limit_by']}"
    return [
        "",
        f"{', '.join(data['sources'])} (party {names}; {n_samples}){most}",
        f"  single samples: epsilon {data['epsilon']:.4g} spent, {limit} "
        f"(delta {data['delta']:g})",
        *(
            f"    run {run['run']}: epsilon {run['epsilon']:.4g}, "
            f"{format_count(run['rounds'], 'round')}, "
            f"{format_count(run['trainings'], 'training')} of together "
            f"{format_count(run['steps'], 'step')}, noise multiplier "
            f"{run['noise_multiplier']:.4g}, sampling rate {run['sampling_rate']:.4g}"
            for run in data["runs"]
        ),
    ]


def _central_lines(central: dict[str, Any]) -> list[str]:
    n_parts = format_count(central["n_parts"], "part")
    most = f", cut into {n_parts}: the one that was in most rounds"
    return [
        "",
        f"{central['source']}{most if central['n_parts'] else ''}",
        f"  the whole party: epsilon {central['epsilon']:.4g} over all runs, if their "
        f"aggregators added the noise that they claim (delta {central['delta']:g})",
        *(
            f"    run {run['run']}: {format_count(run['releases'], 'round')}, "
            f"{run['mechanism']} noise, noise multiplier {run['noise_multiplier']:.4g}"
            + (", secure aggregation" if run["secure_aggregation"] else "")
            for run in central["runs"]
        ),
    ]
