"""Messages of parties and aggregator: all data that leaves one of them.

Before round 1 surveys of the parties' data do too: `fedray.survey`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from fedray.privacy.sample_budget import Budget, Spending
from fedray.weights import Weights


@dataclass(frozen=True)
class Origin:
    """Which party made an update, in which round of which run."""

    run: str  # the federation
    round: int
    party: int  # place in the config


@dataclass(frozen=True)
class Update:
    """Weights after training, with the counts that weight them.

    weights : names, shapes, dtypes of the global model.
    n_samples : training samples behind them, summed when updates are combined.
    n_parties : parties behind them.
    origin : of one party's own update; None once it is combined.
    """

    weights: Weights
    n_samples: int
    n_parties: int = 1
    origin: Origin | None = None


@dataclass(frozen=True)
class ActorLocation:
    """The node, device and process of an actor."""

    node: str  # Ray node id, hex
    device: str = "cpu"  # cpu or cuda
    process: str = ""  # Ray worker id, hex: another one after a restart


@dataclass(frozen=True)
class SearchHit:
    """A party's document that is similar to a query: its tag, never its text."""

    party: str
    tag: str
    score: float  # cosine, 1 is alike


# data that an actor has loaded, beside what the run began with
SAME, CHANGED = "same", "changed"
FIRST = "first"  # there is nothing on its node to compare with


@dataclass(frozen=True, eq=False)
class PartyInfo:
    """Sample counts and location that an actor reports before round 1."""

    node: str  # Ray node id, hex
    device: str  # cpu or cuda
    n_train: np.ndarray  # (parties,) int64: what weighs each, in config order
    n_test: int  # of all of them
    process: str = ""  # as `ActorLocation` says
    sample: tuple[int, ...] = ()  # an ensemble's member: shape of what it takes
    n_classes: int = 0  # and how many classes it tells apart
    data: str = SAME  # SAME, CHANGED or FIRST
    moved: tuple[str, ...] = ()  # frozen tensors that a step of training moved
    n_frozen_bytes: int = 0  # of those that this actor received, once in its life
    identity: bytes = b""  # Ed25519 public key, if updates are masked
    budget: Budget | None = None  # with `dp_sgd`: of the party nearest to its limit


@dataclass(frozen=True)
class ProbeResult:
    """What `fedray check` finds at an actor: counts, shapes and dtypes, no sample."""

    node: str  # Ray node id, hex
    device: str  # cpu or cuda
    n_train: int  # what weighs them all together
    n_test: int
    samples: str  # dtype and shape of one; empty where they are no arrays
    targets: str
    peak_bytes: int  # of the process that looked: framework, data and model
    sample: tuple[int, ...] = ()  # of an ensemble's member, as `PartyInfo` says
    n_classes: int = 0
    moved: tuple[str, ...] = ()
    unrepeated: str = ""  # tensors that a second training made otherwise
    unrepeated_samples: str = ""  # that a second pass gave otherwise
    notes: tuple[str, ...] = ()  # on dp_sgd: what the run would spend; if it is slow


@dataclass(frozen=True, eq=False)
class Drift:
    """Drift of one actor's parties since their last fusion; p_k is a party's weight.

    share : Σ p_k over those whose weights are finite.
    squares : Σ p_k ‖u_k‖², u_k = w_k − w over trainable parameters.
    levels : (2048,) int8, of which one is `step`: Σ p_k S(u_k), S as in
        `fedray.weights.sketch`. Rounding adds less than a thousandth to its length.
    """

    share: float
    squares: float
    levels: np.ndarray
    step: float

    @property
    def sketch(self) -> np.ndarray:
        """(2048,) float64."""
        return self.levels * self.step


IN_FEW_ROUNDS = ("metrics", "stop_reason", "spread", "tests", "learning_rate",
                 "plateau", "privacy", "skipped", "edges", "staleness", "expired",
                 "virtual_s", "order")  # fmt: skip
WAITING, FUSED, APART = "waiting", "fused", "apart"  # kinds of outcomes without trouble
LATE, FAILED, REFUSED = "late", "failed", "refused"


@dataclass(frozen=True)
class Rejection:
    """Why one party's update must not be fused.

    code : type | origin | count | schema | non_finite | norm | budget | other.
    detail : one line for people, without sample values.
    """

    code: str
    detail: str

    def __str__(self) -> str:
        return self.detail

    @classmethod
    def parse(cls, detail: str) -> "Rejection":
        """Find the code of a line that was written without one."""
        codes = (code for phrase, code in _PHRASES.items() if phrase in detail)
        return cls(next(codes, "other"), detail)


