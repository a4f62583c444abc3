"""The record of one round while it runs: who did what, and how many bytes moved."""

from collections.abc import Sequence
from dataclasses import replace

from fedray.messages import PartyLine, Report, RoundReport

FUSED, LATE = "fused", "late"


class RoundRecord:
    """Bookkeeping of one round; every chosen party ends with exactly one outcome."""

    def __init__(self, round: int, chosen: Sequence[str]):
        self.round, self.chosen = round, list(chosen)
        self.lines = {name: PartyLine(name) for name in chosen}
        self.reported: dict[str, Report] = {}
        self.bytes_moved = 0

    def report(self, report: Report) -> None:
        """A party has trained; whether its update counts is still open."""
        self.reported[report.party] = report
        self.lines[report.party] = PartyLine(
            report.party,
            report.node,
            report.n_samples,
            report.loss,
            report.drift,
            report.seconds,
        )

    def settle(self, name: str, outcome: str) -> None:
        """Say what became of one party's update."""
        self.lines[name] = replace(self.lines[name], outcome=outcome)

    def with_outcome(self, start: str) -> list[str]:
        """Parties whose outcome starts with a word."""
        return [n for n, line in self.lines.items() if line.outcome.startswith(start)]

    def troubled(self) -> dict[str, str]:
        """Parties that were late, failed or were refused, and why."""
        fine = (FUSED, PartyLine("").outcome)
        lines = self.lines.items()
        return {n: line.outcome for n, line in lines if line.outcome not in fine}

    def close(
        self,
        score: tuple[float | None, float | None, int],
        seconds: float,
        evaluate_seconds: float,
    ) -> RoundReport:
        """The round's line in the history."""
        fused = self.with_outcome(FUSED)
        loss, accuracy, n_samples = score
        return RoundReport(
            round=self.round,
            chosen=len(self.chosen),
            reported=len(self.reported),
            fused=len(fused),
            aggregated=True,
            refused=len(self.with_outcome("refused")),
            loss=loss,
            accuracy=accuracy,
            bytes_moved=self.bytes_moved,
            seconds=seconds,
            train_seconds=max((r.seconds for r in self.reported.values()), default=0.0),
            evaluate_seconds=evaluate_seconds,
            evaluated=n_samples,
            parties=list(self.lines.values()),
        )
