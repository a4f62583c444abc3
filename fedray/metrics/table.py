"""The one table of metrics: everything else is generated from it.

Gauges are what the last round gave, counters add up over rounds. No histograms: Ray
estimates their sums.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fedray.messages import REFUSED, Outcome, RoundReport

GAUGE, COUNTER = "gauge", "counter"
COUNT, SECONDS, BYTES, SHARE, MOMENT = "", "seconds", "bytes", "share", "moment"

Values = Iterator[tuple[dict[str, str], float]]  # tags beside `run`, and the value


@dataclass(frozen=True)
class Metric:
    """One metric of a run.

    name : as in history.jsonl where it stands there.
    unit : a count, seconds, bytes, a share of one, or seconds since 1970.
    panel : title of the dashboard's panel that shows it.
    of : what a closed round gives.
    tags : beside `run`.
    """

    name: str
    kind: str
    unit: str
    help: str
    panel: str
    of: Callable[[RoundReport], Values]
    tags: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """As Ray is told it."""
        return f"fedray_{self.name}"

    @property
    def exported(self) -> str:
        """As Prometheus sees it."""
        return f"ray_{self.full_name}" + ("_total" if self.kind == COUNTER else "")


def _field(name: str) -> Callable[[RoundReport], Values]:
    """A number of the report; nothing where there is none."""

    def of(report: RoundReport) -> Values:
        value = getattr(report, name, None)
        if value is not None:
            yield {}, float(value)

    return of


def _party(name: str) -> Callable[[RoundReport], Values]:
    """A number of each party's line."""

    def of(report: RoundReport) -> Values:
        for line in report.parties:
            value = getattr(line, name)
            if value is not None:
                yield {"party": line.name}, float(value)

    return of


def _now(report: RoundReport) -> Values:
    yield {}, time.time()


def _outcomes(report: RoundReport) -> Values:
    """How many parties ended in which way, all of them; why, where lines tell it."""
    results = [line.result for line in report.parties]
    kinds = Counter(result.kind for result in results)
    whole = (report.summary or {}).get("outcomes", kinds)
    counts = Counter((result.kind, _reason(result)) for result in results)
    for kind, n_all in whole.items():
        n_without_line = n_all - kinds[kind]
        if n_without_line > 0:
            counts[kind, _reason(Outcome(kind))] += n_without_line
    for (kind, reason), n in counts.items():
        yield {"outcome": kind, "reason": reason}, float(n)


REASONS = {  # by the code of a rejection: the tag it gets
    "report": "report",
    "type": "no update",
    "origin": "origin",
    "count": "count",
    "schema": "other tensors",
    "non_finite": "not finite",
    "norm": "norm",
}


def _reason(result: Outcome) -> str:
    """One of few words for why an update was refused; the history has the sentence."""
    return REASONS.get(result.code, "other") if result.kind == REFUSED else ""


def _metric(name: str, *words: Any, **more: Any) -> Metric:
    return Metric(name, *words, **{"of": _field(name), **more})


TIME = "Seconds by stage"
BY_PARTY = ("party",)
TABLE = (
    _metric("round", GAUGE, COUNT, "The last round done.", "Round"),
    _metric("closed", GAUGE, MOMENT, "When that round closed.", "", of=_now),
    _metric("loss", GAUGE, COUNT, "Loss of the global model.", "Loss"),
    _metric("accuracy", GAUGE, SHARE, "Accuracy of the global model.", "Accuracy"),
    _metric("chosen", GAUGE, COUNT, "Parties asked to train.", "Parties"),
    _metric("reported", GAUGE, COUNT, "Parties that trained.", "Parties"),
    _metric("fused", GAUGE, COUNT, "Parties whose updates count.", "Parties"),
    _metric(
        "outcomes", COUNTER, COUNT, "Parties by what became of their updates.",
        "Late, failed, refused", of=_outcomes, tags=("outcome", "reason"),
    ),
    _metric("restarts", COUNTER, COUNT, "Restarts of parties' actors.", "Restarts"),
    _metric("bytes_moved", COUNTER, BYTES, "Weights that travelled.", "Bytes"),
    _metric(
        "bytes_saved", COUNTER, BYTES,
        "Beside a whole model to and from each party that trained.", "Bytes",
    ),
    _metric("seconds", COUNTER, SECONDS, "Rounds, whole.", TIME),
    _metric("wait_seconds", COUNTER, SECONDS, "Waiting for reports.", TIME),
    _metric("train_seconds", COUNTER, SECONDS, "The slowest actor's training.", TIME),
    _metric("combine_seconds", COUNTER, SECONDS, "Fetching and folding.", TIME),
    _metric("evaluate_seconds", COUNTER, SECONDS, "Testing the model.", TIME),
    _metric(
        "estimate", GAUGE, COUNT, "Disagreement: variance of parties' models.", "Drift"
    ),
    _metric("threshold", GAUGE, COUNT, "Disagreement above which they fuse.", "Drift"),
    _metric(
        "party_loss", GAUGE, COUNT, "Training loss of a party.", "Loss by party",
        of=_party("loss"), tags=BY_PARTY,
    ),
    _metric(
        "party_seconds", GAUGE, SECONDS, "A party's own time.", "Seconds by party",
        of=_party("seconds"), tags=BY_PARTY,
    ),
    _metric(
        "party_drift", GAUGE, COUNT, "How far a party moved.", "Drift by party",
        of=_party("drift"), tags=BY_PARTY,
    ),
)  # fmt: skip
