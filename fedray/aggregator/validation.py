"""Validation of updates, reports and checkpoints before they are used."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fedray import fusion
from fedray.aggregator.party_actors import WorkItem, reason
from fedray.checkpoint import Checkpoint
from fedray.errors import TooManyRefused
from fedray.fusion import ExpectedUpdate, State
from fedray.fusion.update_checks import MAX_SAMPLES
from fedray.messages import (
    FAILED,
    REFUSED,
    REJECTION_CODES,
    Drift,
    Outcome,
    Rejection,
    Report,
    RoundReport,
    Update,
)
from fedray.privacy.sample_budget import Spending
from fedray.weights import (
    SKETCH_SIZE,
    Form,
    Schema,
    Weights,
    encoding,
    mismatch,
    non_finite,
)

MAX_CLASS_LOSS = 1e4  # a mean of logarithms of shares
MAX_VALUE_LOSS = 1e18  # of values whose scale is not known
MAX_GROWTH = 1e4  # of a loss since the first round
MAX_BYTES = 1 << 50  # of a model; more is made up
MAX_DETAIL = 500  # characters of why a group refused a party's update


@dataclass(frozen=True)
class UpdateValidator:
    """Checks and decodes updates where they are first opened: node or aggregator.

    Small; travels by value.

    schema : of the global weights.
    wire_dtype : in which weights travel.
    max_norm : how far a party may move its weights; None: any distance.
    extra : of what the fusion rule needs beside the weights of a party.
    sums : of several parties' updates, where the rule sums integers; else empty.
    """

    schema: Schema
    wire_dtype: str
    max_norm: float | None = None
    extra: Schema = field(default_factory=dict)
    sums: Schema = field(default_factory=dict)

    def validate(
        self, raw: Any, base: Weights, expected: ExpectedUpdate | None
    ) -> Update | Rejection:
        """The update with decoded weights, or why it must not be fused.

        Parameters
        ----------
        base : the global weights; what travels in fewer bits is a difference to them.
        expected : the metadata that the update of one party must have; None: it is of
            several parties, each checked where they were combined.
        """
        if expected:
            form = encoding.update_form(self.schema, self.wire_dtype) | self.extra
            rejection = fusion.rejection_reason(raw, form, expected)
            if rejection:
                return rejection
        elif not isinstance(raw, Update):
            return Rejection("type", f"sent a {type(raw).__name__}, not an Update")
        elif self.sums:
            return fusion.sum_rejection(raw, self.sums) or raw
        weights = encoding.unpack(raw.weights, self.schema, self.wire_dtype, base)
        rejection = None
        if weights is not raw.weights or not expected:
            rejection = fusion.non_finite_reason(weights)
        if expected and not rejection:
            rejection = fusion.exceeds_norm(weights, base, self.max_norm)
        return rejection or replace(raw, weights=weights)


def end_if_refused(done: list[RoundReport], most: int | None, folder: str) -> None:
    """End a federation in which more updates were refused than it may bear.

    Raises
    ------
    TooManyRefused
        The rounds so far are kept.
    """
    n_refused = sum(report.refused or 0 for report in done)
    if most is not None and n_refused > most:
        raise TooManyRefused(n_refused, most, len(done), folder)


def explosion_notes(report: RoundReport, earlier: Sequence[RoundReport]) -> list[str]:
    """What to do about a global loss that explodes, told in its first such round.

    earlier : reports of the rounds before, of all global models.
    """
    own = [one for one in earlier if one.group == report.group and one.loss is not None]
    losses = [one.loss for one in own if one.loss is not None]
    if not _explodes(report, losses):
        return []
    if own and _explodes(own[-1], losses[:-1]):
        return []
    of_group = f" of {report.group}" if report.group else ""
    return [
        f"round {report.round}: the loss{of_group} is {report.loss:.3g}, training "
        "explodes: lower learning_rate, or scale the samples"
    ]


def _explodes(report: RoundReport, earlier: Sequence[float]) -> bool:
    """Whether a loss is beyond what training from `earlier` losses gives."""
    if report.loss is None:
        return False
    of_classes = report.accuracy is not None
    most = MAX_CLASS_LOSS if of_classes else MAX_VALUE_LOSS
    first = earlier[0] if earlier else 0.0
    return not report.loss < min(most, MAX_GROWTH * first if first > 0 else math.inf)


def checkpoint_flaw(checkpoint: Checkpoint, needed: Schema, start: State) -> str | None:
    """Say why a run cannot go on from a checkpoint; None if it can.

    start : the rule's state before round 1, whose tensors every later one has.
    """
    wrong = _misfit(checkpoint.weights, needed)
    for key, part in start.items():
        saved = checkpoint.state.get(key)
        # a state may have grown wider than it began, and a list of parties longer
        there = saved or {}
        form = {}
        for name, array in part.items():
            now = there.get(name, array)
            form[name] = Form(array.shape if array.size else now.shape, str(now.dtype))
        wrong = wrong or _misfit(saved, form)
    return wrong


def _misfit(weights: Any, needed: Schema) -> str | None:
    wrong = mismatch(weights, needed)
    name = None if wrong else non_finite(weights)
    return f"tensor {name!r} is not finite" if name else wrong


def check_report(
    answer: Any, item: WorkItem, round: int, declared: np.ndarray
) -> Outcome | None:
    """What becomes of parties whose report is not believed; None if it is.

    Parameters
    ----------
    answer : what the call for them returned, or the error that it ended with.
    declared : (parties,) training samples that they have declared; 0: not yet.
    """
    if isinstance(answer, Exception):
        return Outcome(FAILED, "call", reason(answer))
    flaw = _flaw(answer, item, round, declared)
    return Outcome(REFUSED, "report", flaw) if flaw else None


def _flaw(report: Any, item: WorkItem, round: int, declared: np.ndarray) -> str | None:
    if not isinstance(report, Report):
        return f"is a {type(report).__name__}"
    if type(report.round) is not int or report.round != round:
        return f"is of round {report.round!r:.40}, not of round {round}"
    is_asked = _is_column(report.parties, item, "iu")
    if not is_asked or not np.array_equal(report.parties, item.parties):
        return "names other parties than were asked"
    if not _is_column(report.n_samples, item, "iu"):
        return "has no sample count for each party"
    most = np.where(declared > 0, declared, MAX_SAMPLES)
    if (report.n_samples < 1).any() or (report.n_samples > most).any():
        return "counts no samples, or more than the party declared when it joined"
    if not all(_is_column(c, item, "f") for c in (report.loss, report.drift)):
        return "has no loss and drift for each party"
    flaw = _flaw_of_numbers(report) or _flaw_of_refused(report, item)
    return flaw or _flaw_of_drift_and_scores(report) or _flaw_of_spending(report, item)


def _flaw_of_spending(report: Report, item: WorkItem) -> str | None:
    """Flaws of what DP-SGD has spent of each party's data."""
    spending, flaw = report.spending, "does not say what its privacy has cost"
    if spending is None:
        return None
    if type(spending) is not Spending or type(spending.delta) is not float:
        return flaw
    *numbers, n_steps = spending[:-1]
    if not all(_is_column(c, item, "f") for c in numbers):
        return flaw
    if not _is_column(n_steps, item, "iu") or not 0 < spending.delta < 1:
        return flaw
    are_real = all(np.isfinite(c).all() and (c >= 0).all() for c in numbers)
    return None if are_real else flaw