_PHRASES = {  # of a rejection's detail, and the code that it means
    "asked for was": "origin",
    "max_update_norm": "norm",
    "not finite": "non_finite",
    "tensors missing": "schema",
    "needed": "schema",
    "n_samples": "count",
    "not an Update": "type",
    "would bring epsilon": "budget",
}
REJECTION_CODES = (*dict.fromkeys(_PHRASES.values()), "other")


@dataclass(frozen=True)
class Outcome:
    """What became of one party's part in a round; `str` gives the history's text.

    kind : waiting | fused | apart | late | failed | refused.
    code : what is counted within a kind. fused: late; late: busy; failed: call, lost,
        combine; refused: report, or a `Rejection`'s. Empty where there is only one.
    detail : for people; of fused/late and late/busy the round that was trained.
    """

    kind: str
    code: str = ""
    detail: str = ""

    def __str__(self) -> str:
        before = _BEFORE_DETAIL.get((self.kind, self.code), "")
        return f"{self.kind}: {before}{self.detail}" if self.detail else self.kind

    @property
    def reason(self) -> str:
        """The text without its kind; empty where nothing is to be said."""
        return str(self).removeprefix(self.kind).removeprefix(": ")

    @classmethod
    def refused(cls, rejection: Rejection) -> "Outcome":
        """The outcome of a party whose update was rejected."""
        return cls(REFUSED, rejection.code, rejection.detail)

    @classmethod
    @lru_cache(maxsize=1024)  # most of thousands of lines are alike
    def parse(cls, text: str, code: str = "") -> "Outcome":
        """Read a text of history.jsonl; lines of older runs have no code beside it."""
        kind, _, detail = (part.strip() for part in text.partition(":"))
        for (some, its_code), before in _BEFORE_DETAIL.items():
            if some == kind and detail.startswith(before):
                return cls(kind, its_code, detail.removeprefix(before))
        if kind == REFUSED and not code:
            code = Rejection.parse(detail).code
        return cls(kind, code or ("call" if kind == FAILED else ""), detail)


_BEFORE_DETAIL = {  # (kind, code) -> what a text says before the detail
    (FUSED, "late"): "late, of round ",
    (LATE, "busy"): "still trains round ",
    (FAILED, "lost"): "update lost: ",
    (FAILED, "combine"): "combining: ",
    (REFUSED, "report"): "its report ",
}


@dataclass(frozen=True, eq=False)
class Report:
    """Small numbers about what one actor trained in a round; travels by value.

    Arrays have one entry for each party that was asked, in config order.
    """

    round: int
    node: str
    parties: np.ndarray  # int64 places in the config
    n_samples: np.ndarray  # int64
    loss: np.ndarray  # mean training loss of the last pass
    drift: np.ndarray  # ‖w_k − w‖ over trainable parameters
    seconds: float  # of all: loading the weights, training, reading out, combining
    n_bytes: int  # of the weights that this actor received
    refused: dict[int, Rejection] = field(default_factory=dict)  # by place
    drifted: Drift | None = None  # of an adaptive round
    scores: np.ndarray | None = None  # (parties, 3): own tests, loss, accuracy
    process: str = ""  # as `ActorLocation` says
    notes: dict[int, str] = field(default_factory=dict)  # place -> what must be known
    data: str = SAME  # SAME, CHANGED or FIRST
    n_frozen_bytes: int = 0  # as `PartyInfo` says, of an actor that was restarted
    learning_rate: np.ndarray | None = None  # of each one's last step, if scheduled
    spending: Spending | None = None  # with `dp_sgd`
    absent: dict[int, Outcome] = field(default_factory=dict)  # edges, by place

    def party_seconds(self) -> np.ndarray:
        """Each party's part of the time; by samples where parties share an actor."""
        return self.seconds * self.n_samples / self.n_samples.sum()


@dataclass(frozen=True, eq=False)
class UpdateSketches:
    """Sketches of the first updates of one actor's parties, to compare them."""

    node: str
    parties: np.ndarray  # places in the config
    sketches: np.ndarray  # (parties, 2048) float32
    n_bytes: int  # of the weights that this actor received


