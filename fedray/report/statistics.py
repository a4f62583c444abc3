"""Statistics of a run's history: by party, by group, and summed over groups."""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fedray.messages import (
    APART,
    FAILED,
    FUSED,
    LATE,
    REFUSED,
    WAITING,
    Outcome,
    PartyLine,
    RoundReport,
)
from fedray.report.formatting import (
    NO_VALUE,
    escape,
    format_duration,
    format_number,
    html_table,
    is_number,
    total,
    truncation_note,
)

N_ROWS = 1_000  # of a table; more would make the page slow to open
N_REASONS = 20  # of one party
MAX_REASON = 600  # characters of one reason
JOINED = "joined", "It may be chosen from then on."
LEFT = "left", "It is asked for nothing from then on."


@dataclass
class PartyStatistics:
    """One party over all rounds."""

    name: str
    kinds: dict[int, str] = field(default_factory=dict)  # round -> kind of its outcome
    reasons: dict[tuple[str, str], list[int]] = field(default_factory=dict)  # to rounds
    seconds: list[float] = field(default_factory=list)
    loss: float | None = None  # the last one reported; the same for the next two
    n_samples: int | None = None
    node: str | None = None

    def add(self, round_: int, line: PartyLine) -> None:
        """Add the party's line of one more round."""
        result = line.result or Outcome(WAITING)
        kind, reason = result.kind, result.reason
        self.kinds[round_] = kind
        if kind not in (FUSED, APART) and (reason or kind in (FAILED, REFUSED)):
            self.reasons.setdefault((kind, reason), []).append(round_)
        if line.note:
            self.reasons.setdefault(("note", line.note), []).append(round_)
        if is_number(line.seconds):
            self.seconds.append(line.seconds)
        self.loss = self.loss if line.loss is None else line.loss
        self.n_samples = self.n_samples if line.n_samples is None else line.n_samples
        self.node = line.node or self.node

    @property
    def n_trouble(self) -> int:
        """Rounds that the party was chosen for but not fused in."""
        return sum(kind not in (FUSED, APART) for kind in self.kinds.values())


def party_statistics(history: Sequence[RoundReport]) -> list[PartyStatistics]:
    """Statistics of all parties that were ever chosen, party-2 before party-10."""
    parties: dict[str, PartyStatistics] = {}
    for report in history:
        for line in report.parties:
            if line.outcome is None:
                continue  # what became of it is hidden
            party = parties.setdefault(line.name, PartyStatistics(line.name))
            party.add(report.round, line)
        for names, reason in ((report.joined, JOINED), (report.left, LEFT)):
            for name in names:
                party = parties.setdefault(name, PartyStatistics(name))
                party.reasons.setdefault(reason, []).append(report.round)
    return sorted(parties.values(), key=lambda party: _natural_key(party.name))


def _natural_key(name: str) -> list[str | tuple[int, str]]:
    """Sort key in which digits compare as numbers, whatever their leading zeros."""
    parts = re.split(r"(\d+)", name)
    return [
        (len(part.lstrip("0")), part.lstrip("0")) if i % 2 else part
        for i, part in enumerate(parts)
    ]


def most_troubled(
    parties: Sequence[PartyStatistics], n_most: int
) -> list[PartyStatistics]:
    """Select at most `n_most` parties: those chosen but not fused most often.

    They stay in their order.
    """
    ranked = sorted(range(len(parties)), key=lambda i: -parties[i].n_trouble)
    return [parties[i] for i in sorted(ranked[:n_most])]


def party_table(parties: Sequence[PartyStatistics]) -> str:
    """HTML table with a row for each party."""
    shown = most_troubled(parties, N_ROWS)
    head = (
        "party", "chosen", "fused", "late", "failed", "refused",
        "mean time", "last loss", "samples", "node",
    )  # fmt: skip
    table = html_table("Parties", head, [_party_row(party) for party in shown])
    noun = "parties, those with most trouble"
    return table + truncation_note(len(shown), len(parties), noun)


def _party_row(party: PartyStatistics) -> list[str]:
    counts = Counter(party.kinds.values())
    n_by_kind = [counts[kind] for kind in (FUSED, LATE, FAILED, REFUSED)]
    n_timed = len(party.seconds)
    return [
        escape(party.name),
        f"{len(party.kinds):,}",
        *(f"{n:,}" if n else '<span class="none">0</span>' for n in n_by_kind),
        format_duration(sum(party.seconds) / n_timed if n_timed else None),
        format_number(party.loss),
        NO_VALUE if party.n_samples is None else f"{party.n_samples:,}",
        f"<code>{escape(party.node[:8])}</code>" if party.node else NO_VALUE,
    ]


