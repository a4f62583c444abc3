"""A live Keras model in a party: trains in place; checks that samples and loss fit it.

The checks run a few samples through the model before round 1. Their errors say shapes,
never a sample's values.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from fedray.config import FederationConfig
from fedray.errors import DataError, WeightsMismatch, format_count
from fedray.models import torch_common
from fedray.models.base import (
    Blueprint,
    PartySlice,
    ProgressCallback,
    log_unstacked,
    no_progress,
    train_one_by_one,
)
from fedray.models.keras import losses, variables
from fedray.models.keras.backend import device_scope, seed_scope
from fedray.models.keras.build import build, sample_shape
from fedray.models.keras.losses import Loss
from fedray.models.keras.optimizers import make_optimizer
from fedray.models.torch_common import are_correct, check_labels, to_labels
from fedray.weights import Weights, mismatch

EVALUATION_BATCH = {"cpu": 128, "cuda": 512}

N_PROBED = 8  # that a probe runs through the model
SUM_TOLERANCE = 1e-2  # by which probabilities may miss a sum of 1, in half precision
EXACT_TOLERANCE = 1e-4  # so near to a sum of 1 no logits come by chance
HANDLERS = "Keras models have the data handlers mnist_keras and cifar10_keras"


class KerasModel:
    """A model, its loss and its optimizer's settings, for one actor's life.

    Raises
    ------
    WeightsMismatch
        If what was built is not what the blueprint says.
    """

    def __init__(self, blueprint: Blueprint, config: FederationConfig, device: str):
        self.config = blueprint.settle(config)
        self.device = torch_common.usable_device(device)
        self.on_progress: ProgressCallback = no_progress
        self.notes: dict[str, str] = {}
        self.loss = losses.named(self.config.loss, self.config.loss_args)
        with device_scope(self.device), seed_scope(0):
            self.model = build(blueprint.plan)
        self.names = list(blueprint.schema)
        n_built = len(self.model.weights)
        if len(self.names) != n_built:
            sizes = f"{format_count(n_built, 'tensor')} instead of {len(self.names)}"
            raise WeightsMismatch("the model built here", sizes)
        if difference := mismatch(self.weights(), blueprint.schema):
            raise WeightsMismatch("the model built here", difference)
        trained_names = set(blueprint.parameters)
        self.trained = [
            variable
            for name, variable in zip(self.names, self.model.weights, strict=True)
            if name in trained_names
        ]
        self._has_logged_unstacked = False

    def weights(self) -> Weights:
        """Arrays in get_weights() order; on a CPU they are views of the live model."""
        return variables.to_arrays(self.model, self.names)

    def load(self, weights: Weights) -> None:
        """Copy arrays into the model's own tensors."""
        for name, variable in zip(self.names, self.model.weights, strict=True):
            # a copy where the store's array is read-only: torch would warn
            array = weights[name]
            array = array if array.flags.writeable else array.copy()
            variables.tensor(variable).copy_(torch.from_numpy(array))

    def ready(self, x: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Tensors on the device; targets as this loss takes them."""
        samples, targets = self._to_samples(x), torch.as_tensor(y)
        with device_scope(self.device):
            targets = prepare_targets(self.model, self.loss, samples, targets)
        return samples, targets.to(self.device)

    def probe(self, source: str, x: torch.Tensor, y: torch.Tensor) -> None:
        """Raise DataError where samples, targets, model and loss do not fit."""
        with device_scope(self.device), torch.no_grad():
            out = compute_output(self.model, source, x[:N_PROBED])
            check_outputs(self.loss, source, out, y)

    def train_each(
        self,
        weights: Weights,
        parts: Sequence[PartySlice],
        x: torch.Tensor,
        y: torch.Tensor,
    ) -> Iterator[tuple[np.ndarray, Weights]]:
        """Train every part from `weights`, one after another."""
        is_asked = self.config.stacked == "true" and len(parts) > 1
        if is_asked and not self._has_logged_unstacked:
            log_unstacked(self.config, "Keras models are not trained stacked")
            self._has_logged_unstacked = True
        return train_one_by_one(self, weights, parts, x, y)

    def train(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        rows: np.ndarray,
        seed: int,
        start: Weights | None = None,
    ) -> float:
        """Train `epochs` passes in an order drawn from `seed`, with a new optimizer.

        The loss returned is that of the data, without what layers add to it
        (regularizers), which is trained with too.
        """
        with device_scope(self.device), seed_scope(seed):
            variables.reseed(self.model, seed)
            optimizer = make_optimizer(self.config)
            optimizer.build(self.trained)
            is_proximal = self.config.proximal_mu > 0
            pulled = self.trained if is_proximal else []
            anchor = [variables.tensor(variable).clone() for variable in pulled]
            if start is not None:
                self.load(start)

            def train_batch(batch: torch.Tensor) -> torch.Tensor:
                loss = self._compute_gradients(x[batch], y[batch])
                if is_proximal:
                    self._add_proximal_gradient(anchor)
                self._step(optimizer)
                return loss

            order = np.random.default_rng(seed)
            loss = torch_common.run_epochs(self, rows, order, train_batch)
            optimizer.finalize_variable_values(self.trained)
        return loss

    def evaluate(self, x: Any, y: Any) -> tuple[float, float | None]:
        """Mean loss over the samples; accuracy for classes and two-way targets."""

        def score(
            samples: torch.Tensor, targets: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            out = self.model(samples, training=False)
            is_right = right_answers(self.loss, out, targets)
            return self._mean_loss(targets, out), is_right

        with device_scope(self.device):
            size = EVALUATION_BATCH[self.device]
            return torch_common.evaluate_batches(x, y, size, score)

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Probabilities (N, C) float64 of samples (N, ...); softmax of logits.

        Raises
        ------
        DataError
            If the loss is not one of classes, or the output not (samples, classes).
        """
        if self.loss.targets not in ("one_hot", "labels"):
            got = f"a model trained with {self.config.loss}"
            raise DataError("of an ensemble", got, "a loss of classes (crossentropy)")
        samples = self._to_samples(np.ascontiguousarray(x))
        with device_scope(self.device):
            out = torch_common.output_of_classes(
                lambda batch: self.model(batch, training=False),
                samples,
                EVALUATION_BATCH[self.device],
            )
        is_done = self.loss.outputs == "probabilities"
        return (out if is_done else out.softmax(1)).cpu().numpy()

    def _to_samples(self, x: np.ndarray) -> torch.Tensor:
        """Samples on the device, floats in the dtype of the model's variables."""
        samples = torch.as_tensor(x)
        if samples.is_floating_point():
            samples = samples.to(getattr(torch, self.model.dtype_policy.variable_dtype))
        return samples.to(self.device)

    def _mean_loss(self, y: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        if self.loss.targets in ("values", "binary"):
            y = y.reshape(out.shape)  # (N,) against (N, 1) would broadcast
        return self.loss.function(y, out)

    def _compute_gradients(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Set gradients of one batch; its mean loss without regularizers."""
        loss = self._mean_loss(y, self.model(x, training=True))
        regularization = self.model.losses
        for variable in self.trained:
            variable.value.grad = None
        (loss + sum(regularization) if regularization else loss).backward()
        return loss.detach()

    def _add_proximal_gradient(self, anchor: list[torch.Tensor]) -> None:
        parameters = [variable.value for variable in self.trained]
        torch_common.add_proximal_gradient(parameters, anchor, self.config.proximal_mu)

    def _step(self, optimizer: Any) -> None:
        with torch.no_grad():
            gradients = [variable.value.grad for variable in self.trained]
            optimizer.apply(gradients, self.trained)


def prepare_targets(
    model: Any, loss: Loss, x: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    """Targets as the loss takes them.

    Parameters
    ----------
    x : (N, ...) samples
    y : (N,), (N, 1) or (N, classes)

    Returns
    -------
    Labels (N,) int64, rows of classes (N, classes), or `y` in floats. Labels that are
    no classes of the model are returned as they are: `check_outputs` refuses them.
    """
    if loss.targets == "labels":
        return to_labels(y)
    is_one_hot = y.ndim == 2 and y.shape[1] > 1
    if loss.targets != "one_hot" or is_one_hot:
        return y.to(torch.get_default_dtype())
    labels = y.reshape(len(y)).long()
    n_classes = _n_outputs(model, x)
    if n_classes is None or not _are_classes(labels, n_classes):
        return labels
    return torch.nn.functional.one_hot(labels, n_classes).to(torch.get_default_dtype())


def compute_output(model: Any, source: str, x: torch.Tensor) -> torch.Tensor:
    """The model's output for a few samples (N, ...).

    Raises
    ------
    DataError
        If it does not take them, or returns something else than one tensor.
    """
    needed_shape, shape = sample_shape(model, "input_shape"), tuple(x.shape[1:])
    got = f"samples of shape {list(shape)} ({str(x.dtype).removeprefix('torch.')})"
    if needed_shape is not None and not _fits(shape, needed_shape):
        needed = str(list(needed_shape)).replace("None", "any")
        hint = f"; {HANDLERS}" if len(needed_shape) == 3 else ""
        raise DataError(source, got, f"{needed}, as the model takes{hint}")
    try:
        out = model(x, training=False)
    except Exception as error:  # Keras raises of every kind
        first_line = (str(error).strip().splitlines() or [""])[0][:200]
        raise DataError(source, got, f"what the model takes: {first_line}") from None
    if not isinstance(out, torch.Tensor):
        got = f"a model that returns a {type(out).__name__}"
        raise DataError(source, got, "a model that returns one tensor")
    return out


def check_outputs(loss: Loss, source: str, out: torch.Tensor, y: torch.Tensor) -> None:
    """Compare outputs of a few samples, and all targets, with what the loss takes.

    Raises
    ------
    DataError
        If they do not fit.
    """
    if loss.targets in ("one_hot", "labels"):
        _check_classes(source, out, y)
    elif out[0].numel() != y[:1].numel():
        got = f"targets of shape {list(y.shape[1:])}"
        raise DataError(source, got, f"{list(out.shape[1:])}, as the model gives")
    for_loss = f"for loss {loss.name}"
    is_binary = loss.targets == "binary"
    if loss.outputs == "probabilities" and not (
        _are_probabilities(out) if is_binary else _sum_to_one(out, SUM_TOLERANCE)
    ):
        raise DataError(
            source,
            f"outputs that are no probabilities, {for_loss}",
            "a model that ends in softmax or sigmoid, or a loss of logits: "
            "cross_entropy, binary_cross_entropy_with_logits",
        )
    if loss.outputs == "log-probabilities" and not _sum_to_one(
        out.exp(), SUM_TOLERANCE
    ):
        got = f"outputs that are no logarithms of probabilities, {for_loss}"
        raise DataError(source, got, "a model that ends in log_softmax")
    if loss.outputs == "logits" and not is_binary and _sum_to_one(out, EXACT_TOLERANCE):
        raise DataError(
            source,
            f"outputs that are probabilities already, {for_loss}",
            "a model without its last softmax, or the loss categorical_crossentropy",
        )


def right_answers(
    loss: Loss, out: torch.Tensor, y: torch.Tensor
) -> torch.Tensor | None:
    """Which outputs name the right class, (N,); None for targets that are values."""
    if loss.targets == "one_hot":
        return out.argmax(-1) == y.argmax(-1)
    if loss.targets == "labels":
        return out.argmax(-1) == y
    if loss.targets == "binary":
        return are_correct(out, y, 0.5 if loss.outputs == "probabilities" else 0.0)
    return None


def _check_classes(source: str, out: torch.Tensor, y: torch.Tensor) -> None:
    if out.ndim != 2:
        got = f"model output of shape {list(out.shape)}"
        raise DataError(source, got, "(samples, classes), as this loss takes")
    n_classes = out.shape[1]
    if y.ndim == 2:
        if y.shape[1] != n_classes:
            got = f"rows of {y.shape[1]} classes"
            raise DataError(source, got, f"{n_classes}, as many as the model gives")
        return
    check_labels(source, y, n_classes)


def _are_probabilities(out: torch.Tensor) -> bool:
    """Whether all outputs lie within 0 and 1."""
    out = out.float()
    return not bool((out < 0).any()) and not bool((out > 1 + SUM_TOLERANCE).any())


def _sum_to_one(out: torch.Tensor, tolerance: float) -> bool:
    """Whether outputs lie within 0 and 1 and those of each sample sum to 1."""
    sums = out.float().sum(-1)
    return _are_probabilities(out) and bool(((sums - 1).abs() < tolerance).all())


def _n_outputs(model: Any, x: torch.Tensor) -> int | None:
    """Classes of a model whose output is (N, classes); None if it has another shape."""
    shape = sample_shape(model, "output_shape")
    if shape is None and len(x):
        try:
            with torch.no_grad():
                shape = model(x[:1], training=False).shape[1:]
        except Exception:  # `compute_output` says what is wrong
            return None
    return shape[-1] if shape and len(shape) == 1 else None


def _are_classes(labels: torch.Tensor, n_classes: int) -> bool:
    return not len(labels) or bool((labels.min() >= 0) & (labels.max() < n_classes))


def _fits(shape: tuple[int, ...], needed: tuple[int | None, ...]) -> bool:
    return len(shape) == len(needed) and all(
        n is None or n == m for m, n in zip(shape, needed, strict=True)
    )
