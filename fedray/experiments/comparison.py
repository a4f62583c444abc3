"""Compares runs: settings that differ, means over seeds, differences that are clear."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from fedray.config.metrics import Mode, known_mode
from fedray.errors import ConfigError, format_count
from fedray.experiments.records import EPSILONS, SEED, RunRecord
from fedray.experiments.statistics import (
    Difference,
    Summary,
    compare_pairs,
    summarize,
)
from fedray.report import format_bytes

UNSET = "–"
PREFERRED = ("accuracy", "loss")  # metrics to compare by, where none is named
MAX_TEXT = 40  # of a value in the table; longer ones are told apart by a digest


class Question(NamedTuple):
    """What a comparison is asked.

    by : a setting whose values are compared; None: all settings that differ.
    metric : by which runs are compared; None: accuracy, or else loss.
    target : a value of the metric that is to be reached.
    mode : whether more or less of the metric is better; None: known by its name.
    """

    by: str | None = None
    metric: str | None = None
    target: float | None = None
    mode: Mode | None = None


@dataclass(frozen=True)
class Variant:
    """Runs that differ in their seed alone; with `by`, in all but one setting.

    settings : the values that it differs from others by.
    final, best, rounds, seconds, n_bytes : means over the runs.
    worst, spread : of the parties' values, after the last round that has them.
    to_target : rounds, seconds and bytes, of the runs that reached the target.
    difference : to the leading variant, over pairs; None of itself, and without pairs.
    """

    settings: Mapping[str, str]
    records: Sequence[RunRecord]
    final: Summary | None
    best: Summary | None
    rounds: Summary | None
    seconds: Summary | None
    n_bytes: Summary | None
    worst: Summary | None
    spread: Summary | None
    to_target: Mapping[str, Summary | None]
    difference: Difference | None = None

    @property
    def n_reached(self) -> int:
        """Runs that reached the target."""
        reached = self.to_target.get("rounds")
        return reached.n if reached else 0

    @property
    def label(self) -> str:
        """Its settings in one line."""
        return ", ".join(f"{k}={v}" for k, v in self.settings.items()) or "all runs"


@dataclass(frozen=True)
class Comparison:
    """What a table, a page and a file of a comparison show.

    columns : settings that differ.
    variants : best first.
    findings : in words: who reached the target with the fewest bytes, and whether that
        is clear; which party does worst.
    notes : what could not be compared, and why.
    """

    question: Question
    metric: str
    is_more_better: bool
    columns: Sequence[str]
    variants: Sequence[Variant]
    records: Sequence[RunRecord]
    findings: Sequence[str]
    notes: Sequence[str]

    @property
    def is_measured(self) -> bool:
        """Whether any run has a value of the metric."""
        return any(one.final is not None for one in self.variants)

    @property
    def leader(self) -> Variant:
        """The variant that others are compared with: the best mean."""
        return self.variants[0]

    def verdict(self, variant: Variant) -> str:
        """What is known of its difference to the leader, in words."""
        difference = variant.difference
        if variant is self.leader:
            return "best mean" if len(self.variants) > 1 else ""
        if variant.final is None:
            return f"no {self.metric}"
        if difference is None:
            return "no seed in common with the best"
        if difference.is_clear is None:
            return "one pair: not known"
        return "worse" if difference.is_clear else "not clear of the noise"


def compare(records: Sequence[RunRecord], question: Question) -> Comparison:
    """Compare runs by a metric.

    Raises
    ------
    ConfigError
        If no run has the metric or the setting that the question names.
    """
    metric = _choose_metric(records, question)
    mode = question.mode or ("min" if metric in EPSILONS else known_mode(metric))
    is_more_better = mode != "min"
    columns = differing(records)
    shown = columns
    if question.by is not None:
        _require_setting(records, question.by)
        shown = [question.by]
    by = metric, is_more_better
    others = [name for name in columns if name not in shown]
    variants = _variants(records, shown, by, question.target)
    lead = variants[0]
    paired = [
        one if one is lead else _paired(one, lead, by, others) for one in variants
    ]
    notes = [*_notes(records, metric, variants, question)]
    if mode is None:
        notes.append(f"more of {metric} counts as better; --mode min says otherwise")
    findings = [
        *_cheapest(paired, by, question.target, others),
        *_weakest_parties(records, metric),
    ]
    return Comparison(
        question, metric, is_more_better, shown, paired, records, findings, notes
    )


def _variants(
    records: Sequence[RunRecord],
    shown: Sequence[str],
    by: tuple[str, bool],
    target: float | None,
) -> list[Variant]:
    """Runs with the same values of the shown settings, best first."""
    cells: dict[tuple[str, ...], list[RunRecord]] = {}
    for record in records:
        cells.setdefault(tuple(show(record, name) for name in shown), []).append(record)
    variants = [
        _variant(dict(zip(shown, key, strict=True)), own, by, target)
        for key, own in cells.items()
    ]
    return sorted(variants, key=lambda one: _rank(one, by[1]))


def differing(records: Sequence[RunRecord]) -> list[str]:
    """Settings that are not the same in all runs, but for the seed; first come first.

    A setting that some configs do not have (of another version) differs only where
    those that have it do.
    """
    names = dict.fromkeys(name for record in records for name in record.settings)
    values = {
        name: {show(record, name) for record in records if name in record.settings}
        for name in names
        if name != SEED
    }
    columns = [name for name, own in values.items() if len(own) > 1]
    if len({record.group for record in records}) > 1:
        columns.append("group")
    return columns


def show(record: RunRecord, name: str) -> str:
    """A setting's value as the table has it."""
    if name == "group":
        return record.group or UNSET
    value = record.settings.get(name)
    if value is None:
        return UNSET
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if len(text) <= MAX_TEXT:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    if isinstance(value, list):
        return f"{len(value)} listed ({digest})"
    return f"{text[: MAX_TEXT - 12]}... ({digest})"


