"""Answers of models that predict numpy arrays: scikit-learn's, and the user's own."""

from typing import Any

import numpy as np
import torch

from fedray.config.metrics import CLASSES, METRICS, VALUES, YES
from fedray.errors import MetricError
from fedray.models.scoring.answers import AnswerReader, Answers, count_not_numbers

SUM_TOLERANCE = 1e-3  # by which a row of probabilities may miss 1
MAX_CLASSES = 100_000  # of labels that say by themselves how many classes there are


def class_answers(
    output: np.ndarray,
    target: np.ndarray,
    shares: np.ndarray | None,
    n_classes: int,
) -> Answers:
    """Answers of class numbers (N,), with probabilities (N, C) where there are any."""
    own = None if shares is None else _tensor(shares, np.float64)
    numbers = [_tensor(array, np.int64) for array in (output, target)]
    return Answers(CLASSES, numbers[0], numbers[1], own, n_classes)


def value_answers(output: np.ndarray, target: np.ndarray) -> Answers:
    """Answers of values (N,) or (N, D); of more axes one position after another."""
    n_columns = output.shape[1] if output.ndim == 2 else 1
    target = target.reshape(output.shape)
    output, target = (one.reshape(-1, n_columns) for one in (output, target))
    return Answers(VALUES, _tensor(output, np.float64), _tensor(target, np.float64))


def read_arrays(reader: AnswerReader, output: np.ndarray, target: Any) -> Answers:
    """Answers of a model whose predictions may be classes, probabilities or values.

    Whole numbers (N,) are classes, numbers within 0 and 1 the probability of yes;
    rows (N, C) are of a number for each class.

    Raises
    ------
    MetricError
        If they are nothing that the metrics are of.
    """
    name, target = reader.name, np.asarray(target)
    if target.dtype.kind not in "biuf":
        got = f"targets of dtype {target.dtype}"
        raise MetricError(name, got, "numbers: class numbers from 0, or values")
    if reader.tasks == {VALUES}:
        if output.size != target.size or len(output) != len(target):
            got = f"predictions {list(output.shape)} for targets {list(target.shape)}"
            raise MetricError(name, got, "a value for each target")
        return value_answers(output, target)
    if len(output) != len(target):
        got = f"{len(output)} predictions for {len(target)} targets"
        raise MetricError(name, got, "one for each")
    is_flat = output.size == len(output)
    return (_flat if is_flat else _rows)(reader, output, target)


def _flat(reader: AnswerReader, output: np.ndarray, target: np.ndarray) -> Answers:
    """Of one number a sample: a class, or the probability of yes."""
    name, output = reader.name, output.reshape(-1)
    labels = _to_labels(name, target)
    if output.dtype.kind == "f" and (output != output.round()).any():
        if output.min() < 0 or output.max() > 1 or labels.max(initial=0) > 1:
            got = "one number a sample that is no class and no probability"
            needed = "class numbers, or probabilities (N, classes), from predict()"
            raise MetricError(name, got, needed)
        shares = _tensor(output, np.float64)
        own = Answers(YES, shares > 0.5, torch.from_numpy(labels == 1), shares, 2)
        return own._replace(n_not_numbers=count_not_numbers(shares))
    numbers = _to_labels(name, output)
    n_classes = 1 + int(max(numbers.max(initial=1), labels.max(initial=1)))
    return class_answers(numbers, labels, None, n_classes)


def _rows(reader: AnswerReader, output: np.ndarray, target: np.ndarray) -> Answers:
    """Of a number for each class, which come last."""
    name, n_classes = reader.name, output.shape[-1]
    if target.shape == output.shape:
        target = target.argmax(-1)
    labels = _to_labels(name, target)
    output = output.reshape(-1, n_classes)
    if len(labels) != len(output) or labels.max(initial=0) >= n_classes:
        got = f"predictions {list(output.shape)} for targets {list(target.shape)}"
        raise MetricError(name, got, f"a class from 0 to {n_classes - 1} for each")
    is_nan = np.isnan(output).any(1)
    rest = output[~is_nan]
    is_share = (rest >= 0).all() and (abs(rest.sum(1) - 1) <= SUM_TOLERANCE).all()
    shares = output if is_share else None
    own = class_answers(output.argmax(1), labels, shares, n_classes)
    return own._replace(n_not_numbers=int(is_nan.sum()))


def _to_labels(name: str, array: np.ndarray) -> np.ndarray:
    labels = array.reshape(-1)
    wrong = (labels < 0) | (labels != np.round(labels)) | (labels >= MAX_CLASSES)
    if wrong.any() or METRICS[name].needs == "values":
        got = f"{int(wrong.sum())} of {len(labels)} labels that are no class numbers"
        raise MetricError(name, got, "whole numbers from 0")
    return labels.astype(np.int64)


def _tensor(array: np.ndarray, dtype: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype))
