"""What an edge answers, as JSON: sample counts, reports, scores. No sample leaves.

Written at the edge of what `PartyGroup` returned for its one party, read in the cluster
with every value checked: whoever sends it may be hostile.
"""

import base64
import binascii
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedray.messages import (
    CHANGED,
    FIRST,
    REJECTION_CODES,
    SAME,
    ActorLocation,
    Drift,
    PartyInfo,
    PartyScores,
    Rejection,
    Report,
    Score,
    Scores,
)
from fedray.privacy.data_accounts import Limit
from fedray.privacy.sample_budget import Budget, Spending
from fedray.untrusted_text import escape, is_harmless
from fedray.weights import SKETCH_SIZE

Plain = dict[str, Any]
MAX_SAMPLES = 1 << 53
MAX_TEXT = 500  # characters of a note or a reason
MAX_STATE = 1 << 16  # numbers of a metric's sums
MAX_DIMENSIONS = 8  # of them
STATE_NAME = re.compile(r"[^/]{1,200}/[^/]{1,200}(/[^/]{1,200})?")  # task, metric, sum
SPENT = ("epsilon", "run_epsilon", "noise_multiplier", "sampling_rate")
N_MOVED = 1_000  # names of tensors


class AnswerError(ValueError):
    """An edge's answer is not of the form that it has to be; says what is wrong."""


def write_info(info: PartyInfo) -> Plain:
    """What a party declares before its first round."""
    budget = info.budget
    return {
        "device": info.device,
        "process": info.process,
        "n_train": int(info.n_train[0]),
        "n_test": int(info.n_test),
        "data": info.data,
        "moved": list(info.moved),
        "n_frozen_bytes": info.n_frozen_bytes,
        "budget": budget and [*budget.limit, budget.spent, budget.would_be],
    }


def read_info(plain: Any, node: str) -> PartyInfo:
    """The same in the cluster; `node` is the Ray node that stands for the edge.

    Raises
    ------
    AnswerError
    """
    answer = _Answer(plain)
    budget = answer.numbers("budget", 4)
    moved = answer.get("moved", list)
    if len(moved) > N_MOVED or not all(type(name) is str for name in moved):
        raise AnswerError("moved is no list of tensors")
    return PartyInfo(
        node,
        answer.word("device"),
        np.array([answer.count("n_train", least=1)]),
        answer.count("n_test"),
        answer.word("process"),
        data=answer.data_state(),
        moved=tuple(name[:MAX_TEXT] for name in moved),
        n_frozen_bytes=answer.count("n_frozen_bytes"),
        budget=None if budget is None else Budget(Limit(*budget[:2]), *budget[2:]),
    )


def write_report(report: Report) -> Plain:
    """What one party says of a round that it trained."""
    spending, drifted = report.spending, report.drifted
    rejection, rate = next(iter(report.refused.values()), None), report.learning_rate
    return {
        "process": report.process,
        "n_samples": int(report.n_samples[0]),
        "loss": _finite(report.loss[0]),
        "drift": _finite(report.drift[0]),
        "seconds": float(report.seconds),
        "n_bytes": report.n_bytes,
        "n_frozen_bytes": report.n_frozen_bytes,
        "data": report.data,
        "note": next(iter(report.notes.values()), ""),
        "learning_rate": None if rate is None else _finite(rate[0]),
        "has_rate": rate is not None,
        "refused": rejection and [rejection.code, rejection.detail],
        "spending": None if spending is None else _write_spending(spending),
        "drifted": None if drifted is None else _write_drift(drifted),
    }


