"""Targets and outputs that every loss takes, and the check that a party has them.

`PYTORCH` and `KERAS` are the one table of all losses that fedray accepts. What lies
outside a loss's row gives a number that means nothing, or no error before training.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch

from fedray.errors import DataError
from fedray.models.base import Prediction
from fedray.nested import Nested, arrays

Targets = Literal["labels", "classes", "shares", "values", "anything"]
Outputs = Literal[
    "any", "logits", "logarithms", "probabilities", "log-probabilities", "positive"
]
Problem = tuple[str, str]  # what was got, what was needed

SUM_TOLERANCE = 0.02  # by which probabilities may miss a sum of 1: two decimals
EXACT_TOLERANCE = 1e-4  # so near to a sum of 1 no logits come by chance
HALF_TOLERANCE = 1e-2  # in 16 bits
MAX_RANDOM_BYTES = 64 << 20  # of parameters that are replaced, the last ones first
SPREAD = 4.0  # times the spread that keeps a layer's outputs as large as its inputs


class Domain(NamedTuple):
    """What a loss is defined for.

    targets : "labels", a class number or a one-hot row for each sample; "classes",
        these or rows of class probabilities; "shares", rows of numbers from 0 that sum
        to 1; "values", numbers shaped as the model's output; "anything", where only the
        loss itself knows.
    outputs : what the model must give. Of labels, classes and shares, probabilities sum
        to 1; of values, each lies within 0 and 1.
    low, high : bounds of values.
    only : the values there may be, where they are few.
    min_outputs : with fewer the loss is the same whatever the model gives.
    threshold : outputs above it count as yes; None: there is no accuracy of values.
    has_zero : whether a value may be 0.
    """

    targets: Targets
    outputs: Outputs = "any"
    low: float = -math.inf
    high: float = math.inf
    only: tuple[tuple[float, ...], ...] = ()
    min_outputs: int = 1
    threshold: float | None = None
    has_zero: bool = True

    @property
    def has_classes(self) -> bool:
        """Whether targets name one class of several."""
        return self.targets in ("labels", "classes")

    @property
    def predicts(self) -> Prediction:
        """What a model that was trained with it tells of a sample."""
        if self.has_classes or self.targets == "shares":
            return "classes"
        return "yes" if self.outputs in ("logits", "probabilities") else "values"


IGNORED = -100  # the label that torch's losses leave out, if they leave one out
ANYTHING = Domain("anything")
VALUES = Domain("values")
COUNTS = Domain("values", low=0.0)
YES_OR_NO = Domain("values", "probabilities", 0.0, 1.0, threshold=0.5)
YES_OR_NO_LOGITS = Domain("values", "logits", 0.0, 1.0, threshold=0.0)
SIGNS = Domain("values", only=((-1.0, 1.0),), threshold=0.0)

PYTORCH = {  # losses of torch.nn.functional
    "cross_entropy": Domain("classes", "logits", min_outputs=2),
    "nll_loss": Domain("labels", "log-probabilities", min_outputs=2),
    "multi_margin_loss": Domain("labels", min_outputs=2),
    "binary_cross_entropy": YES_OR_NO,
    "binary_cross_entropy_with_logits": YES_OR_NO_LOGITS,
    "soft_margin_loss": SIGNS,
    "mse_loss": VALUES,
    "l1_loss": VALUES,
    "smooth_l1_loss": VALUES,
    "huber_loss": VALUES,
    "poisson_nll_loss": COUNTS._replace(outputs="logarithms"),
}
KERAS = {  # classes of keras.losses; from_logits makes logits of probabilities
    "CategoricalCrossentropy": Domain("classes", "probabilities", min_outputs=2),
    "CategoricalFocalCrossentropy": Domain("classes", "probabilities", min_outputs=2),
    "SparseCategoricalCrossentropy": Domain("labels", "probabilities", min_outputs=2),
    "BinaryCrossentropy": YES_OR_NO,
    "BinaryFocalCrossentropy": YES_OR_NO,
    "MeanSquaredError": VALUES,
    "MeanAbsoluteError": VALUES,
    "MeanAbsolutePercentageError": Domain("values", has_zero=False),
    "MeanSquaredLogarithmicError": COUNTS,
    "Huber": VALUES,
    "LogCosh": VALUES,
    "Poisson": COUNTS._replace(outputs="positive"),
    "KLDivergence": Domain("shares", "probabilities", min_outputs=2),
    "CosineSimilarity": Domain("values", min_outputs=2),
    "Hinge": SIGNS._replace(only=((-1.0, 1.0), (0.0, 1.0))),
    "SquaredHinge": SIGNS._replace(only=((-1.0, 1.0), (0.0, 1.0))),
    "CategoricalHinge": Domain("labels", min_outputs=2),
    "Dice": YES_OR_NO._replace(threshold=None),
    "Tversky": YES_OR_NO._replace(threshold=None),
}
ONE_OUTPUT = "it compares several outputs or targets of a sample, models have one"
NOT_USABLE = {  # losses of both that fedray does not take, and why
    "ctc_loss": "it needs lengths beside outputs and targets",
    "ctc": "it needs lengths beside outputs and targets",
    "gaussian_nll_loss": "it needs a variance beside the output; take mse_loss",
    "kl_div": "its mean is not one over samples; cross_entropy takes class "
    "probabilities and trains the same",
    "cosine_embedding_loss": ONE_OUTPUT,
    "hinge_embedding_loss": ONE_OUTPUT,
    "margin_ranking_loss": ONE_OUTPUT,
    "triplet_margin_loss": ONE_OUTPUT,
    "triplet_margin_with_distance_loss": ONE_OUTPUT,
    "multilabel_margin_loss": "take binary_cross_entropy_with_logits",
    "multilabel_soft_margin_loss": "binary_cross_entropy_with_logits is the same",
    "circle": ONE_OUTPUT,
}
ENDS = {  # what a model of these outputs ends in, by classes or single values
    ("probabilities", True): "a model that ends in softmax",
    ("probabilities", False): "a model that ends in sigmoid",
    ("log-probabilities", True): "a model that ends in log_softmax",
    ("logits", True): "a model without its last softmax",
    ("logits", False): "a model without its last sigmoid",
    ("positive", False): "a model that ends in softplus, exponential or relu",
}


class LossUse(NamedTuple):
    """A loss as one model uses it.

    name : as the config or the model file has it.
    choices : domains of all losses of its framework; of them, those that fit are told.
    class_axis : of outputs: the axis of classes.
    is_default : whether the config does not name it.
    ignored : a label that is no class and counts for nothing.
    """

    name: str
    domain: Domain
    choices: Mapping[str, Domain]
    class_axis: int = 1
    is_default: bool = False
    ignored: int | None = None


def to_labels(
    y: torch.Tensor, out_shape: tuple[int, ...] | None, class_axis: int
) -> torch.Tensor | None:
    """Labels int64 (N, ...) of targets that are whole numbers or one-hot rows.

    out_shape : of one sample's output; None: only (N,) and (N, 1) can be told.

    Returns
    -------
    None where `y` is anything else: nothing is rounded, no class is guessed.
    """
    if out_shape and _are_rows(y, out_shape):
        is_one = y == 1
        axis = class_axis if class_axis > 0 else y.ndim + class_axis
        is_one_hot = (is_one | (y == 0)).all() and (is_one.sum(axis) == 1).all()
        return is_one.to(torch.uint8).argmax(axis) if is_one_hot else None
    if out_shape and tuple(y.shape[1:]) == label_shape(out_shape, class_axis):
        return _whole(y)
    if y.ndim == 1 or tuple(y.shape[1:]) == (1,):
        return _whole(y.reshape(len(y)))
    return None


def _whole(y: torch.Tensor) -> torch.Tensor | None:
    if y.is_floating_point() and not (y == y.round()).all():
        return None
    return y.long()


def _are_rows(y: torch.Tensor, out_shape: tuple[int, ...]) -> bool:
    """Whether targets are shaped as outputs of two classes or more."""
    return tuple(y.shape[1:]) == out_shape and math.prod(out_shape) > 1


def label_shape(out_shape: tuple[int, ...], class_axis: int) -> tuple[int, ...]:
    """Shape of one sample's labels: of its output, without the axis of classes."""
    axis = class_axis - 1 if class_axis > 0 else len(out_shape) + class_axis
    return (*out_shape[:axis], *out_shape[axis + 1 :])


