"""The record of one round while it runs: outcomes, reports, bytes moved.

Columns of numbers, not an object for each party: there may be very many.
"""

import copy
from collections.abc import Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fedray import policy
from fedray.config import FederationConfig
from fedray.config.edges import POPULATION
from fedray.messages import (
    APART,
    FAILED,
    FUSED,
    REFUSED,
    WAITING,
    Outcome,
    PartyLine,
    PartyScores,
    Rejection,
    Report,
    RoundReport,
)
from fedray.privacy.central_records import ranges_of

T = TypeVar("T", bound=Hashable)
FINE = (Outcome(WAITING), Outcome(FUSED), Outcome(APART))
N_NAMED = 20  # parties in trouble that are named while a round runs
_COLUMNS = ("_n_samples", "_loss", "_drift", "_seconds", "_rates", "_node", "_outcome")
_NUMBERS = ("wait_seconds", "bytes_moved", "restarts", "_train_seconds")


class Evaluation(NamedTuple):
    """How a global model does on test samples; no samples where it was not evaluated.

    seconds : that evaluating took.
    notes : what went wrong, for people.
    metrics : other values, by name.
    undefined : which of them have no value, and why.
    by_party : of each party's own samples, by its place in the config.
    """

    loss: float | None = None
    accuracy: float | None = None
    n_samples: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    metrics: Mapping[str, Any] = MappingProxyType({})
    undefined: tuple[str, ...] = ()
    by_party: PartyScores | None = None


