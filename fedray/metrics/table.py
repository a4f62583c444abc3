"""Table of all metrics; Prometheus series, dashboard and trackers come from it.

Gauges have the value of the last round, counters add up over rounds. No histograms:
Ray estimates their sums.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
    values : gives a closed round's values.
    tags : names of the tags beside `run`.
    """

    name: str
    kind: str
    unit: str
    help: str
    panel: str
    values: Callable[[RoundReport], Values]
    tags: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """The name in Ray."""
        return f"fedray_{self.name}"

    @property
    def exported(self) -> str:
        """The name in Prometheus."""
        return f"ray_{self.full_name}" + ("_total" if self.kind == COUNTER else "")


def _field(name: str) -> Callable[[RoundReport], Values]:
    """Read a field of the report; no value where it is None."""

    def values(report: RoundReport) -> Values:
        value = getattr(report, name, None)
        if value is not None:
            yield {}, float(value)

    return values


def _party_field(name: str) -> Callable[[RoundReport], Values]:
    """Read a field of each party's line."""

    def values(report: RoundReport) -> Values:
        for line in report.parties:
            value = getattr(line, name)
            if value is not None:
                yield {"party": line.name}, float(value)

    return values


def _other_metrics(report: RoundReport) -> Values:
    """Numbers beside loss and accuracy: the config's metrics, a class's own."""
    for name, value in report.numbers:
        if value is not None:
            yield {"metric": name}, value


def _epsilons(report: RoundReport) -> Values:
    for unit, epsilon in report.epsilons.items():
        yield {"unit": unit}, epsilon


def _edges(report: RoundReport) -> Values:
    for state in ("enrolled", "present", "training"):
        if state in report.edges:
            yield {"state": state}, float(report.edges[state])


def _edge_bytes(report: RoundReport) -> Values:
    for direction in ("up", "down"):
        if f"bytes_{direction}" in report.edges:
            yield {"direction": direction}, float(report.edges[f"bytes_{direction}"])


def _time_closed(report: RoundReport) -> Values:
    yield {}, time.time()


def _count_outcomes(report: RoundReport) -> Values:
    """Count all chosen parties by outcome; by reason where the history has a line."""
    results = [line.result for line in report.parties if line.result is not None]
    kinds = Counter(result.kind for result in results)
    totals = (report.summary or {}).get("outcomes", kinds)
    counts = Counter((result.kind, _reason(result)) for result in results)
    for kind, n_all in totals.items():
        n_without_line = n_all - kinds[kind]
        if n_without_line > 0:
            counts[kind, _reason(Outcome(kind))] += n_without_line
    for (kind, reason), n in counts.items():
        yield {"outcome": kind, "reason": reason}, float(n)


REASONS = {  # code of a rejection -> value of the tag `reason`
    "report": "report",
    "type": "no update",
    "origin": "origin",
    "count": "count",
    "schema": "other tensors",
    "non_finite": "not finite",
    "norm": "norm",
    "budget": "budget",
}


def _reason(result: Outcome) -> str:
    """Value of the tag `reason`; history.jsonl has the whole sentence."""
    return REASONS.get(result.code, "other") if result.kind == REFUSED else ""


def _metric(name: str, kind: str, unit: str, help: str, panel: str) -> Metric:
    """Define a metric that is a field of the round's report."""
    return Metric(name, kind, unit, help, panel, _field(name))


TIME = "Seconds by stage"
BY_PARTY = ("party",)
TABLE = (
    _metric("round", GAUGE, COUNT, "The last round done.", "Round"),
    Metric("closed", GAUGE, MOMENT, "When that round closed.", "", _time_closed),
    _metric("loss", GAUGE, COUNT, "Loss of the global model.", "Loss"),
    _metric("accuracy", GAUGE, SHARE, "Accuracy of the global model.", "Accuracy"),
    Metric(
        "metric", GAUGE, COUNT, "Metrics beside loss and accuracy, by name.",
        "Other metrics", _other_metrics, ("metric",),
    ),
    _metric(
        "learning_rate", GAUGE, COUNT, "Rate of a schedule's last step.", "Rate"
    ),
    Metric(
        "privacy_epsilon", GAUGE, COUNT, "Epsilon spent, of a party or a sample.",
        "Privacy spent", _epsilons, ("unit",),
    ),
    _metric("chosen", GAUGE, COUNT, "Parties asked to train.", "Parties"),
    _metric("reported", GAUGE, COUNT, "Parties that trained.", "Parties"),
    _metric("fused", GAUGE, COUNT, "Parties whose updates count.", "Parties"),
    Metric(
        "outcomes", COUNTER, COUNT, "Parties by the outcome of their updates.",
        "Late, failed, refused", _count_outcomes, ("outcome", "reason"),
    ),
    _metric("restarts", COUNTER, COUNT, "Restarts of parties' actors.", "Restarts"),
    _metric("bytes_moved", COUNTER, BYTES, "Weights sent between nodes.", "Bytes"),
    _metric(
        "bytes_saved", COUNTER, BYTES,
        "Saved against sending a whole model to and from each party.", "Bytes",
    ),
    Metric(
        "edges", GAUGE, COUNT, "Edges that are enrolled, present, training.",
        "Edges", _edges, ("state",),
    ),
    Metric(
        "edge_bytes", COUNTER, BYTES, "Bytes that edges sent (up), fetched (down).",
        "Bytes of edges", _edge_bytes, ("direction",),
    ),
    _metric("seconds", COUNTER, SECONDS, "Whole rounds.", TIME),
    _metric("wait_seconds", COUNTER, SECONDS, "Waiting for reports.", TIME),
    _metric("train_seconds", COUNTER, SECONDS, "The slowest actor's training.", TIME),
    _metric("combine_seconds", COUNTER, SECONDS, "Fetching, combining updates.", TIME),
    _metric("evaluate_seconds", COUNTER, SECONDS, "Testing the model.", TIME),
    _metric(
        "estimate", GAUGE, COUNT, "Disagreement: variance of parties' models.", "Drift"
    ),
    _metric("threshold", GAUGE, COUNT, "Disagreement above which they fuse.", "Drift"),
    _metric(
        "staleness", GAUGE, COUNT, "Mean steps by which fused updates are stale.",
        "Staleness",
    ),
    _metric("expired", COUNTER, COUNT, "Leases that were over.", "Leases over"),
    _metric("virtual_s", GAUGE, SECONDS, "Time of a virtual clock.", "Virtual time"),
    Metric(
        "party_loss", GAUGE, COUNT, "Training loss of a party.", "Loss by party",
        _party_field("loss"), BY_PARTY,
    ),
    Metric(
        "party_seconds", GAUGE, SECONDS, "A party's own time.", "Seconds by party",
        _party_field("seconds"), BY_PARTY,
    ),
    Metric(
        "party_drift", GAUGE, COUNT, "How far a party moved.", "Drift by party",
        _party_field("drift"), BY_PARTY,
    ),
)  # fmt: skip