def find_class_axes(
    y: torch.Tensor, out_shape: tuple[int, ...], axes: Sequence[int] = (1, -1)
) -> list[int]:
    """The axes of an output that may be that of classes, by the shape of the targets.

    out_shape : of one sample's output.
    axes : that are tried; of equal ones the first.
    """
    if tuple(y.shape[1:]) == out_shape:  # rows, whose sums tell
        return [axis for axis in axes if not _sum_flaw(y, axis)] or [*axes[:1]]
    labels = tuple(y.shape[1:])
    return [axis for axis in axes if label_shape(out_shape, axis) == labels]


def large_random_tensors(
    parameters: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Large random numbers in place of a model's parameters; of many, the last ones.

    Whatever its weights, a last softmax or sigmoid keeps a model's output within 0 and
    1, and nothing else does. A file's weights are not here yet when a party joins, and
    those of a new model give numbers so small that they may lie there by chance.
    """
    random = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    n_bytes = 0
    for name, parameter in reversed(list(parameters.items())):
        n_bytes += parameter.nbytes
        if n_bytes > MAX_RANDOM_BYTES and tensors:
            break
        fan_in = math.prod(parameter.shape[1:])
        numbers = torch.randn(parameter.shape, generator=random, device="cpu")
        tensors[name] = (numbers * (SPREAD / math.sqrt(max(fan_in, 1)))).to(parameter)
    return tensors


def check_range(source: str, x: Nested, y: Nested) -> None:
    """Raise DataError where numbers became infinite in the model's own dtype."""
    inputs = {f"samples{where}": array for where, array in arrays(x).items()}
    targets = {f"targets{where}": array for where, array in arrays(y).items()}
    for name, tensor in {**inputs, **targets}.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        if not all(bound.isfinite() for bound in tensor.aminmax()):
            dtype = str(tensor.dtype).removeprefix("torch.")
            got = f"{name} with numbers that the model's {dtype} does not hold"
            most = torch.finfo(tensor.dtype).max
            raise DataError(source, got, f"numbers up to {most:.3g}: scale them")


def check(
    source: str, loss: LossUse, outputs: Sequence[torch.Tensor], y: torch.Tensor
) -> None:
    """Compare a party's targets, and a model's outputs, with what the loss takes.

    Parameters
    ----------
    outputs : of a few samples (n, ...), under one or several sets of weights.
    y : (N, ...) all targets, as training takes them.

    Raises
    ------
    DataError
        If they lie outside the loss's domain; names the losses that they lie in.
    """
    problem = find_problem(loss, outputs, y)
    if problem is None:
        return
    fits = {
        name: domain
        for name, domain in loss.choices.items()
        if name != loss.name
        and not find_problem(loss._replace(name=name, domain=domain), outputs, y)
    }
    alike = [n for n, d in fits.items() if d.has_classes == loss.domain.has_classes]
    others = alike or list(fits)
    got, needed = problem
    default = " (the config names none)" * loss.is_default
    fitting = f"; losses that fit these: {', '.join(others)}" if others else ""
    raise DataError(source, f"{got}, for loss {loss.name}{default}", needed + fitting)


class AnswerCounts(NamedTuple):
    """How many answers of each sample are right (B,), and how many it has (B,)."""

    right: torch.Tensor
    n: torch.Tensor


def count_answers(
    loss: LossUse, out: torch.Tensor, y: torch.Tensor
) -> AnswerCounts | None:
    """Whether outputs name the right class or side; None for targets of values.

    A sample has one answer or, with several labels, one for each label that counts.
    """
    if loss.domain.has_classes:
        classes = y.argmax(loss.class_axis) if y.is_floating_point() else y
        is_right = out.argmax(loss.class_axis) == classes
        counts = torch.ones_like(is_right)
        if loss.ignored is not None:
            counts = classes != loss.ignored
        return AnswerCounts(*(_sum_each(one) for one in (is_right & counts, counts)))
    if loss.domain.threshold is None:
        return None
    is_right = (out > loss.domain.threshold) == (y.reshape(out.shape) > 0.5)
    is_right = is_right.reshape(len(y), -1).all(1)
    return AnswerCounts(is_right.long(), torch.ones_like(is_right).long())


def _sum_each(counts: torch.Tensor) -> torch.Tensor:
    """Sums (B,) over all but the first axis."""
    return counts.reshape(len(counts), -1).sum(1)


def to_predictions(loss: LossUse, out: torch.Tensor) -> torch.Tensor:
    """What outputs say in the terms of the targets, float64.

    Probabilities of classes, which come last, or of yes; or the values themselves.
    """
    kind, out = loss.domain.outputs, out.double()
    if loss.domain.has_classes:
        axis = loss.class_axis
        shares = out if kind == "probabilities" else out.softmax(axis)
        return shares.movedim(axis, -1)
    if kind == "logits":
        return out.sigmoid()
    return out.exp() if kind == "logarithms" else out


def find_problem(
    loss: LossUse, outputs: Sequence[torch.Tensor], y: torch.Tensor
) -> Problem | None:
    """What was got and what the loss needs; None if they fit."""
    domain, out = loss.domain, outputs[0]
    shape = tuple(out.shape[1:])
    if domain.has_classes or domain.targets == "shares":
        axis = loss.class_axis if domain.has_classes else -1
        n_classes = out.shape[axis] if shape else 0
    else:
        axis, n_classes = loss.class_axis, math.prod(shape)
    if n_classes < domain.min_outputs:
        got = f"a model of one output (shape {list(shape)})"
        return got, "an output for each of two or more classes"
    if domain.has_classes:
        problem = _class_problem(loss, shape, y)
    else:
        problem = _value_problem(domain, shape, y)
    return problem or _output_problem(domain, outputs, axis)


def _class_problem(
    loss: LossUse, shape: tuple[int, ...], y: torch.Tensor
) -> Problem | None:
    axis, n_classes = loss.class_axis, shape[loss.class_axis - (loss.class_axis > 0)]
    positions = label_shape(shape, axis)
    where = f", of shape {list(positions)}" if positions else ""
    needed = f"a class number 0..{n_classes - 1} for each sample{where}"
    if _are_rows(y, shape):
        if loss.domain.targets == "classes":
            return _share_problem(y, axis)
        if to_labels(y, shape, axis) is None:
            flaw = _sum_flaw(y, axis) or "they hold numbers between 0 and 1"
            return f"rows that are not one-hot ({flaw})", needed
        return None
    if tuple(y.shape[1:]) in (positions, (1,)):
        return _label_problem(loss, n_classes, y, needed)
    if y.ndim == 2 and len(shape) == 1:
        rows = f"rows of {n_classes} classes, as many as the model gives"
        return f"rows of {y.shape[1]} classes", rows
    if axis == 1 and tuple(y.shape[1:]) == shape[:-1]:
        needed += "; in PyTorch classes are the axis after the samples'"
    return f"targets of shape {list(y.shape[1:])}", needed


def _label_problem(
    loss: LossUse, n_classes: int, y: torch.Tensor, needed: str
) -> Problem | None:
    labels = _whole(y)
    if labels is None:
        return "labels that are no whole numbers", needed
    is_wrong = (labels < 0) | (labels >= n_classes)
    if loss.ignored is not None:
        is_wrong &= labels != loss.ignored
    n_wrong = int(is_wrong.sum())
    if not n_wrong:
        return None
    got = f"{n_wrong} of {labels.numel()} labels outside 0..{n_classes - 1}"
    needed = f"labels of the model's {n_classes} outputs"
    if (labels[is_wrong] == IGNORED).all() and loss.domain is PYTORCH.get(loss.name):
        needed += f", or loss_args: {{ignore_index: {IGNORED}}} to leave them out"
    return f"{got} ({_range(labels)})", needed


def _value_problem(
    domain: Domain, shape: tuple[int, ...], y: torch.Tensor
) -> Problem | None:
    if not _is_same_shape(tuple(y.shape[1:]), shape):
        got = f"targets of shape {list(y.shape[1:])}"
        return got, f"{list(shape)}, as the model gives"
    if domain.targets == "shares":
        return _share_problem(y.reshape(len(y), *shape), -1)
    if domain.only and not any(_are_only(y, values) for values in domain.only):
        choices = " or ".join(f"{a:g} and {b:g}" for a, b in domain.only)
        return f"targets other than {choices} ({_range(y)})", f"{choices} alone"
    if not domain.has_zero and (y == 0).any():
        got = f"{int((y == 0).sum())} of {y.numel()} targets that are 0"
        return got, "values other than 0, to divide by"
    is_outside = (y < domain.low) | (y > domain.high)
    if not is_outside.any():
        return None
    bounds = f"values from {domain.low:g}"
    bounds += f" to {domain.high:g}" if math.isfinite(domain.high) else ""
    got = f"{int(is_outside.sum())} of {y.numel()} targets outside what the loss takes"
    return f"{got} ({_range(y)})", bounds


def _share_problem(y: torch.Tensor, axis: int) -> Problem | None:
    """Rows along `axis` that are no probabilities."""
    needed = "rows of class probabilities: numbers from 0 that sum to 1"
    if (y < 0).any():
        return "rows with numbers below 0", needed
    flaw = _sum_flaw(y, axis)
    return (f"rows that do not sum to 1 ({flaw})", needed) if flaw else None


def _sum_flaw(y: torch.Tensor, axis: int) -> str:
    """The first row that does not sum to 1; its sum where that is a whole number."""
    sums = y.double().sum(axis)
    is_wrong = (sums - 1).abs() > SUM_TOLERANCE
    if not is_wrong.any():
        return ""
    row, first = int(is_wrong.nonzero()[0, 0]), float(sums[is_wrong][0])
    return f"row {row} sums to {first:g}" if first == round(first) else f"row {row}"


def _are_only(y: torch.Tensor, values: tuple[float, ...]) -> bool:
    is_one_of = torch.zeros_like(y, dtype=torch.bool)
    for value in values:
        is_one_of |= y == value
    return bool(is_one_of.all())


def _range(y: torch.Tensor) -> str:
    """Least and largest target where all are whole numbers: others tell a sample."""
    if _whole(y) is None:
        return "not all are whole numbers"
    low, high = y.aminmax()
    return f"values {low.item():g} to {high.item():g}"


def _is_same_shape(shape: tuple[int, ...], needed: tuple[int, ...]) -> bool:
    """Whether shapes differ in axes of one alone, or one of them is flat."""
    if math.prod(shape) != math.prod(needed):
        return False
    own, other = ([n for n in axes if n != 1] for axes in (shape, needed))
    return own == other or min(len(own), len(other)) <= 1


def _output_problem(
    domain: Domain, outputs: Sequence[torch.Tensor], axis: int
) -> Problem | None:
    kind, is_joint = domain.outputs, domain.targets != "values"
    if kind in ("any", "logarithms"):  # of what any number may be
        return None
    needed = ENDS[kind, is_joint]
    numbers = [_without_nan(out).double() for out in outputs]
    if kind == "log-probabilities":
        fits = all(_sum_to_one(out.exp(), axis, SUM_TOLERANCE) for out in numbers)
        return None if fits else ("outputs that are no log-probabilities", needed)
    if kind == "positive":
        is_negative = any((out < 0).any() for out in numbers)
        return ("outputs below 0", needed) if is_negative else None
    if kind == "probabilities":
        if not all(
            _sum_to_one(out, axis, SUM_TOLERANCE) if is_joint else _within_one(out)
            for out in numbers
        ):
            return "outputs that are no probabilities", needed
        if not is_joint and all(len(out) and (out == 1).all() for out in numbers):
            return "outputs that are 1 for every sample", needed
        return None
    tolerance = EXACT_TOLERANCE if outputs[0].dtype.itemsize > 2 else HALF_TOLERANCE
    are_done = all(
        len(out)
        and (_sum_to_one(out, axis, tolerance) if is_joint else _is_between(out))
        for out in numbers
    )
    return ("outputs that are probabilities already", needed) if are_done else None


def _without_nan(out: torch.Tensor) -> torch.Tensor:
    """The samples whose outputs are numbers; large random weights may make others."""
    return out[~out.isnan().reshape(len(out), -1).any(1)]


def _within_one(out: torch.Tensor) -> bool:
    return not bool(((out < 0) | (out > 1 + HALF_TOLERANCE)).any())


def _is_between(out: torch.Tensor) -> bool:
    """Whether outputs lie within 0 and 1 and differ, as a dead relu's do not."""
    return _within_one(out) and len(out.unique()) > 1


def _sum_to_one(out: torch.Tensor, axis: int, tolerance: float) -> bool:
    return _within_one(out) and bool(((out.sum(axis) - 1).abs() <= tolerance).all())