def metrics_of(records: Iterable[RunRecord]) -> list[str]:
    """Every metric that a run has measured."""
    return [*dict.fromkeys(name for record in records for name in record.metrics)]


def _choose_metric(records: Sequence[RunRecord], question: Question) -> str:
    if question.target is not None and not math.isfinite(question.target):
        raise ConfigError([f"--target must be a finite number, got {question.target}"])
    measured = metrics_of(records)
    if question.metric is not None:
        if question.metric not in measured:
            listed = ", ".join(measured) or "none"
            raise ConfigError(
                [f"no run has measured {question.metric!r}; measured: {listed}"]
            )
        return question.metric
    best = [name for name in PREFERRED if name in measured]
    return (best or measured or [PREFERRED[0]])[0]


def _require_setting(records: Sequence[RunRecord], name: str) -> None:
    columns = differing(records)
    if name in columns:
        return
    is_known = any(name in record.settings for record in records)
    below = [one for one in columns if one.startswith(f"{name}.")]
    if below:
        raise ConfigError([f"--by {name}: name one of its keys: {', '.join(below)}"])
    why = "is the same in all runs" if is_known else "is a setting of no run"
    listed = ", ".join(columns) or "nothing but the seed"
    raise ConfigError([f"--by {name}: {why}; what differs: {listed}"])


def _variant(
    settings: Mapping[str, str],
    records: Sequence[RunRecord],
    by: tuple[str, bool],
    target: float | None,
) -> Variant:
    metric, is_more_better = by
    worst, other = ("lowest", "highest") if is_more_better else ("highest", "lowest")

    def over(value: Any) -> Summary | None:
        return summarize([v for one in records if (v := value(one)) is not None])

    return Variant(
        settings,
        records,
        over(lambda one: one.last(metric)),
        over(lambda one: one.best(metric, is_more_better)),
        over(lambda one: float(len(one.rounds)) if one.rounds else None),
        over(lambda one: one.seconds[-1] if one.seconds else None),
        over(lambda one: one.n_bytes[-1] if one.n_bytes else None),
        over(lambda one: getattr(one, worst).get(metric)),
        over(lambda one: _range(one, metric, (worst, other))),
        {} if target is None else _to_target(records, by, target),
    )


def _range(record: RunRecord, metric: str, ends: tuple[str, str]) -> float | None:
    values = [getattr(record, end).get(metric) for end in ends]
    return None if None in values else abs(values[0] - values[1])


def _to_target(
    records: Sequence[RunRecord], by: tuple[str, bool], target: float
) -> dict[str, Summary | None]:
    """Rounds, seconds and bytes until the target, of the runs that reached it."""
    amounts: dict[str, list[float]] = {"rounds": [], "seconds": [], "bytes": []}
    for record in records:
        place = record.place_of(by[0], target, by[1])
        if place is None:
            continue
        for name, amount in record.amounts_at(place).items():
            if amount is not None:
                amounts[name].append(amount)
    return {name: summarize(values) for name, values in amounts.items()}


def _rank(variant: Variant, is_more_better: bool) -> tuple[bool, float]:
    if variant.final is None:
        return True, 0.0
    return False, -variant.final.mean if is_more_better else variant.final.mean


def _paired(
    variant: Variant, lead: Variant, by: tuple[str, bool], others: Sequence[str]
) -> Variant:
    """The variant with its difference to the leading one, paired by seed and others."""
    own, leading = (_values_by_pair(one, by[0], others) for one in (variant, lead))
    pairs = [(own[key], leading[key]) for key in own if key in leading]
    return replace(variant, difference=compare_pairs(pairs))


