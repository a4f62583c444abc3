"""A model's outputs beside their targets, in the form that metrics are counted from."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from fedray.config.metrics import CLASSES, LABELS, VALUES, YES, Task
from fedray.errors import MetricError
from fedray.models.loss_domains import (
    IGNORED,
    LossUse,
    find_class_axes,
    to_predictions,
)
from fedray.nested import describe, is_one

SMALLEST = 1e-4  # by which shares may miss a sum of 1


class Answers(NamedTuple):
    """Answers of one task, one for each sample or for each of its positions.

    output : what the model says: classes (M,) int64; yes (M,) bool; labels (M, L) bool;
        values (M, D) float64.
    target : the same of the targets.
    shares : probabilities (M, C), of yes (M,), of each label (M, L); None: not known.
    n_classes : how many classes there are; of yes two.
    ignored : a class that is no class, of which no sample is here.
    n_not_numbers : how many of the outputs are NaN, so that they say nothing.
    """

    task: Task
    output: torch.Tensor
    target: torch.Tensor
    shares: torch.Tensor | None = None
    n_classes: int = 0
    ignored: int | None = None
    n_not_numbers: int = 0


class NetworkOutput(NamedTuple):
    """What a network gives for a batch.

    use : its loss.
    output : (N, ...) the one that counts.
    target : as the loss takes it.
    classes_last : whether classes are an output's last axis, where its shape leaves
        that open.
    random_outputs : of inputs under large random weights, which say whether a model
        ends in a sigmoid where the loss does not.
    """

    use: LossUse
    output: torch.Tensor
    target: Any
    classes_last: bool = False
    random_outputs: Callable[[], Sequence[torch.Tensor]] = lambda: ()


class AnswerReader:
    """Reads the answers of one model from its outputs, by what its loss says of them.

    A loss that alone knows its outputs (the model's own, or a function of the user's)
    leaves open what they are: then the metrics say whether classes or values are meant,
    the targets' form says which, and outputs are logits unless they are probabilities.

    Parameters
    ----------
    name : of a metric, for errors.
    tasks : of the metrics that are asked for; those of one model have one in common.
    needs_shares : whether a metric needs probabilities.
    """

    def __init__(self, name: str, tasks: frozenset[Task], needs_shares: bool):
        self.name, self.tasks, self.needs_shares = name, tasks, needs_shares
        self._ends_in_sigmoid: bool | None = None

    def read(self, batch: NetworkOutput) -> Answers:
        """Answers of a batch.

        Raises
        ------
        MetricError
            If targets and outputs are of no such form.
        """
        use, out, y = batch[:3]
        domain = use.domain
        if not is_one(y):
            got = f"targets of {describe(y)}" if y is not None else "no targets"
            raise MetricError(self.name, got, "one array of targets")
        if domain.targets == "anything":
            return self._unknown(batch)
        if domain.has_classes or domain.targets == "shares":
            axis = use.class_axis if domain.has_classes else -1
            return self._classes(batch, axis, domain.outputs, use.ignored)
        if domain.predicts == "yes" or domain.threshold is not None:
            threshold = 0.5 if domain.threshold is None else domain.threshold
            shares = to_predictions(use, out) if domain.predicts == "yes" else None
            own = _yes(out > threshold, y, shares, use.class_axis, self.needs_shares)
            return own._replace(n_not_numbers=count_not_numbers(out))
        return _values(to_predictions(use, out), y)

    def _classes(
        self, batch: NetworkOutput, axis: int, kind: str, ignored: int | None
    ) -> Answers:
        out, y = batch.output, batch.target
        n_classes = out.shape[axis]
        is_rows = y.is_floating_point() and y.shape == out.shape
        target = (y.argmax(axis) if is_rows else y).reshape(-1).long()
        out = out.detach().movedim(axis, -1).reshape(-1, n_classes)
        if ignored is not None:
            out, target = out[target != ignored], target[target != ignored]
        if len(target) and not 0 <= int(target.min()) <= int(target.max()) < n_classes:
            n_wrong = int(((target < 0) | (target >= n_classes)).sum())
            got = f"{n_wrong} of {len(target)} labels outside 0..{n_classes - 1}"
            raise MetricError(self.name, got, "labels of the model's outputs")
        shares = None
        if self.needs_shares:
            if kind == "any":
                kind = "probabilities" if _are_shares(out) else "logits"
            shares = out.double()
            shares = shares if kind == "probabilities" else shares.softmax(-1)
        is_class = ignored is not None and 0 <= ignored < n_classes
        own = ignored if is_class else None
        output, n_wrong = out.argmax(-1), count_not_numbers(out)
        return Answers(CLASSES, output, target, shares, n_classes, own, n_wrong)

    def _unknown(self, batch: NetworkOutput) -> Answers:
        out, y = batch.output, batch.target
        if self.tasks == {VALUES}:
            return _values(out.double(), y)
        shape = tuple(out.shape[1:])
        is_alike = math.prod(y.shape) == math.prod(out.shape)
        is_flat = is_alike and len(y) == len(out)
        if is_flat and not self._are_one_hot(y, shape):
            if self._ends_in_sigmoid is None:
                tried = batch.random_outputs() or [out]
                inside = [bool(((one >= 0) & (one <= 1)).all()) for one in tried]
                self._ends_in_sigmoid = all(inside)
            is_done = self._ends_in_sigmoid
            shares = out.double() if is_done else out.double().sigmoid()
            own = _yes(shares > 0.5, y, shares, 1, self.needs_shares)
            return own._replace(n_not_numbers=count_not_numbers(out))
        order = (-1, 1) if batch.classes_last else (1, -1)
        axes = find_class_axes(y, shape, order) if shape else []
        if not axes and tuple(y.shape[1:]) == (1,) and len(shape) == 1:
            axes = [1]
        if not axes:
            got = f"outputs of shape {list(shape)} and targets of {list(y.shape[1:])}"
            needed = "a class number for each sample or position, or targets shaped as "
            raise MetricError(self.name, got, needed + "the outputs")
        return self._classes(batch, axes[0], "any", IGNORED)

    def _are_one_hot(self, y: torch.Tensor, shape: tuple[int, ...]) -> bool:
        """Whether targets are rows of one class each, and not of several labels."""
        if CLASSES not in self.tasks or tuple(y.shape[1:]) != shape or len(shape) != 1:
            return False
        if shape[0] < 2 or not ((y == 0) | (y == 1)).all():
            return False
        return LABELS not in self.tasks or bool((y.sum(1) == 1).all())


def count_not_numbers(out: torch.Tensor) -> int:
    """How many rows of outputs (M, ...) have a NaN."""
    return int(out.isnan().reshape(len(out), -1).any(1).sum()) if out.numel() else 0


def _are_shares(out: torch.Tensor) -> bool:
    """Whether every row is of probabilities: no logits sum to 1 by chance."""
    sums = out.double().sum(-1)
    return bool((out >= 0).all()) and bool(((sums - 1).abs() <= SMALLEST).all())


def _yes(
    output: torch.Tensor,
    y: torch.Tensor,
    shares: torch.Tensor | None,
    axis: int,
    needs_shares: bool,
) -> Answers:
    """Of one output a sample or position, or of several a sample."""
    target = y.reshape(output.shape) > 0.5
    shares = shares.detach() if shares is not None and needs_shares else None
    shape = output.shape[1:]
    is_single = len(shape) == 2 or 1 in (output.shape[axis], math.prod(shape))
    if not shape or is_single or output.shape[-1] == 1 or output.shape[1] == 1:
        flat = shares.reshape(-1) if shares is not None else None
        return Answers(YES, output.reshape(-1), target.reshape(-1), flat, 2)
    output, target = (_columns(one, axis) for one in (output, target))
    own = _columns(shares, axis) if shares is not None else None
    return Answers(LABELS, output, target, own, output.shape[1])


def _columns(array: torch.Tensor, axis: int) -> torch.Tensor:
    return array.movedim(axis, -1).reshape(-1, array.shape[axis])


def _values(out: torch.Tensor, y: torch.Tensor) -> Answers:
    """Outputs of a sample are columns; positions of more axes follow each other."""
    out = out.detach().double()
    target = y.detach().reshape(out.shape).double()
    n_columns = out.shape[1] if out.ndim == 2 else 1
    output = out.reshape(-1, n_columns).cpu()
    return Answers(VALUES, output, target.reshape(-1, n_columns).cpu())