class RoundRecord:
    """Bookkeeping of one round; every chosen party ends with exactly one outcome.

    chosen : (K,) ascending places in the config.
    group : whose global model this is; None: of all.
    joined, left : names of parties that are new since the last round, or gone.
    aggregated : whether updates were fused.
    n_wanted : of a round that asks parties one by one: how many updates it is made of.
        Of the chosen those of whom nothing came are left out. None: all are asked.
    best : the party whose model all adopted.
    privacy : what has been spent until now, as `RoundReport` has it.
    """

    def __init__(
        self,
        round: int,
        chosen: np.ndarray,
        config: FederationConfig,
        group: str | None = None,
        changes: tuple[Sequence[str], Sequence[str]] = ((), ()),
    ):
        self.round, self.chosen, self.config = round, chosen, config
        self.group = group
        self.joined, self.left = map(list, changes)
        self.aggregated, self.best = True, None  # type: bool, str | None
        self.n_wanted: int | None = None
        self._arrivals: dict[str, Any] = {}
        self.skipped = ""  # why the round is over without its updates
        self.data_notes: list[str] = []  # of data that has changed
        self.privacy: dict[str, Any] = {}
        self.edge_counts: dict[str, int] = {}  # by state, and bytes, as it closes
        self.wait_seconds, self.bytes_moved, self.restarts = 0.0, 0, 0
        self._disagreement: dict[str, Any] = {}
        self._train_seconds = 0.0
        self._n_samples = np.zeros(len(chosen), np.int64)
        columns = np.full((4, len(chosen)), np.nan)
        self._loss, self._drift, self._seconds, self._rates = columns
        self.rate_notes: list[str] = []  # of a learning rate that falls
        self.release_notes: list[str] = []  # of noise and rounds that count again
        self._node = np.full(len(chosen), -1)  # place in `_nodes`
        self._outcome = np.zeros(len(chosen), np.int64)  # place in `_outcomes`
        self._nodes: dict[str, int] = {}
        self._outcomes = {outcome: i for i, outcome in enumerate(FINE)}
        self._notes: dict[int, str] = {}  # place in the config -> what must be known

    @property
    def n_reported(self) -> int:
        """Parties that have trained and said so."""
        return int((self._node >= 0).sum())

    @property
    def n_refused(self) -> int:
        """Parties among them whose updates are refused, as far as is known."""
        numbers = [i for o, i in self._outcomes.items() if o.kind == REFUSED]
        if not numbers:
            return 0
        return int(((self._node >= 0) & np.isin(self._outcome, numbers)).sum())

    def add_report(self, report: Report) -> None:
        """Parties have trained; who is refused by its own actor is known."""
        at = np.searchsorted(self.chosen, report.parties)
        self._n_samples[at], self._loss[at] = report.n_samples, report.loss
        self._drift[at], self._seconds[at] = report.drift, report.party_seconds()
        self._node[at] = _intern(self._nodes, report.node)
        self._train_seconds = max(self._train_seconds, report.seconds)
        if report.learning_rate is not None:
            self._rates[at] = report.learning_rate
        if (spending := report.spending) is not None:
            epsilon = float(np.nanmax(spending.run_epsilon))
            self.note_samples({"epsilon": epsilon, "delta": spending.delta})
        self._notes |= report.notes
        for party, rejection in report.refused.items():
            self.settle(np.array([party]), Outcome.refused(rejection))

    def settle(
        self,
        parties: np.ndarray,
        outcome: Outcome,
        refused: Mapping[int, Rejection] | None = None,
    ) -> None:
        """Set the outcome of these parties, but for those whose update was refused."""
        at = np.searchsorted(self.chosen, parties)
        self._outcome[at] = _intern(self._outcomes, outcome)
        for party, rejection in (refused or {}).items():
            self.settle(np.array([party]), Outcome.refused(rejection))

    def note_samples(self, spent: Mapping[str, float] | None) -> None:
        """Note what single samples of a party have spent; that of the most stays."""
        before = self.privacy.get("samples")
        if spent and (before is None or spent["epsilon"] > before["epsilon"]):
            self.privacy["samples"] = spent

    def note_disagreement(
        self, estimate: float, threshold: float, growth: float
    ) -> None:
        """Note by what an adaptive round decided whether to fuse."""
        self._disagreement = {
            "estimate": estimate,
            "threshold": threshold,
            "growth": growth,
        }

    def note_arrivals(
        self, order: list[list[int]], expired: int, virtual_s: float | None
    ) -> None:
        """Note which updates an asynchronous step is made of, as `RoundReport` has it.

        order : place in the config and version of each, in the order of arrival.
        """
        stale = [self.round - 1 - version for _, version in order]
        self._arrivals = {
            "order": order,
            "staleness": float(np.mean(stale)),
            "expired": expired,
            "virtual_s": virtual_s,
        }

    @property
    def has_failures(self) -> bool:
        """Whether a party's call has ended in an error."""
        return any(outcome.kind == FAILED for outcome in self._outcomes)

    def samples_of(self, parties: Sequence[int]) -> list[int]:
        """Training samples of some of the chosen, as they reported."""
        at = np.searchsorted(self.chosen, parties)
        return self._n_samples[at].tolist()

    def party_notes(self) -> list[str]:
        """A line for each party's note, why there is no sum, and where errors are."""
        notes = sorted(self._notes.items())
        lines = [f"party {self.config.party_name(p)} {note}" for p, note in notes]
        if self.skipped:
            lines.append(f"round {self.round} is skipped: {self.skipped}")
        if self.has_failures:
            log = self.config.errors_log
            lines.append(f"whole errors are in {log} on the parties' nodes")
        return lines

    def notes(self) -> list[str]:
        """A line for a learning rate that falls, and for who has joined or left."""
        lines = [*self.rate_notes, *self.release_notes]
        for name in self.joined:
            lines.append(f"party {name} has joined: round {self.round} is its first")
        for name in self.left:
            lines.append(f"party {name} has left: round {self.round} is without it")
        return lines

    def troubled(self) -> dict[str, str]:
        """The first parties that were late, failed or were refused, and why."""
        places = np.flatnonzero(self._outcome >= len(FINE))[:N_NAMED]
        return {line.name: line.outcome or "" for line in self._lines(places)}

    def places_of(self, kind: str) -> np.ndarray:
        """Places in the config of the chosen that have an outcome of this kind."""
        numbers = [i for o, i in self._outcomes.items() if o.kind == kind]
        return self.chosen[np.isin(self._outcome, numbers)]

    def to_json(self) -> dict[str, Any]:
        """All that was noted until now, as plain data; for the run's operator alone."""
        return {
            "chosen": self.chosen.tolist(),
            "outcomes": [[o.kind, o.code, o.detail] for o in self._outcomes],
            "nodes": [*self._nodes],
            "columns": {name: getattr(self, name).tolist() for name in _COLUMNS},
            "numbers": {name: getattr(self, name) for name in _NUMBERS},
            "notes": [[place, note] for place, note in self._notes.items()],
        }

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Take over what the record of this round had noted before a crash."""
        self.chosen = np.array(plain["chosen"], np.int64)
        outcomes = (Outcome(*parts) for parts in plain["outcomes"])
        self._outcomes = {outcome: i for i, outcome in enumerate(outcomes)}
        self._nodes = {node: i for i, node in enumerate(plain["nodes"])}
        for name in _COLUMNS:
            dtype = getattr(self, name).dtype
            setattr(self, name, np.array(plain["columns"][name], dtype))
        for name in _NUMBERS:
            setattr(self, name, plain["numbers"][name])
        self._notes = dict(plain["notes"])

    def close(
        self, evaluation: Evaluation, seconds: float, model_bytes: int = 0
    ) -> RoundReport:
        """The round's line in the history.

        seconds : since the round began.
        model_bytes : of a model as it travels in float32, for the bytes saved.
        """
        record = self if self.n_wanted is None else self._without_waiting()
        return record._report(evaluation, seconds, model_bytes)

    def _report(
        self, evaluation: Evaluation, seconds: float, model_bytes: int
    ) -> RoundReport:
        places, counts = self._places_to_list(), self._count_kinds()
        in_full = 2 * self.n_reported * model_bytes  # to each that reported, and back
        return RoundReport(
            round=self.round,
            chosen=len(self.chosen),
            reported=self.n_reported,
            fused=counts.get(FUSED, 0),
            aggregated=self.aggregated,
            refused=counts.get(REFUSED, 0),
            bytes_moved=self.bytes_moved,
            parties=self._lines(places),
            summary=self._summary() if len(places) < len(self.chosen) else None,
            best=self.best,
            group=self.group,
            bytes_saved=max(0, in_full - self.bytes_moved),
            restarts=self.restarts,
            joined=self.joined,
            left=self.left,
            notes=[*self.data_notes, *evaluation.undefined],
            skipped=self.skipped,
            **self._measured(evaluation),
            learning_rate=self._learning_rate(),
            privacy=self.privacy,
            edges=self._edges(),
            **self._stage_times(evaluation, seconds),
            **self._disagreement,
            **self._arrivals,
        )

    def _edges(self) -> dict[str, Any]:
        """Edges by state; numbers of those that the config does not list, by part."""
        if self.config.edges is None:
            return dict(self.edge_counts)
        by_kind = {"chosen": self.chosen, "fused": self.places_of(FUSED)}
        numbers = {
            kind: ranges_of((places[places >= POPULATION] - POPULATION).tolist())
            for kind, places in by_kind.items()
        }
        return {**self.edge_counts, **numbers}

    @property
    def n_awaited(self) -> int:
        """Parties whose reports a round waits for, while it runs."""
        return len(self.chosen) if self.n_wanted is None else self.n_wanted

    def _without_waiting(self) -> "RoundRecord":
        """The record of those alone of whom something has come, or will not.

        A copy: who follows the run may be reading this one.
        """
        rows, record = np.flatnonzero(self._outcome), copy.copy(self)  # 0: waiting
        for name in ("chosen", *_COLUMNS):
            setattr(record, name, getattr(self, name)[rows])
        return record

    def _learning_rate(self) -> float | None:
        """Of the last step of the parties that reported: their median."""
        rates = self._rates[np.isfinite(self._rates)]
        return float(np.median(rates)) if len(rates) else None

    def _measured(self, evaluation: Evaluation) -> dict[str, Any]:
        """Fields of the report that are about test samples."""
        own = evaluation.by_party
        return {
            "loss": evaluation.loss,
            "accuracy": evaluation.accuracy,
            "evaluated": evaluation.n_samples,
            "metrics": dict(evaluation.metrics),
            "spread": policy.spreads(own),
            "tests": {} if own is None else self._tests(own),
        }

    def _tests(self, own: PartyScores) -> dict[str, list[Any]]:
        """Columns of the parties that do worst on their own tests, up to so many."""
        rows = policy.worst_rows(own, self.config.history_parties)
        if len(own.parties) < 2 or not len(rows):
            return {}
        names = [self.config.party_name(place) for place in own.parties[rows].tolist()]
        return policy.to_plain(own, rows, names)

    def _stage_times(self, evaluation: Evaluation, seconds: float) -> dict[str, Any]:
        """Seconds of the whole round and of its stages, by the report's fields."""
        return {
            "seconds": seconds,
            "train_seconds": self._train_seconds,
            "evaluate_seconds": evaluation.seconds,
            "wait_seconds": self.wait_seconds,
            "combine_seconds": max(
                0.0, seconds - evaluation.seconds - self.wait_seconds
            ),
        }

    def _places_to_list(self) -> np.ndarray:
        """At most `history_parties`, in config order: those in trouble first."""
        n_most = self.config.history_parties
        ranked = np.argsort(self._outcome < len(FINE), kind="stable")
        return np.sort(ranked[:n_most])

    def _lines(self, places: np.ndarray) -> list[PartyLine]:
        """The lines of some of the chosen, by places within `chosen`."""
        texts = [(str(outcome), outcome.code) for outcome in self._outcomes]
        nodes = list(self._nodes)
        lines = []
        for i, party in zip(places.tolist(), self.chosen[places].tolist(), strict=True):
            name, (text, code) = self.config.party_name(party), texts[self._outcome[i]]
            if self._node[i] < 0:
                lines.append(PartyLine(name, outcome=text, code=code))
                continue
            line = PartyLine(
                name,
                nodes[self._node[i]],
                int(self._n_samples[i]),
                _number(self._loss[i]),
                _number(self._drift[i]),
                float(self._seconds[i]),
                text,
                self._notes.get(party),
                code,
            )
            lines.append(line)
        return lines

    def _count_kinds(self) -> dict[str, int]:
        """How many parties have an outcome of each kind; only kinds that occur."""
        n_parties = np.bincount(self._outcome, minlength=len(self._outcomes)).tolist()
        counts: dict[str, int] = {}
        for outcome, n in zip(self._outcomes, n_parties, strict=True):
            counts[outcome.kind] = counts.get(outcome.kind, 0) + n
        return {kind: n for kind, n in counts.items() if n}

    def _summary(self) -> dict[str, Any]:
        """Of all the chosen, where not each has a line."""
        reported = self._node >= 0
        return {
            "n_samples": _spread(self._n_samples[reported]),
            "loss": _spread(self._loss[reported]),
            "drift": _spread(self._drift[reported]),
            "seconds": _spread(self._seconds[reported]),
            "outcomes": self._count_kinds(),
        }


def progress_of(records: Sequence[RoundRecord]) -> dict[str, Any]:
    """Fields of `Progress` about the round under way, of all global models."""
    troubled: dict[str, str] = {}
    for record in records:
        troubled |= record.troubled()
    return {
        "chosen": sum(record.n_awaited for record in records),
        "reported": sum(record.n_reported for record in records),
        "troubled": troubled,
    }


def _intern(numbers: dict[T, int], value: T) -> int:
    """The number of a value; a new one for a value that has none yet."""
    return numbers.setdefault(value, len(numbers))


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