def read_report(plain: Any, round: int, place: int, location: ActorLocation) -> Report:
    """The same in the cluster.

    place : of the party in the run's config.
    location : Ray node that stands for the edge.

    Raises
    ------
    AnswerError
    """
    answer = _Answer(plain)
    note, refused = answer.text("note"), answer.optional("refused", list)
    rate = [answer.number("learning_rate")] if answer.get("has_rate", bool) else None
    spending = answer.optional("spending", dict)
    drifted = answer.optional("drifted", dict)
    return Report(
        round,
        location.node,
        np.array([place]),
        np.array([answer.count("n_samples", least=1)]),
        np.array([answer.number("loss")]),
        np.array([answer.number("drift")]),
        answer.positive("seconds"),
        answer.count("n_bytes"),
        refused={} if refused is None else {place: _read_rejection(refused)},
        drifted=None if drifted is None else _read_drift(drifted),
        process=answer.word("process"),
        notes={place: note} if note else {},
        data=answer.data_state(),
        n_frozen_bytes=answer.count("n_frozen_bytes"),
        learning_rate=None if rate is None else np.array(rate),
        spending=None if spending is None else _read_spending(spending),
    )


def write_score(score: Score) -> Plain:
    """How the global model does on one party's test samples."""
    scores = score.scores
    own = scores.by_party
    return {
        "n_samples": int(scores.n_samples),
        "loss": _finite(scores.loss),
        "accuracy": _finite(scores.accuracy),
        "weights": scores.weights and [float(w) for w in scores.weights],
        "metrics": {name: _finite(value) for name, value in scores.metrics.items()},
        "by_party": None if own is None else [_finite(c[0]) for c in own[1:]],
        "states": {
            name: [list(a.shape), a.reshape(-1).astype(float).tolist()]
            for name, a in scores.states.items()
        },
        "n_bytes": score.n_bytes,
        "data": score.data,
    }


def read_score(plain: Any, place: int, location: ActorLocation) -> Score:
    """The same in the cluster.

    Raises
    ------
    AnswerError
    """
    answer = _Answer(plain)
    weights = answer.numbers("weights", 2)
    if weights is not None and not min(weights) >= 0:
        raise AnswerError("weights has a number below 0")
    metrics = answer.get("metrics", dict)
    if len(metrics) > N_MOVED or not all(map(is_harmless, metrics)):
        raise AnswerError("it has too many metrics, or a name that cannot be shown")
    values = {str(name)[:MAX_TEXT]: _number(v, name) for name, v in metrics.items()}
    scores = Scores(
        answer.count("n_samples"),
        answer.maybe("loss"),
        answer.maybe("accuracy"),
        None if weights is None else (weights[0], weights[1]),
        values,
        _read_own(answer, place),
        dict(map(_state, answer.get("states", dict).items())),
    )
    return Score(location.node, scores, answer.count("n_bytes"), answer.data_state())


def _read_own(answer: "_Answer", place: int) -> PartyScores | None:
    own = answer.numbers("by_party", 5)
    if own is None:
        return None
    n_samples, *sums = own
    if not 1 <= n_samples <= MAX_SAMPLES or not all(map(math.isfinite, sums)):
        raise AnswerError("by_party has no numbers of test samples")
    columns = (np.array([value]) for value in sums)
    return PartyScores(np.array([place]), np.array([int(n_samples)]), *columns)


def _write_spending(spending: Spending) -> Plain:
    *columns, delta = spending
    names = Spending._fields[:-1]
    values = zip(names, (float(column[0]) for column in columns), strict=True)
    return {**{name: _finite(value) for name, value in values}, "delta": delta}


def _read_spending(plain: Plain) -> Spending:
    answer = _Answer(plain)
    columns = {name: np.array([answer.positive(name)]) for name in SPENT}
    n_steps = answer.positive("n_steps")
    if n_steps > MAX_SAMPLES:
        raise AnswerError(f"n_steps is above {MAX_SAMPLES}")
    delta = answer.positive("delta")
    return Spending(**columns, n_steps=np.array([int(n_steps)]), delta=delta)


def _write_drift(drift: Drift) -> Plain:
    return {
        "share": drift.share,
        "squares": drift.squares,
        "step": drift.step,
        "levels": base64.b64encode(drift.levels.tobytes()).decode(),
    }