def reason_list(parties: Sequence[PartyStatistics]) -> str:
    """HTML list of why updates were not fused, by party, with the rounds of each."""
    troubled = [party for party in parties if party.reasons]
    if not troubled:
        return "<p>No party failed and no update was refused.</p>"
    shown = troubled[:N_ROWS]
    items = "\n".join(_party_reasons(party) for party in shown)
    noun = "parties with reasons, the first"
    omitted = truncation_note(len(shown), len(troubled), noun)
    return f'<dl class="reasons">{items}</dl>{omitted}'


def _party_reasons(party: PartyStatistics) -> str:
    reasons = list(party.reasons.items())
    shown = reasons[:N_REASONS]
    items = "".join(
        f"<dd><span>{escape(kind)} in {_round_ranges(rounds)}</span>"
        f"{_shorten(reason)}</dd>"
        for (kind, reason), rounds in shown
    )
    omitted = truncation_note(len(shown), len(reasons), "reasons, the first")
    last = f"<dd>{omitted}</dd>" if omitted else ""
    return f"<dt>{escape(party.name)}</dt>{items}{last}"


def _shorten(reason: str) -> str:
    if len(reason) > MAX_REASON:
        reason = reason[: MAX_REASON - 1] + "…"
    return escape(reason) if reason else "No reason was given."


def _round_ranges(rounds: Sequence[int], n_most: int = 12) -> str:
    """Join neighbours: rounds 1–3, 7; after `n_most` ranges only how many more."""
    runs: list[list[int]] = []
    for round_ in rounds:
        if runs and round_ == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], round_]
        else:
            runs.append([round_])
    ranges = ["–".join(map(str, run)) for run in runs]
    if len(ranges) > n_most:
        ranges[n_most:] = [f"{len(ranges) - n_most:,} more"]
    return f"round{'s' if len(rounds) > 1 else ''} {', '.join(ranges)}"


def merge_groups(history: Sequence[RoundReport]) -> list[RoundReport]:
    """Merge the lines of groups or ensemble members, which train at the same time.

    Counts and bytes are summed, durations are those of the slowest. Loss and accuracy
    belong to one model each and are left out where there are several.
    """
    rounds: dict[int, list[RoundReport]] = {}
    for report in history:
        rounds.setdefault(report.round, []).append(report)
    return [lines[0] if len(lines) == 1 else _merge(lines) for lines in rounds.values()]


def by_group(history: Sequence[RoundReport]) -> dict[str | None, list[RoundReport]]:
    """Split a history by global model, or by ensemble member."""
    groups: dict[str | None, list[RoundReport]] = {}
    for report in history:
        groups.setdefault(report.group, []).append(report)
    return groups


def last_scores(
    history: Sequence[RoundReport],
) -> tuple[float | None, float | None, int]:
    """Loss and accuracy that were measured last, and the round of that (0: none).

    With groups: the mean over the models, each on its own samples, weighted by their
    number.
    """
    scored = [
        next((r for r in reversed(lines) if is_number(r.loss)), None)
        for lines in by_group(history).values()
    ]
    reports = [report for report in scored if report]
    round_ = max((report.round for report in reports), default=0)
    losses = [(r.loss, r.evaluated) for r in reports if r.loss is not None]
    shares = [(r.accuracy, r.evaluated) for r in reports if r.accuracy is not None]
    return _weighted_mean(losses), _weighted_mean(shares), round_


def _merge(lines: Sequence[RoundReport]) -> RoundReport:
    summed = (
        "chosen", "reported", "fused", "refused", "bytes_moved", "bytes_saved",
        "evaluate_seconds", "combine_seconds", "restarts",
    )  # fmt: skip
    longest = ("seconds", "train_seconds", "wait_seconds")
    merged = dataclasses.replace(
        lines[0],
        parties=[party for line in lines for party in line.parties],
        loss=None,
        accuracy=None,
        group=None,
    )
    values: dict[str, Any] = {}
    for name in summed:
        values[name] = total(getattr(line, name) for line in lines)
    for name in longest:
        own = [getattr(line, name) for line in lines]
        values[name] = None if None in own else max(own)
    return dataclasses.replace(merged, **values)


def _weighted_mean(values: Sequence[tuple[float, int]]) -> float | None:
    n = sum(weight for _, weight in values)
    if len(values) < 2 or not n:
        return values[0][0] if values else None
    return sum(value * weight for value, weight in values) / n
