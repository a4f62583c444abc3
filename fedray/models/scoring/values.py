"""Values of metrics, from sums over all parties."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedray.config.metrics import (
    CLASSES,
    LABELS,
    METRICS,
    N_THRESHOLDS,
    VALUES,
    YES,
    Task,
    label_of,
)
from fedray.models.scoring import library
from fedray.models.scoring.sums import NOT_NUMBERS, NOT_SHARES, States, value_sums

Value = float | list[Any] | None
RATES = {"precision": "Precision", "recall": "Recall", "f1": "F1Score",
         "specificity": "Specificity"}  # fmt: skip
TOO_FEW = "it is not defined for these test samples"


class MetricValues(NamedTuple):
    """Values by name, and what people must know of them.

    values : numbers; lists for a number of each class, or for a confusion matrix; None
        where a metric is not defined for the samples, or not a number.
    """

    values: dict[str, Value]
    notes: tuple[str, ...] = ()


class Undefined(ValueError):
    """A metric that is not defined for the samples there are; says why."""


OTHER_FORM = (
    ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError
)  # fmt: skip


def compute(names: Iterable[str], states: Mapping[str, np.ndarray]) -> MetricValues:
    """The values of metrics, from the sums of all parties.

    names : `metrics` of a config; accuracy only where the loss does not give it.
    """
    values: dict[str, Value] = {}
    notes: list[str] = []
    for name in names if states else ():
        label = label_of(name)
        try:
            values[label] = _finite(_compute(name, label, states))
        except Undefined as reason:
            values[label] = None
            notes.append(f"metric {label} has no value: {reason}")
        except OTHER_FORM as error:  # an edge may send any sums
            values[label] = None
            why = f"sums of a party have another form ({type(error).__name__})"
            notes.append(f"metric {label} has no value: {why}")
    return MetricValues(values, tuple(notes))


def _finite(value: Any) -> Value:
    """A number or list; raises Undefined where one is not finite."""
    array = np.asarray(value)
    if array.dtype != object and not np.isfinite(array).all():
        raise Undefined("it is not a finite number")
    return array.tolist()


def _compute(name: str, label: str, states: Mapping[str, np.ndarray]) -> Any:
    spec = METRICS.get(name)
    if spec is None:
        return _mean(states.get(f"mean/{label}"))
    tasks = {key.partition("/")[0] for key in states} - {"mean"}
    if len(tasks) != 1:
        raise Undefined(f"parties' models answer unlike: {', '.join(sorted(tasks))}")
    task: Any = tasks.pop()
    own = {key.partition("/")[2]: array for key, array in states.items()}
    wrong = own.get(NOT_NUMBERS)
    if wrong is None and spec.needs == "probabilities":
        wrong = own.get(NOT_SHARES)
    if wrong is not None:
        n_wrong = int(wrong.sum())
        raise Undefined(f"the model's outputs are not numbers for {n_wrong:,} of them")
    if task == VALUES:
        return _of_values(name, own)
    if name in OTHERS:
        return OTHERS[name](task, own)
    return _of_classes(name, task, own)


def _mean(sums: np.ndarray | None) -> float:
    if sums is None or not sums[1]:
        raise Undefined("no test sample counts")
    return float(sums[0] / sums[1])


def _of_values(name: str, own: Mapping[str, np.ndarray]) -> Any:
    kind = value_sums(name)
    sums = {
        key.partition("/")[2]: array
        for key, array in own.items()
        if key.startswith(f"{kind}/")
    }
    if not sums:
        raise Undefined(TOO_FEW)
    if name == "pearson":
        return _pearson(sums["moments"])
    try:
        metric_object = library.make_value_sums(name, _n_outputs(sums))
        return library.compute(metric_object, sums).mean()
    except ValueError:  # of too few samples
        raise Undefined(TOO_FEW) from None


def _n_outputs(sums: Mapping[str, np.ndarray]) -> int:
    """How many outputs a sample has, where the sums are of each."""
    return max(array.shape[1] if array.ndim > 1 else 1 for array in sums.values())


def _pearson(moments: np.ndarray) -> float:
    """Correlation from Σ1, Σx, Σy, Σx², Σy², Σxy (6, D); the mean over outputs."""
    n, x, y, xx, yy, xy = moments
    spread = (n * xx - x * x) * (n * yy - y * y)
    if not (spread > 0).all():
        raise Undefined("its values, or the targets, are all the same")
    return float(((n * xy - x * y) / np.sqrt(spread)).mean())


def _of_classes(name: str, task: Task, own: Mapping[str, np.ndarray]) -> Any:
    """Rates by torchmetrics, from what it counts: tp, fp, tn, fn of each class."""
    counts = _counts(own)
    kind, _, average = name.partition("_")
    if name.endswith("_per_class"):
        average = "none"
    if kind not in RATES:
        raise Undefined(TOO_FEW)
    if average in ("", "none"):
        rates = _rate(kind, "none", task, counts)
        if average:
            return _where_known(rates, own)
        return float(rates[1])
    return _rate(kind, average, task, counts)


def _rate(kind: str, average: str, task: Task, counts: States) -> Any:
    family, n = ("Multilabel", "num_labels") if task == LABELS else (
        "Multiclass", "num_classes")  # fmt: skip
    sizes = {n: counts["tp"].size, "average": average}
    metric_object = library.make(
        kind, f"{family}{RATES[kind]}", validate_args=False, **sizes
    )
    return library.compute(metric_object, counts)


def _counts(own: Mapping[str, np.ndarray]) -> States:
    if "counts" not in own:
        raise Undefined("no test sample counts")
    right, of_output, of_target, n = own["counts"].astype(np.float64)
    wrong, missing = of_output - right, of_target - right
    rest = n.max() - right - wrong - missing
    return {"tp": right, "fp": wrong, "tn": rest, "fn": missing}


def _accuracy(task: Task, own: Mapping[str, np.ndarray]) -> float:
    if task == LABELS:
        return _mean(own.get("all_right"))
    counts = own["counts"]
    return float(counts[0].sum() / counts[3].max())


def _top(k: int) -> Callable[[Task, Mapping[str, np.ndarray]], float]:
    return lambda task, own: _mean(own.get(f"accuracy_top{k}"))


def _balanced(task: Task, own: Mapping[str, np.ndarray]) -> float:
    """Mean recall of the classes that have samples."""
    right, _, of_target, _ = own["counts"].astype(np.float64)
    return float((right[of_target > 0] / of_target[of_target > 0]).mean())


def _hamming(task: Task, own: Mapping[str, np.ndarray]) -> float:
    right, of_output, of_target, n = own["counts"].astype(np.float64)
    return float((of_output + of_target - 2 * right).sum() / n.sum())


def _overlaps(task: Task, own: Mapping[str, np.ndarray], is_dice: bool) -> np.ndarray:
    """Of each class; NaN of those that are neither output nor target."""
    right, of_output, of_target, _ = own["counts"].astype(np.float64)
    union = of_output + of_target - (0 if is_dice else right)
    with np.errstate(invalid="ignore"):
        return (2 * right if is_dice else right) / union


def _overlap(is_dice: bool) -> Callable[[Task, Mapping[str, np.ndarray]], float]:
    def compute(task: Task, own: Mapping[str, np.ndarray]) -> float:
        overlaps = _overlaps(task, own, is_dice)
        if task == YES:
            return float(overlaps[1])
        present = overlaps[np.isfinite(overlaps)]
        if not len(present):
            raise Undefined("no test sample counts")
        return float(present.mean())

    return compute


def _iou_per_class(task: Task, own: Mapping[str, np.ndarray]) -> np.ndarray:
    return _where_known(_overlaps(task, own, is_dice=False), own)


def _where_known(rates: np.ndarray, own: Mapping[str, np.ndarray]) -> np.ndarray:
    """Rates of the classes that are output or target anywhere; None of the others."""
    _, of_output, of_target, _ = own["counts"]
    rates = rates.astype(object)
    rates[of_output + of_target == 0] = None
    return rates


def _confusion(task: Task, own: Mapping[str, np.ndarray]) -> np.ndarray:
    if "confusion" not in own:
        raise Undefined("no test sample counts")
    return own["confusion"]


def _mcc(task: Task, own: Mapping[str, np.ndarray]) -> float:
    """In float64, where torchmetrics takes float32. 0 where one class is all there is.

    Source: Gorodkin 2004, Comparing two K-category assignments, equation 9.
    """
    confusion = _confusion(task, own).astype(np.float64)
    n, right = confusion.sum(), np.trace(confusion)
    output, target = confusion.sum(0), confusion.sum(1)
    spread = (n * n - output @ output) * (n * n - target @ target)
    return (
        float((right * n - output @ target) / math.sqrt(spread)) if spread > 0 else 0.0
    )


def _kappa(task: Task, own: Mapping[str, np.ndarray]) -> Any:
    confusion = _confusion(task, own).astype(np.float64)
    sizes = {"num_classes": len(confusion), "validate_args": False}
    metric_object = library.make("cohen_kappa", "MulticlassCohenKappa", **sizes)
    return library.compute(metric_object, {"confmat": confusion})


def _perplexity(task: Task, own: Mapping[str, np.ndarray]) -> float:
    mean = _mean(own.get("likelihood"))
    return math.exp(mean)


def _under_curve(name: str) -> Callable[[Task, Mapping[str, np.ndarray]], float]:
    """Mean over the classes that have samples, and others beside them."""

    def compute(task: Task, own: Mapping[str, np.ndarray]) -> float:
        if "curve" not in own:
            raise Undefined("the model gives no probabilities")
        every, of_target = own["curve"]
        if task == CLASSES and len(every) == 2:  # of two classes the second
            every, of_target = every[1:], of_target[1:]
        areas = [
            float(library.compute(_make_curve(name), {"confmat": _table(*pair)}))
            for pair in zip(every, of_target, strict=True)
            if 0 < pair[1].sum() < pair[0].sum()
        ]
        if not areas:
            raise Undefined("all test samples are of one class")
        return float(np.mean(areas))

    return compute


def _make_curve(name: str) -> Any:
    return library.make(name, CURVES[name], thresholds=N_THRESHOLDS)


def _table(every: np.ndarray, of_target: np.ndarray) -> np.ndarray:
    """(T, 2, 2) float64: target down, output across, of each threshold; from bins."""
    output = np.cumsum(every[::-1])[::-1][1:].astype(np.float64)
    right = np.cumsum(of_target[::-1])[::-1][1:].astype(np.float64)
    n_true, n = of_target.sum(), every.sum()
    missing, wrong = n_true - right, output - right
    rest = n - right - missing - wrong
    return np.stack([rest, wrong, missing, right], 1).reshape(-1, 2, 2)


CURVES = {"auroc": "BinaryAUROC", "average_precision": "BinaryAveragePrecision"}
OTHERS: dict[str, Callable[[Task, Mapping[str, np.ndarray]], Any]] = {
    "accuracy": _accuracy,
    **{f"accuracy_top{k}": _top(k) for k in (3, 5, 10)},
    "balanced_accuracy": _balanced,
    "hamming_loss": _hamming,
    **{name: _under_curve(name) for name in CURVES},
    "mcc": _mcc,
    "cohen_kappa": _kappa,
    "iou": _overlap(is_dice=False),
    "dice": _overlap(is_dice=True),
    "iou_per_class": _iou_per_class,
    "confusion_matrix": _confusion,
    "perplexity": _perplexity,
}
