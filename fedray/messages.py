"""Everything that leaves a party or an aggregator. Nothing else does."""

from dataclasses import asdict, dataclass, field
from typing import Any

from fedray.weights import Weights


@dataclass(frozen=True)
class Update:
    """Weights after training, and how much they count.

    weights : names, shapes, dtypes of the global model.
    n_samples : training samples behind them, summed when updates are combined.
    n_parties : parties behind them.
    """

    weights: Weights
    n_samples: int
    n_parties: int = 1


@dataclass(frozen=True)
class Here:
    """Where an actor runs, and what it may use there."""

    node: str  # Ray node id, hex
    device: str = "cpu"  # cpu or cuda


@dataclass(frozen=True)
class Joined:
    """What a party says of itself before round 1."""

    party: str
    node: str  # Ray node id, hex
    device: str  # cpu or cuda
    n_train: int
    n_test: int


@dataclass(frozen=True)
class Report:
    """Small numbers about one update; travels by value."""

    party: str
    round: int
    node: str
    n_samples: int
    loss: float  # mean training loss of the last pass
    drift: float  # ‖w_k − w‖ over trainable parameters
    seconds: float  # loading the weights, training, reading them out
    n_bytes: int  # of the weights that this party received


@dataclass(frozen=True)
class Score:
    """How the global model does on one party's own test samples."""

    party: str
    node: str
    n_samples: int
    loss: float | None  # mean over the samples; None without samples
    accuracy: float | None  # None where accuracy means nothing (regression)
    n_bytes: int


@dataclass(frozen=True)
class PartyLine:
    """One party's line in a round's record."""

    name: str
    node: str | None = None
    n_samples: int | None = None
    loss: float | None = None
    drift: float | None = None
    seconds: float | None = None
    outcome: str = "waiting"  # fused | late | failed: why | refused: why


@dataclass(frozen=True)
class RoundReport:
    """One line of history.jsonl. Counts, except `parties`; times in seconds."""

    round: int
    chosen: int
    reported: int
    fused: int
    aggregated: bool
    refused: int
    loss: float | None
    accuracy: float | None
    bytes_moved: int
    seconds: float  # the whole round, evaluation included
    train_seconds: float  # the slowest party that reported
    evaluate_seconds: float  # the last part of the round
    evaluated: int  # test samples behind loss and accuracy
    parties: list[PartyLine] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain data for one line of JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> "RoundReport":
        """Rebuild from what `to_json` gave."""
        parties = [PartyLine(**party) for party in line["parties"]]
        return cls(**{**line, "parties": parties})


@dataclass(frozen=True)
class Progress:
    """What a running federation says to whoever follows it."""

    reports: list[RoundReport]  # rounds done that the follower has not seen
    round: int  # the round under way
    stage: str  # joining | training | evaluating | done
    chosen: int
    reported: int
    troubled: dict[str, str]  # parties late, failed or refused so far, and why
    notes: list[str]  # what else happened: damaged checkpoints, going on after a crash