def _read_drift(plain: Plain) -> Drift:
    answer, text = _Answer(plain), plain.get("levels")
    try:
        raw = base64.b64decode(str(text)[: 2 * SKETCH_SIZE], validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != SKETCH_SIZE:
        raise AnswerError("its sketch has another length")
    levels = np.frombuffer(raw, np.int8)
    share, squares = answer.positive("share"), answer.positive("squares")
    return Drift(share, squares, levels, answer.positive("step"))


def _read_rejection(plain: list[Any]) -> Rejection:
    match plain:
        case [str() as code, str() as detail] if code in REJECTION_CODES:
            return Rejection(code, escape(detail[:MAX_TEXT]))
    raise AnswerError("refused has no code and reason")


def _state(item: tuple[str, Any]) -> tuple[str, np.ndarray]:
    """A metric's sums by name; no dimension is empty, which could hide a huge one."""
    match item:
        case [name, [list() as shape, list() as numbers]] if (
            STATE_NAME.fullmatch(name) and 0 < len(numbers) <= MAX_STATE
        ):
            array = np.array([_number(value, "states") for value in numbers])
            fits = len(shape) <= MAX_DIMENSIONS and all(type(n) is int for n in shape)
            is_whole = fits and all(n > 0 for n in shape)
            if is_whole and math.prod(shape) == len(array) and np.isfinite(array).all():
                return name, array.reshape(shape)
    raise AnswerError("states has no sums of a metric")


def _finite(value: Any) -> float | None:
    """A number as JSON has it; None for NaN and infinity."""
    return None if value is None or not math.isfinite(value) else float(value)


def _number(value: Any, name: object) -> float:
    """A number, or NaN where there is none."""
    if value is None:
        return math.nan
    if type(value) not in (int, float) or not math.isfinite(value):
        raise AnswerError(f"{str(name)[:80]} is no number")
    return float(value)


class _Answer:
    """A mapping of JSON whose values are taken out by the type that they must have."""

    def __init__(self, plain: Any):
        if not isinstance(plain, Mapping):
            raise AnswerError("it is no mapping")
        self._plain = plain

    def get(self, key: str, kind: type) -> Any:
        value = self._plain.get(key)
        if type(value) is not kind:
            raise AnswerError(f"{key} is missing or a {type(value).__name__}")
        return value

    def optional(self, key: str, kind: type) -> Any:
        return None if self._plain.get(key) is None else self.get(key, kind)

    def text(self, key: str) -> str:
        return escape(self.get(key, str)[:MAX_TEXT])

    def word(self, key: str) -> str:
        word = self.get(key, str)
        if len(word) > 64 or not word.isascii() or not word.isprintable():
            raise AnswerError(f"{key} is no short word")
        return str(word)

    def count(self, key: str, least: int = 0) -> int:
        value = self.get(key, int)
        if not least <= value <= MAX_SAMPLES:
            raise AnswerError(f"{key} is {value}, from {least} on is needed")
        return int(value)

    def number(self, key: str) -> float:
        return _number(self._plain.get(key), key)

    def maybe(self, key: str) -> float | None:
        value = self.number(key)
        return None if math.isnan(value) else value

    def positive(self, key: str) -> float:
        value = self.number(key)
        if not value >= 0:
            raise AnswerError(f"{key} is missing or below 0")
        return value

    def numbers(self, key: str, length: int) -> list[float] | None:
        values = self.optional(key, list)
        if values is not None and len(values) != length:
            raise AnswerError(f"{key} has {len(values)} numbers, {length} are needed")
        return values and [_number(value, key) for value in values]

    def data_state(self) -> str:
        state = self._plain.get("data")
        if state not in (SAME, CHANGED, FIRST):
            raise AnswerError("data is none of same, changed, first")
        return str(state)
