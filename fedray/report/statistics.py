"""The history seen from the parties: who did what, how often, and why not."""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedray.messages import APART, FUSED, PartyLine, RoundReport
from fedray.report.formatting import (
    NOTHING,
    count,
    duration,
    is_number,
    number,
    table,
    text,
)

N_ROWS = 1_000  # more would make the page slow to open
N_REASONS = 20  # of one party
N_LETTERS = 600  # of one reason
JOINED = "joined", "It may be chosen from then on."
LEFT = "left", "It is asked for nothing from then on."


@dataclass
class Tally:
    """One party over all rounds."""

    name: str
    kinds: dict[int, str] = field(default_factory=dict)  # round -> outcome, one word
    reasons: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    loss: float | None = None  # the last one told, and so on
    n_samples: int | None = None
    node: str | None = None

    def add(self, round_: int, line: PartyLine) -> None:
        """Take in what became of the party in one more round."""
        kind, why = line.result.kind, line.result.reason
        self.kinds[round_] = kind
        if kind not in (FUSED, APART) and (why or kind in ("failed", "refused")):
            self.reasons.setdefault((kind, why), []).append(round_)
        if line.note:
            self.reasons.setdefault(("note", line.note), []).append(round_)
        if is_number(line.seconds):
            self.seconds.append(line.seconds)
        self.loss = self.loss if line.loss is None else line.loss
        self.n_samples = self.n_samples if line.n_samples is None else line.n_samples
        self.node = line.node or self.node

    @property
    def n_trouble(self) -> int:
        """Rounds it was chosen for but not fused in."""
        return sum(kind not in (FUSED, APART) for kind in self.kinds.values())


def tally(history: Sequence[RoundReport]) -> list[Tally]:
    """All parties that were ever chosen, party-2 before party-10."""
    found: dict[str, Tally] = {}
    for report in history:
        for line in report.parties:
            found.setdefault(line.name, Tally(line.name)).add(report.round, line)
        for names, turn in ((report.joined, JOINED), (report.left, LEFT)):
            for name in names:
                party = found.setdefault(name, Tally(name))
                party.reasons.setdefault(turn, []).append(report.round)
    return sorted(found.values(), key=lambda party: _order(party.name))


def _order(name: str) -> list:
    """Digits compare as numbers; how many there are does not matter."""
    parts = re.split(r"(\d+)", name)
    parts[1::2] = [(len(d.lstrip("0")), d.lstrip("0")) for d in parts[1::2]]
    return [*parts]


def first_in_trouble(parties: Sequence[Tally], n_most: int) -> list[Tally]:
    """At most `n_most`, in their order: those that were chosen but not fused most."""
    ranked = sorted(range(len(parties)), key=lambda i: -parties[i].n_trouble)
    return [parties[i] for i in sorted(ranked[:n_most])]


def party_table(parties: Sequence[Tally]) -> str:
    """One row a party."""
    shown = first_in_trouble(parties, N_ROWS)
    head = (
        "party", "chosen", "fused", "late", "failed", "refused",
        "mean time", "last loss", "samples", "node",
    )  # fmt: skip
    made = table("Parties", head, [_row(party) for party in shown])
    return made + cut(len(shown), len(parties), "parties, those with most trouble")


def _row(party: Tally) -> list[str]:
    counts = Counter(party.kinds.values())
    kinds = [counts[kind] for kind in ("fused", "late", "failed", "refused")]
    n_timed = len(party.seconds)
    return [
        text(party.name),
        f"{len(party.kinds):,}",
        *(f"{n:,}" if n else '<span class="none">0</span>' for n in kinds),
        duration(sum(party.seconds) / n_timed if n_timed else None),
        number(party.loss),
        NOTHING if party.n_samples is None else f"{party.n_samples:,}",
        f"<code>{text(party.node[:8])}</code>" if party.node else NOTHING,
    ]


def reason_list(parties: Sequence[Tally]) -> str:
    """Why updates were not fused: under each party, its reasons with their rounds."""
    found = [party for party in parties if party.reasons]
    if not found:
        return "<p>No party failed and no update was refused.</p>"
    items = "\n".join(_reasons(party) for party in found[:N_ROWS])
    more = cut(len(found[:N_ROWS]), len(found), "parties with reasons, the first")
    return f'<dl class="reasons">{items}</dl>{more}'


def _reasons(party: Tally) -> str:
    reasons = list(party.reasons.items())
    said = "".join(
        f"<dd><span>{text(kind)} in {_rounds(rounds)}</span>{_short(why)}</dd>"
        for (kind, why), rounds in reasons[:N_REASONS]
    )
    more = cut(len(reasons[:N_REASONS]), len(reasons), "reasons, the first")
    return f"<dt>{text(party.name)}</dt>{said}" + (f"<dd>{more}</dd>" if more else "")


def _short(why: str) -> str:
    short = why if len(why) <= N_LETTERS else why[: N_LETTERS - 1] + "…"
    return text(short) if short else "No reason was given."


def _rounds(rounds: Sequence[int], n_most: int = 12) -> str:
    """Neighbours joined: rounds 1–3, 7; after `n_most` only how many more."""
    runs: list[list[int]] = []
    for round_ in rounds:
        if runs and round_ == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], round_]
        else:
            runs.append([round_])
    words = ["–".join(map(str, run)) for run in runs]
    if len(words) > n_most:
        words[n_most:] = [count(len(words) - n_most, "more", "more")]
    return f"round{'s' if len(rounds) > 1 else ''} {', '.join(words)}"


def cut(n_shown: int, n_all: int, what: str) -> str:
    """Say that not everything is shown; nothing where it is."""
    if n_shown == n_all:
        return ""
    return f'<p class="small">Shown: {n_shown:,} of {n_all:,} {what}.</p>'


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