def _flaw_of_drift_and_scores(report: Report) -> str | None:
    """Flaws of drift and scores, which parties report that keep their weights."""
    drift, scores = report.drifted, report.scores
    if drift is not None:
        if type(drift) is not Drift or not _is_sketch(drift.levels):
            return "has no sketch of its drift"
        for number in (drift.share, drift.squares, drift.step):
            if type(number) is not float or not 0 <= number < math.inf:
                return "has no drift"
    if scores is not None and not _is_array(scores, (len(report.parties), 3)):
        return "has no score for each party"
    return None


def _is_sketch(levels: Any) -> bool:
    is_array = type(levels) is np.ndarray and levels.dtype == np.int8
    return is_array and levels.shape == (SKETCH_SIZE,)


def _is_array(array: Any, shape: tuple[int, ...]) -> bool:
    is_array = type(array) is np.ndarray and array.dtype.kind == "f"
    return is_array and array.shape == shape


def _is_column(column: Any, item: WorkItem, kinds: str) -> bool:
    is_array = type(column) is np.ndarray and column.dtype.kind in kinds
    return is_array and column.shape == item.parties.shape


def _flaw_of_numbers(report: Report) -> str | None:
    for word in (report.node, report.process):
        if not isinstance(word, str) or len(word) > 100:
            return "names no node or process"
    seconds, n_bytes = report.seconds, report.n_bytes
    if type(seconds) is not float or not math.isfinite(seconds) or seconds < 0:
        return "has no seconds"
    for n in (n_bytes, report.n_frozen_bytes):
        if type(n) is not int or not 0 <= n <= MAX_BYTES:
            return "has no count of bytes"
    return None


def _flaw_of_refused(report: Report, item: WorkItem) -> str | None:
    if type(report.refused) is not dict:
        return "refuses parties in another form"
    places = set(item.parties.tolist())
    for party, rejection in report.refused.items():
        if party not in places or not _is_rejection(rejection):
            return "refuses parties in another form"
    return None


def _is_rejection(rejection: Any) -> bool:
    if type(rejection) is not Rejection:
        return False
    code, detail = rejection.code, rejection.detail
    is_text = type(code) is str and type(detail) is str
    return is_text and code in REJECTION_CODES and len(detail) <= MAX_DETAIL