def _cheapest(
    variants: Sequence[Variant],
    by: tuple[str, bool],
    target: float | None,
    others: Sequence[str],
) -> Iterable[str]:
    """Who reached the target with the fewest bytes, and whether that is clear."""
    if target is None:
        return
    amounts = [(own.mean, one) for one in variants if (own := one.to_target["bytes"])]
    amounts.sort(key=lambda pair: pair[0])
    if not amounts:
        where = "in no run" if not any(one.n_reached for one in variants) else None
        where = where or "in runs that hide their bytes"
        yield f"{by[0]} {target:g} was reached {where}"
        return

    def bytes_of(record: RunRecord) -> float | None:
        place = record.place_of(by[0], target, by[1])
        return None if place is None else record.amounts_at(place)["bytes"]

    (mean, first), *rest = amounts
    n_runs = f"{first.n_reached} of {format_count(len(first.records), 'run')}"
    text = f"fewest bytes to {by[0]} {target:g}: {first.label}, {format_bytes(mean)}"
    text += f" ({n_runs} reached it)"
    if rest:
        second = rest[0][1]
        least, more = (_by_pair(one, bytes_of, others) for one in (first, second))
        pairs = [(more[key], least[key]) for key in least if key in more]
        text += f"; {second.label} needs {_more_bytes(compare_pairs(pairs), rest[0])}"
    yield text


def _more_bytes(difference: Difference | None, amount: tuple[float, Variant]) -> str:
    """How many more bytes a variant needs, and whether that is clear of the noise."""
    mean, variant = amount
    reached = f"{variant.n_reached} of {len(variant.records)}"
    whole = f"{format_bytes(mean)} ({reached})"
    if difference is None:
        return f"{whole}: no seed in common"
    if difference.low == difference.high == 0:
        return f"{whole}: the same"
    if difference.low is None or difference.high is None:
        return f"{whole}: one pair, so that nobody knows whether it is clear"
    ends = f"95 % interval of the difference {_signed_bytes(difference.low)} to "
    ends += _signed_bytes(difference.high)
    is_clear = "clear" if difference.is_clear else "not clear of the noise"
    return f"{whole}: {is_clear}, {ends}"


def _signed_bytes(n_bytes: float) -> str:
    return f"{'−' if n_bytes < 0 else '+'}{format_bytes(abs(n_bytes))}"


def _weakest_parties(records: Sequence[RunRecord], metric: str) -> Iterable[str]:
    """The party whose own tests are worst in the most runs."""
    ends = [one.weakest[metric] for one in records if metric in one.weakest]
    if not ends:
        return
    counts = Counter(party for party, _ in ends)
    party, n = counts.most_common(1)[0]
    values = [value for name, value in ends if name == party]
    mean = sum(values) / len(values)
    runs = f"{n} of {format_count(len(ends), 'run')} with tests of parties"
    yield f"worst {metric}: {party}, in {runs}; {mean:.4g} on average there"


def _values_by_pair(
    variant: Variant, metric: str, others: Sequence[str]
) -> dict[tuple[str, ...], float]:
    """Final values by seed and the other settings; of repeated runs their mean."""
    return _by_pair(variant, lambda record: record.last(metric), others)


def _by_pair(
    variant: Variant,
    value_of: Callable[[RunRecord], float | None],
    others: Sequence[str],
) -> dict[tuple[str, ...], float]:
    """Values by seed and the other settings; of repeated runs their mean."""
    values: dict[tuple[str, ...], list[float]] = {}
    for record in variant.records:
        value = value_of(record)
        if value is not None:
            key = (str(record.seed), *(show(record, name) for name in others))
            values.setdefault(key, []).append(value)
    return {key: sum(values) / len(values) for key, values in values.items()}


def _notes(
    records: Sequence[RunRecord],
    metric: str,
    variants: Sequence[Variant],
    question: Question,
) -> Iterable[str]:
    is_measured = bool(metrics_of(records))
    if not is_measured:
        yield (
            "no run has measured a number: no round is over, or there are no test "
            "samples; only rounds, time and bytes can be compared"
        )
    yield from _run_notes(records, metric if is_measured else None)
    lengths = {len(r.rounds) for r in records if r.state == "ended" and r.rounds}
    if len(lengths) > 1:
        yield (
            f"runs have from {min(lengths)} to {max(lengths)} rounds: final values "
            "are those of their own last rounds"
        )
    if question.by is None and _has_repeats(variants):
        yield "runs with the same settings and seed count as one pair, by their mean"
    if len(variants) > 2:
        yield (
            "each interval is for one comparison: of twenty variants that do not "
            "differ, about one looks as if it did"
        )


def _run_notes(records: Sequence[RunRecord], metric: str | None) -> Iterable[str]:
    """What is not as it should be, run by run."""
    for record in records:
        if record.problem:
            yield f"{record.name}: {record.problem}"
        elif record.state != "ended":
            rounds = f"{len(record.rounds)} of {record.settings.get('rounds', '?')}"
            yield f"{record.name}: {record.state} after {rounds} rounds"
        if metric and record.rounds and record.last(metric) is None:
            yield f"{record.name}: has no {metric}"


def _has_repeats(variants: Sequence[Variant]) -> bool:
    return any(
        len({str(r.seed) for r in one.records}) < len(one.records) for one in variants
    )
