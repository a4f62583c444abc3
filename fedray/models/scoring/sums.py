"""Sums of a model's answers, from which metrics over all parties are computed.

A state is a dict of arrays, named by task and sum: ``classes/counts``. How those of two
parties become one says `fedray.policy.merge_states`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch

from fedray import user_code
from fedray.config.metrics import (
    CLASSES,
    LABELS,
    METRICS,
    N_THRESHOLDS,
    TASK_NAMES,
    VALUES,
    MetricSpec,
    describe_tasks,
)
from fedray.errors import MetricError
from fedray.models.scoring import library
from fedray.models.scoring.answers import (
    AnswerReader,
    Answers,
    NetworkOutput,
    count_not_numbers,
)
from fedray.models.scoring.arrays import read_arrays

MAX_CURVE_CLASSES = 1_000  # 16 MB of sums
MAX_CONFUSED = 1_000  # 8 MB
MAX_NUMBERS = 1 << 22  # that are counted at a time
CURVES = ("auroc", "average_precision")
CONFUSED = ("confusion_matrix", "mcc", "cohen_kappa")
LIKELIHOOD = ("perplexity",)
OF_TWO = ("precision", "recall", "f1", "specificity")
TOP = "accuracy_top"
PEARSON = "pearson"
NOT_NUMBERS = "not_numbers"  # outputs that say nothing, and so no metric has a value
NOT_SHARES = "not_shares"  # such as infinite ones: they have no probabilities
BY_COLUMN = ("r2", "explained_variance", "spearman")  # the mean over outputs

LIMITS = {
    **dict.fromkeys(CURVES, MAX_CURVE_CLASSES),
    **dict.fromkeys(CONFUSED, MAX_CONFUSED),
}

States = dict[str, np.ndarray]


class MetricSums:
    """Adds up one evaluation's answers for the metrics that a config names.

    Parameters
    ----------
    names : the built-in ones among `metrics` of a config.
    functions : the user's own by their names: of outputs and targets of a batch.
    reader : of the answers of a network.
    """

    Output = NetworkOutput

    def __init__(
        self,
        names: Iterable[str],
        functions: Mapping[str, Callable[[Any, Any], Any]],
        reader: AnswerReader,
    ):
        self.names, self.functions = tuple(names), dict(functions)
        self.reader = reader
        self._sums: States = {}
        self._values: dict[str, Any] = {}  # torchmetrics' own sums

    def read(self, batch: NetworkOutput) -> None:
        """Add what a network gives for a batch.

        Raises
        ------
        MetricError
            If it is nothing that the metrics are of.
        """
        if self.names:
            self.add(self.reader.read(batch))
        self.call(batch.output, batch.target, len(batch.output))

    def read_arrays(self, output: np.ndarray, target: Any) -> None:
        """Add what a model predicts whose predictions may be anything: `read_arrays`.

        Raises
        ------
        MetricError
            If it is nothing that the metrics are of.
        """
        if self.names:
            self.add(read_arrays(self.reader, output, target))
        self.call(output, target, len(output))

    def add(self, answers: Answers) -> None:
        """Add a batch's answers.

        Raises
        ------
        MetricError
            If a metric is not for such answers, or has too many classes.
        """
        task = answers.task
        self._require(answers)
        if not len(answers.target):
            return
        if answers.n_not_numbers:
            self._put(f"{task}/{NOT_NUMBERS}", np.array([answers.n_not_numbers]))
        if task == VALUES:
            self._add_values(answers)
            return
        self._put(f"{task}/counts", _count(answers))
        if task == LABELS:
            is_right = (answers.output == answers.target).all(1)
            n_right, n = int(is_right.sum()), len(is_right)
            self._put(f"{task}/all_right", np.array([n_right, n]))
        if any(name in CONFUSED for name in self.names) and task != LABELS:
            self._put(f"{task}/confusion", _confuse(answers))
        if answers.shares is not None:
            self._add_shares(answers, answers.shares)

    def call(self, output: Any, target: Any, n_samples: int) -> None:
        """Add what the user's functions give for a batch, weighted by its samples."""
        for name, function in self.functions.items():
            value = to_number(name, _call(name, function, output, target))
            self._put(f"mean/{name}", np.array([value * n_samples, n_samples]))

    def states(self) -> States:
        """The sums, as plain arrays."""
        own = {
            f"{VALUES}/{name}/{sum_name}": array
            for name, metric_object in self._values.items()
            for sum_name, array in library.read(metric_object).items()
        }
        return {**self._sums, **own}

    def _put(self, name: str, array: np.ndarray) -> None:
        before = self._sums.get(name)
        self._sums[name] = array if before is None else before + array

    def _require(self, answers: Answers) -> None:
        for name in self.names:
            if problem := find_problem(METRICS[name], answers):
                raise MetricError(name, *problem)

    def _add_values(self, answers: Answers) -> None:
        output, target = answers.output, answers.target
        for name in dict.fromkeys(map(value_sums, self.names)):
            if name == PEARSON:
                self._put(f"{VALUES}/{PEARSON}/moments", _moments(output, target))
                continue
            if name not in self._values:
                self._values[name] = library.make_value_sums(name, output.shape[1])
            columns = output.shape[1] > 1 and name in BY_COLUMN
            shape = output.shape if columns else (-1,)
            self._values[name].update(output.reshape(shape), target.reshape(shape))

    def _add_shares(self, answers: Answers, shares: torch.Tensor) -> None:
        task, target = answers.task, answers.target
        n_wrong = count_not_numbers(shares)
        if n_wrong:
            self._put(f"{task}/{NOT_SHARES}", np.array([n_wrong]))
            return
        n_rows = max(1, MAX_NUMBERS // max(1, shares[0].numel()))
        for start in range(0, len(shares), n_rows):
            rows = slice(start, start + n_rows)
            if any(name in CURVES for name in self.names):
                self._put(f"{task}/curve", _curve(task, shares[rows], target[rows]))
            if task == CLASSES:
                self._add_ranks(shares[rows], target[rows])

    def _add_ranks(self, shares: torch.Tensor, target: torch.Tensor) -> None:
        own = shares.gather(1, target[:, None])
        for name in self.names:
            if name.startswith(TOP):
                k = min(int(name.removeprefix(TOP)), shares.shape[1])
                best = shares.topk(k, dim=1).indices
                n_right = int((best == target[:, None]).any(1).sum())
                self._put(f"{CLASSES}/{name}", np.array([n_right, len(target)]))
            if name in LIKELIHOOD:
                smallest = torch.finfo(torch.float32).eps
                total = -float(own.clamp_min(smallest).log().sum())
                self._put(f"{CLASSES}/likelihood", np.array([total, len(target)]))


def _call(name: str, function: Callable[[Any, Any], Any], *batch: Any) -> Any:
    try:
        return function(*batch)
    except MemoryError:
        raise
    except Exception as error:  # the user's own code raises of every kind
        needed = "a function of a batch's outputs and targets that gives one number"
        raise MetricError(name, str(user_code.describe(error)), needed) from error


def find_problem(spec: MetricSpec, answers: Answers) -> tuple[str, str] | None:
    """What a metric gets and what it needs instead; None if these answers fit."""
    name, task, n_classes = spec.name, answers.task, answers.n_classes
    if task not in spec.tasks:
        return f"a model of {TASK_NAMES[task]}", f"one of {describe_tasks(spec)}"
    if spec.needs == "probabilities" and answers.shares is None:
        needed = "probabilities: another loss or model, or metrics of labels (f1_macro)"
        return "labels without probabilities", needed
    if name in OF_TWO and n_classes != 2:
        return f"{n_classes} classes", f"two; take {name}_macro or {name}_per_class"
    if name in LIMITS and task != VALUES and n_classes > LIMITS[name]:
        return f"{n_classes:,} classes", f"at most {LIMITS[name]:,}: leave it out"
    return None


def value_sums(name: str) -> str:
    """The metric whose sums a metric of values is computed from."""
    return "mse" if name == "rmse" else name


def _moments(output: torch.Tensor, target: torch.Tensor) -> np.ndarray:
    """(6, D) float64: Σ1, Σx, Σy, Σx², Σy², Σxy of each output."""
    x, y = output.numpy(), target.numpy()
    return np.stack([one.sum(0) for one in (x**0, x, y, x * x, y * y, x * y)])


def _bincount(numbers: torch.Tensor, n: int) -> np.ndarray:
    return torch.bincount(numbers, minlength=n).cpu().numpy()


def _count(answers: Answers) -> np.ndarray:
    """(4, C) int64: right answers, outputs, targets, and all answers, of each class."""
    output, target, n = answers.output, answers.target, answers.n_classes
    if answers.task == LABELS:
        columns = ((output & target).sum(0), output.sum(0), target.sum(0))
        right, of_output, of_target = (column.cpu().numpy() for column in columns)
    else:
        output, target = output.long(), target.long()
        right = _bincount(target[output == target], n)
        of_output, of_target = _bincount(output, n), _bincount(target, n)
        if answers.ignored is not None:
            of_output[answers.ignored] = 0  # it is no class
    return np.stack([right, of_output, of_target, np.full(n, len(target))])


def _confuse(answers: Answers) -> np.ndarray:
    """(C, C) int64: targets down, outputs across."""
    n = answers.n_classes
    places = answers.target.long() * n + answers.output.long()
    return _bincount(places, n * n).reshape(n, n)


def _curve(task: str, shares: torch.Tensor, target: torch.Tensor) -> np.ndarray:
    """(2, C, T + 1) int64: answers by how many thresholds they reach; right ones."""
    n_bins = N_THRESHOLDS + 1
    thresholds = torch.linspace(0, 1, N_THRESHOLDS).double().to(shares.device)
    shares = shares if shares.ndim > 1 else shares[:, None]
    n_columns = shares.shape[1]
    bins = torch.searchsorted(thresholds, shares.contiguous(), right=True)
    bins = bins + torch.arange(n_columns, device=bins.device) * n_bins
    if task == CLASSES:
        of_target = bins.gather(1, target[:, None]).flatten()
    else:
        of_target = bins[target.reshape(bins.shape)]
    both = (bins.flatten(), of_target)
    counts = [_bincount(one, n_columns * n_bins) for one in both]
    return np.stack(counts).reshape(2, n_columns, n_bins)


def to_number(name: str, value: Any) -> float:
    """The one number that a metric of the user's own gives.

    Raises
    ------
    MetricError
        If it gives something else.
    """
    try:
        if getattr(value, "shape", ()) and np.prod(value.shape) != 1:
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        shape = getattr(value, "shape", None)
        kind = type(value).__name__
        got = f"{kind} of shape {list(shape)}" if shape else f"a {kind}"
        raise MetricError(name, got, "one number") from None