class PartyScores(NamedTuple):
    """How one model does on each party's samples: columns, with a row for a party.

    Sums, so that what several actors measured of one party adds up.

    parties : (R,) int64: which ones; places in the config once they travel.
    n_samples : (R,) int64, above 0.
    loss, loss_weight : (R,) float64: the mean loss is their quotient.
    right, answers : (R,) float64: the accuracy is their quotient; no answers where
        accuracy means nothing (regression).
    """

    parties: np.ndarray
    n_samples: np.ndarray
    loss: np.ndarray
    loss_weight: np.ndarray
    right: np.ndarray
    answers: np.ndarray

    @classmethod
    def zeros(cls, n_samples: np.ndarray) -> "PartyScores":
        """Rows for parties with so many samples (R,), of which nothing is known."""
        rows = np.arange(len(n_samples))
        return cls(rows, n_samples, *np.zeros((4, len(rows))))

    def at(self, parties: np.ndarray) -> "PartyScores":
        """The rows that have samples; `parties` says who all rows are."""
        rows = np.flatnonzero(self.n_samples)
        return PartyScores(*(column[rows] for column in (parties, *self[1:])))

    @classmethod
    def concatenate(cls, each: Sequence["PartyScores"]) -> "PartyScores":
        """The rows of all, one after another."""
        return cls(*map(np.concatenate, zip(*each, strict=True)))

    def mean_losses(self) -> np.ndarray:
        """(R,) mean loss of each; NaN where nothing counts."""
        return divide(self.loss, self.loss_weight)

    def accuracies(self) -> np.ndarray:
        """(R,) accuracy of each; NaN where it means nothing."""
        return divide(self.right, self.answers)


class Scores(NamedTuple):
    """How one model does on samples, all together and by party.

    loss : mean over the samples; None without samples.
    accuracy : None where it means nothing (regression).
    weights : of loss and accuracy in means with others', where labels count and not
        samples; None: `n_samples`.
    metrics : other means, by name.
    states : sums that the config's metrics are computed of, by task and name.
    """

    n_samples: int = 0
    loss: float | None = None
    accuracy: float | None = None
    weights: tuple[float, float] | None = None
    metrics: Mapping[str, float] = MappingProxyType({})
    by_party: PartyScores | None = None
    states: Mapping[str, np.ndarray] = MappingProxyType({})

    @property
    def means(self) -> tuple[float | None, float | None]:
        """Loss and accuracy."""
        return self.loss, self.accuracy


@dataclass(frozen=True)
class Score:
    """Scores of the global model on one actor's test samples."""

    node: str
    scores: Scores
    n_bytes: int  # of the weights that this actor received
    data: str = SAME  # SAME, CHANGED or FIRST


@dataclass(frozen=True)
class Comparison:
    """How several models do on each party's own tests; none where nobody has any.

    by_model : of those trained `alone`, of the `global` one, and of parties' `own`.
    notes : by party, of its own model.
    """

    node: str
    by_model: dict[str, PartyScores]
    notes: dict[str, str] = field(default_factory=dict)


