"""``fedray stats``: statistics of all parties' data, from sums that they make."""

import argparse
import json
from collections.abc import Iterator
from typing import Any

from fedray.cli.run import add_config, config_of
from fedray.errors import format_count
from fedray.survey import MIN_COUNT, MIN_PARTIES

N_SHOWN = 50  # columns in the table; --json has all
EXTREMES = "note: minimum and maximum are values of single samples"


def add(commands: Any) -> None:
    """Add the command to the parser."""
    stats = commands.add_parser(
        "stats", help="show count, mean and deviation of the parties' columns"
    )
    add_config(stats)
    stats.add_argument(
        "--json", action="store_true", help="print one JSON object, for scripts"
    )
    stats.add_argument(
        "--extremes",
        action="store_true",
        help="also minimum and maximum, which are values of single samples",
    )
    stats.add_argument(
        "--min-count",
        type=int,
        default=MIN_COUNT,
        metavar="N",
        help="samples that a label or category must have to be named "
        f"(default {MIN_COUNT})",
    )
    stats.add_argument(
        "--min-parties",
        type=int,
        default=MIN_PARTIES,
        metavar="N",
        help=f"parties that must have it (default {MIN_PARTIES})",
    )
    stats.set_defaults(command=_stats)


def _stats(arguments: argparse.Namespace) -> None:
    from fedray.federation.stats import stats, to_json

    survey = stats(config_of(arguments), arguments.extremes)
    limits = arguments.min_count, arguments.min_parties
    plain = to_json(survey, *limits)
    if arguments.json:
        print(json.dumps(plain, indent=2))
    else:
        print("\n".join(_format_stats(plain, *limits)))


def _format_stats(
    stats: dict[str, Any], min_count: int, min_parties: int
) -> Iterator[str]:
    parties = format_count(stats["n_parties"], "party", "parties")
    yield f"{format_count(stats['n_samples'], 'training sample')} of {parties}"
    yield from _format_columns(stats["columns"])
    for name, group in stats["categories"].items():
        what = "labels" if name == "y" else f"column {name!r}"
        n_values = len(group["values"]) + group["n_left_out"]
        yield f"{what}: {format_count(n_values, 'value')}"
        for row in group["values"]:
            parties = format_count(row["n_parties"], "party", "parties")
            yield f"  {row['value']:<24}{row['count']:>12,}  at {parties}"
        if group["n_left_out"]:
            n_out = format_count(group["n_left_out"], "is", "are")
            why = f"fewer than {min_count} samples or {min_parties} parties"
            whom = "it" if group["n_left_out"] == 1 else "them"
            yield f"  {n_out} not shown: {why} have {whom}"


def _format_columns(columns: list[dict[str, Any]]) -> Iterator[str]:
    has_extremes = any("minimum" in column for column in columns)
    titles = ["count", "mean", "deviation", "missing"]
    titles += ["minimum", "maximum"] if has_extremes else []
    has_inputs = len({column["input"] for column in columns}) > 1
    names = [
        f"{column['input']} {column['column']}" if has_inputs else column["column"]
        for column in columns
    ]
    width = max(map(len, ["column", *names[:N_SHOWN]])) + 2
    if columns:
        yield "column".ljust(width) + "".join(f"{title:>13}" for title in titles)
    for name, column in list(zip(names, columns, strict=True))[:N_SHOWN]:
        cells = (_format_number(column[title]) for title in titles)
        yield name.ljust(width) + "".join(f"{cell:>13}" for cell in cells)
    if len(columns) > N_SHOWN:
        yield f"and {format_count(len(columns) - N_SHOWN, 'more column')}: see --json"
    if has_extremes:
        yield EXTREMES


def _format_number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
