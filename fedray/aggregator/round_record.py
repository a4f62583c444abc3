"""The record of one round while it runs: who did what, and how many bytes moved.

Columns of numbers, not an object for each party: there may be very many.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from fedray.config import FederationConfig
from fedray.messages import (
    APART,
    FUSED,
    REFUSED,
    WAITING,
    Outcome,
    PartyLine,
    Rejection,
    Report,
    RoundReport,
)

T = TypeVar("T")
DECIDED = (
    "aggregated", "estimate", "threshold", "growth", "best", "group", "joined", "left",
)  # fmt: skip
FINE = (Outcome(WAITING), Outcome(FUSED), Outcome(APART))
TOLD = 20  # parties in trouble that are named while a round runs


class RoundRecord:
    """Bookkeeping of one round; every chosen party ends with exactly one outcome.

    chosen : (K,) ascending places in the config.
    """

    def __init__(
        self,
        round: int,
        chosen: np.ndarray,
        config: FederationConfig,
        group: str | None = None,
    ):
        self.round, self.chosen, self.config = round, chosen, config
        self.n_samples = np.zeros(len(chosen), np.int64)
        self.loss, self.drift, self.seconds = np.full((3, len(chosen)), np.nan)
        self.node = np.full(len(chosen), -1)  # place in `nodes`
        self.outcome = np.zeros(len(chosen), np.int64)  # place in `outcomes`
        self.nodes: list[str] = []
        self.outcomes = list(FINE)
        self.late: set[str] = set()  # actors
        self.aggregated = True
        self.best: str | None = None  # party whose model all adopted
        self.group = group  # whose global model this is; None: of all
        self.estimate: float | None = None  # of an adaptive round
        self.threshold: float | None = None
        self.growth: float | None = None
        self.joined: list[str] = []
        self.left: list[str] = []
        self.n_wanted = len(chosen)  # reports after which the round is closed
        self.train_seconds, self.wait_seconds = 0.0, 0.0
        self.bytes_moved, self.model_bytes, self.restarts = 0, 0, 0
        self.notes: dict[int, str] = {}  # place in the config -> what must be known

    @property
    def n_reported(self) -> int:
        """Parties that have trained and said so."""
        return int((self.node >= 0).sum())

    def report(self, report: Report) -> None:
        """Parties have trained; whether their updates count is still open."""
        at = np.searchsorted(self.chosen, report.parties)
        self.n_samples[at], self.loss[at] = report.n_samples, report.loss
        self.drift[at], self.seconds[at] = report.drift, report.party_seconds()
        self.node[at] = _place(self.nodes, report.node)
        self.train_seconds = max(self.train_seconds, report.seconds)
        self.notes |= report.notes

    def settle(
        self,
        parties: np.ndarray,
        outcome: Outcome,
        refused: Mapping[int, Rejection] | None = None,
    ) -> None:
        """Set the outcome of these parties, but for those whose update was refused."""
        at = np.searchsorted(self.chosen, parties)
        self.outcome[at] = _place(self.outcomes, outcome)
        for party, rejection in (refused or {}).items():
            self.settle(np.array([party]), Outcome.refused(rejection))

    def told(self) -> list[str]:
        """What parties say beside their numbers, a line each."""
        notes = sorted(self.notes.items())
        said = [f"party {self.config.party_name(p)} {note}" for p, note in notes]
        for name in self.joined:
            said.append(f"party {name} has joined: round {self.round} is its first")
        for name in self.left:
            said.append(f"party {name} has left: round {self.round} is without it")
        return said

    def n_with(self, kind: str) -> int:
        """How many parties have an outcome of a kind."""
        codes = [i for i, known in enumerate(self.outcomes) if known.kind == kind]
        return int(np.isin(self.outcome, codes).sum())

    def in_trouble(self) -> np.ndarray:
        """Places within `chosen` of those late, failed or refused so far."""
        return np.flatnonzero(self.outcome >= len(FINE))

    def troubled(self) -> dict[str, str]:
        """The first parties that were late, failed or were refused, and why."""
        lines = [self._line(i) for i in self.in_trouble()[:TOLD]]
        return {line.name: line.outcome for line in lines}

    def close(
        self,
        score: tuple[float | None, float | None, int],
        seconds: float,
        evaluate_seconds: float,
    ) -> RoundReport:
        """The round's line in the history."""
        loss, accuracy, n_samples = score
        shown = self._shown()
        return RoundReport(
            round=self.round,
            chosen=len(self.chosen),
            reported=self.n_reported,
            fused=self.n_with(FUSED),
            refused=self.n_with(REFUSED),
            loss=loss,
            accuracy=accuracy,
            bytes_moved=self.bytes_moved,
            seconds=seconds,
            train_seconds=self.train_seconds,
            evaluate_seconds=evaluate_seconds,
            evaluated=n_samples,
            parties=[self._line(i) for i in shown],
            summary=self._summary() if len(shown) < len(self.chosen) else None,
            wait_seconds=self.wait_seconds,
            combine_seconds=max(0.0, seconds - evaluate_seconds - self.wait_seconds),
            bytes_saved=max(0, self._bytes_plain() - self.bytes_moved),
            restarts=self.restarts,
            **{name: getattr(self, name) for name in DECIDED},
        )

    def _bytes_plain(self) -> int:
        """What a whole model to each party that reported, and one back, would be."""
        return 2 * self.n_reported * self.model_bytes

    def _shown(self) -> np.ndarray:
        """At most `history_parties`, in config order: those in trouble first."""
        n_most = self.config.history_parties
        ranked = np.argsort(self.outcome < len(FINE), kind="stable")
        return np.sort(ranked[:n_most])

    def _line(self, i: int) -> PartyLine:
        name = self.config.party_name(int(self.chosen[i]))
        outcome = self.outcomes[self.outcome[i]]
        text, code = str(outcome), outcome.code
        if self.node[i] < 0:
            return PartyLine(name, outcome=text, code=code)
        return PartyLine(
            name,
            self.nodes[self.node[i]],
            int(self.n_samples[i]),
            _number(self.loss[i]),
            _number(self.drift[i]),
            float(self.seconds[i]),
            text,
            self.notes.get(int(self.chosen[i])),
            code,
        )

    def _summary(self) -> dict[str, Any]:
        there = self.node >= 0
        columns = ("n_samples", "loss", "drift", "seconds")
        summary = {name: _spread(getattr(self, name)[there]) for name in columns}
        kinds: dict[str, int] = {}
        for i, known in enumerate(self.outcomes):
            n_parties = int((self.outcome == i).sum())
            kinds[known.kind] = kinds.get(known.kind, 0) + n_parties
        return summary | {"outcomes": {kind: n for kind, n in kinds.items() if n}}


def so_far(round: int, records: Sequence[RoundRecord]) -> dict[str, Any]:
    """What `Progress` says of the round under way."""
    troubled = [record.troubled() for record in records]
    return {
        "round": round,
        "chosen": sum(len(record.chosen) for record in records),
        "reported": sum(record.n_reported for record in records),
        "troubled": {name: why for each in troubled for name, why in each.items()},
    }


def _place(values: list[T], value: T) -> int:
    if value not in values:
        values.append(value)
    return values.index(value)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _spread(values: np.ndarray) -> dict[str, float] | None:
    """Least, median, greatest and sum of what is finite."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    return {
        "min": float(values.min()),
        "median": float(np.median(values)),
        "max": float(values.max()),
        "sum": float(values.sum()),
    }
