"""Rounds of groups or of members, which go on at the same time, as one."""

import dataclasses
from collections.abc import Sequence

from fedray.messages import RoundReport
from fedray.report.formatting import is_number


def whole(history: Sequence[RoundReport]) -> list[RoundReport]:
    """One line a round: what adds up is added, the longest time is the round's.

    Loss and accuracy are of one model each and are left out where there are several.
    """
    rounds: dict[int, list[RoundReport]] = {}
    for report in history:
        rounds.setdefault(report.round, []).append(report)
    return [lines[0] if len(lines) == 1 else _one(lines) for lines in rounds.values()]


def by_group(history: Sequence[RoundReport]) -> dict[str | None, list[RoundReport]]:
    """The lines of each global model, or of each member."""
    found: dict[str | None, list[RoundReport]] = {}
    for report in history:
        found.setdefault(report.group, []).append(report)
    return found


def scores(history: Sequence[RoundReport]) -> tuple[float | None, float | None, int]:
    """Loss and accuracy where they were measured last, and the round of that.

    With groups, each model's on its own samples, weighed by their number.
    """
    last = [
        next((r for r in reversed(lines) if is_number(r.loss)), None)
        for lines in by_group(history).values()
    ]
    there = [report for report in last if report]
    at = max((report.round for report in there), default=0)
    losses = [(report.loss, report.evaluated) for report in there]
    shares = [(r.accuracy, r.evaluated) for r in there if r.accuracy is not None]
    return _mean(losses), _mean(shares), at


def _one(lines: Sequence[RoundReport]) -> RoundReport:
    added = (
        "chosen", "reported", "fused", "refused", "bytes_moved", "bytes_saved",
        "evaluate_seconds", "combine_seconds", "restarts",
    )  # fmt: skip
    longest = ("seconds", "train_seconds", "wait_seconds")
    sums = {name: sum(getattr(line, name) for line in lines) for name in added}
    most = {name: max(getattr(line, name) for line in lines) for name in longest}
    return dataclasses.replace(
        lines[0],
        parties=[party for line in lines for party in line.parties],
        **{"loss": None, "accuracy": None, "group": None},
        **sums,
        **most,
    )


def _mean(values: Sequence[tuple[float, int]]) -> float | None:
    n = sum(weight for _, weight in values)
    if len(values) < 2 or not n:
        return values[0][0] if values else None
    return sum(value * weight for value, weight in values) / n