def divide(sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sums (R,) by their weights (R,): means; NaN where nothing was weighed."""
    return np.divide(sums, weights, out=np.full(len(sums), np.nan), where=weights > 0)


@dataclass(frozen=True)
class PartyLine:
    """One party's line in a round's record."""

    name: str
    node: str | None = None
    n_samples: int | None = None
    loss: float | None = None
    drift: float | None = None
    seconds: float | None = None
    # fused | apart | late | failed: why | refused: why; None: only the operator knows
    outcome: str | None = WAITING
    note: str | None = None  # what else must be known: document vectors that were lost
    code: str = ""  # of the outcome

    @property
    def result(self) -> Outcome | None:
        """The outcome as a value; None where only the operator knows it."""
        outcome = self.outcome
        return None if outcome is None else Outcome.parse(outcome, self.code)


BUDGET_SPENT = "budget_spent"  # a reason to stop that begins so: no more releases


def is_budget_spent(stop_reason: str) -> bool:
    """Whether training stopped because another release would exceed epsilon."""
    return stop_reason.startswith(f"{BUDGET_SPENT}:")


@dataclass(frozen=True)
class RoundReport:
    """One line of history.jsonl. Counts, except `parties`; times in seconds.

    What tells of single parties is None where a privacy mechanism hides it; the run's
    operator has it in operator.jsonl.
    """

    round: int
    chosen: int | None
    reported: int | None
    fused: int | None
    aggregated: bool
    refused: int | None
    loss: float | None
    accuracy: float | None
    bytes_moved: int | None
    seconds: float  # the whole round, evaluation included
    train_seconds: float | None  # the slowest actor that reported: a party, or several
    evaluate_seconds: float  # the last part of the round
    evaluated: int  # test samples behind loss and accuracy
    parties: list[PartyLine] = field(default_factory=list)  # up to `history_parties`
    summary: dict[str, Any] | None = None  # of all the chosen, where lines are left out
    estimate: float | None = None  # of the parties' disagreement, if adaptive
    threshold: float | None = None  # above which they fuse
    growth: float | None = None  # of the disagreement of one round, which they may have
    best: str | None = None  # party whose model all adopted
    group: str | None = None  # whose global model this is; None: of all
    wait_seconds: float | None = 0.0  # the aggregator's, until reports come
    combine_seconds: float | None = 0.0  # fetching, checking, folding, the step
    bytes_saved: int | None = 0  # beside a whole model to and from each that reported
    restarts: int | None = 0  # actors heard from in another process than before
    joined: list[str] = field(default_factory=list)  # parties new since the last round
    left: list[str] = field(default_factory=list)  # those there no longer
    notes: list[str] = field(default_factory=list)  # data that has changed
    # beside loss and accuracy: numbers, lists of one for each class, a confusion
    # matrix; None of a metric that is not defined for the test samples
    metrics: dict[str, Any] = field(default_factory=dict)
    stop_reason: str = ""  # why training stopped after it; empty: it was to go on
    learning_rate: float | None = None  # of the round's last step, if scheduled
    plateau: Mapping[str, Any] | None = None  # state of ReduceLROnPlateau afterwards
    # how the global model does on each party's own test samples, where there are
    # several: by name min, median, max, and worst_tenth, the mean of that many
    spread: dict[str, dict[str, float]] = field(default_factory=dict)
    tests: dict[str, list[Any]] = field(default_factory=dict)  # columns by name, a row
    # a party: the worst `history_parties`
    skipped: str = ""  # why it is over though no update counted; it is not run again
    # what has been spent until now: epsilon and delta of parties, and the releases that
    # it is of; under "samples" epsilon and delta of single samples, at the worst party
    privacy: dict[str, Any] = field(default_factory=dict)
    edges: dict[str, Any] = field(default_factory=dict)  # counts; ranges of numbers
    # asynchronous fusion: mean steps since the weights of the updates were sent, leases
    # that were over, time of a virtual clock; place and version (steps before) of each
    staleness: float | None = None
    expired: int | None = None
    virtual_s: float | None = None
    order: list[list[int]] = field(default_factory=list)

    @property
    def stop_note(self) -> str:
        """That training stopped after this round, and why; empty if it did not."""
        of_group = f" of {self.group}" if self.group else ""
        reason = self.stop_reason
        where = f"training{of_group} stopped after round {self.round}"
        return reason and f"{where}: {reason}"

    def number_of(self, metric: str) -> float | None:
        """Loss, accuracy, or the metric of this name; None where it is no number."""
        values = {**self.metrics, "loss": self.loss, "accuracy": self.accuracy}
        value = values.get(metric)
        return float(value) if isinstance(value, int | float) else None

    @property
    def numbers(self) -> list[tuple[str, float | None]]:
        """The metrics beside loss and accuracy that are one number, by name."""
        return [(n, v) for n, v in self.metrics.items() if not isinstance(v, list)]

    @property
    def epsilons(self) -> dict[str, float]:
        """Epsilon that is spent until now, by whose it is: party, sample."""
        spent = {"party": self.privacy, "sample": self.privacy.get("samples", {})}
        return {
            unit: own["epsilon"]
            for unit, own in spent.items()
            if own.get("epsilon") is not None
        }

    def to_json(self) -> dict[str, Any]:
        """Plain data for one line of JSON; what few rounds have only where it is."""
        line = vars(self) | {"parties": [vars(line) for line in self.parties]}
        for name in IN_FEW_ROUNDS:
            if not line[name] and line[name] != 0:
                del line[name]
        return line

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> "RoundReport":
        """Rebuild from what `to_json` gave."""
        return cls(**line | {"parties": [PartyLine(**p) for p in line["parties"]]})


@dataclass(frozen=True)
class Progress:
    """State of a running federation, as its followers poll it."""

    reports: list[RoundReport]  # rounds done that the follower has not seen
    round: int  # the round under way
    stage: str  # joining | training | evaluating | done; before that, in words
    chosen: int
    reported: int
    troubled: dict[str, str]  # parties late, failed or refused so far, and why
    notes: list[str]  # what else happened: damaged checkpoints, going on after a crash
    rounds: int = 0  # that it was asked for
    folder: str = ""  # of the run, on the aggregator's node
    working: dict[str, float] = field(default_factory=dict)  # share of a training done
    waited_s: float = 0  # before round 1: how long it has waited in this stage
    timeout_s: float = 0  # and how long it will; 0: as long as it takes
