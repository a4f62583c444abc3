"""Trial of training and evaluation before round 1: one real step for a kind of batch.

It finds what only training shows: batch norm and a batch of one, an optimizer that
refuses the model's gradients, a loss that refuses its outputs, ids outside an
embedding. Errors say shapes, never a sample's values.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn

from fedray import user_code
from fedray.config import RunConfig
from fedray.errors import TrialFailed, format_count
from fedray.models.torch_common import extreme_rows
from fedray.weights import Weights

N_PROBED = 16  # samples that an evaluation is tried on, the extreme ones
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


class Partial(Protocol):
    """Something that runs in parts.

    part : what runs now: the model, the loss, the gradients, the optimizer.
    """

    part: str


class TrainingStep(Partial, Protocol):
    """One optimizer step on a batch, as training takes it; returns the loss."""

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor: ...


class TriedModel(Protocol):
    """What a trial needs of a model."""

    config: RunConfig
    device: str

    def load(self, weights: Weights) -> None:
        """Overwrite the model in place."""

    def new_step(self) -> TrainingStep:
        """A step with a new optimizer; the model is in training mode."""

    def undo(self, weights: Weights) -> contextlib.AbstractContextManager[None]:
        """Restore weights, all other state, random states and mode afterwards."""

    def evaluate(self, x: Any, y: Any) -> tuple[float, float | None]:
        """Mean loss and accuracy."""


def try_training(
    model: TriedModel,
    source: str,
    weights: Weights,
    samples: tuple[torch.Tensor, torch.Tensor],
    sizes: list[int],
) -> list[float]:
    """Take a training step on a batch of each size; see `BatchModel.try_training`."""
    x, y = samples
    rows, losses = extreme_rows(x, y, max(sizes)), []
    with model.undo(weights):
        for size in sizes:
            model.load(weights)
            step = model.new_step()
            batch = torch.from_numpy(rows[:size]).to(model.device)
            what = f"a training step on {format_count(size, 'sample')}"
            with _explained(step, source, what, size, model.config):
                losses.append(float(step(x[batch], y[batch])))
    return losses


class _Evaluation:
    part = "the model or its loss"


def try_evaluation(
    model: TriedModel,
    source: str,
    samples: tuple[torch.Tensor, torch.Tensor],
    sizes: list[int],
) -> None:
    """Evaluate the extreme samples, and one sample if the last batch has no more.

    sizes : of an evaluation's batches.
    """
    x, y = samples
    rows = extreme_rows(x, y, N_PROBED)
    for size in {len(rows), *([1] if sizes[-1] == 1 else [])}:
        batch = torch.from_numpy(rows[:size]).to(model.device)
        what = f"an evaluation of {format_count(size, 'test sample')}"
        with _explained(_Evaluation(), source, what, size, model.config):
            model.evaluate(x[batch], y[batch])


@contextlib.contextmanager
def bounded_embeddings(module: nn.Module) -> Iterator[None]:
    """Raise IndexError for ids outside an embedding, before a GPU stops at them."""

    def check(layer: Any, inputs: tuple[Any, ...]) -> None:
        ids, n_rows = inputs[0], layer.num_embeddings
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < n_rows:
            name = names[layer]
            raise IndexError(f"ids outside 0..{n_rows - 1}, the rows of layer {name}")

    names = {
        layer: name or "(all)"
        for name, layer in module.named_modules()
        if isinstance(layer, EMBEDDINGS)
    }
    hooks = [layer.register_forward_pre_hook(check) for layer in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _explained(
    running: Partial, source: str, what: str, size: int, config: RunConfig
) -> Iterator[None]:
    """Turn any error into a TrialFailed that says in which part, and what to do."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # models, losses and optimizers raise of every kind
        reason = f"in {running.part}: {user_code.describe(error)}"
        remedy = _remedy(error, running.part, size, config)
        raise TrialFailed(source, what, reason, remedy) from None


def _remedy(error: Exception, part: str, size: int, config: RunConfig) -> str:
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in text:
        return "lower batch_size, or give this party more memory"
    if size == 1 and config.batch_size > 1:
        return (
            "a batch of one sample is left over: set drop_last: true, or another "
            "batch_size"
        )
    if size == 1 and "more than 1 value" in text:
        return "raise batch_size: this model takes statistics of a batch"
    if isinstance(error, IndexError):
        return (
            "samples with the smallest or largest values do not fit: enlarge the "
            "embedding, or correct the data"
        )
    if part.startswith("the optimizer"):
        return (
            "choose another optimizer (optim.SGD takes sparse gradients), or layers "
            "with dense ones (sparse=False)"
        )
    if part.startswith("the loss"):
        return "choose a loss that takes these, or change the targets"
    return "mend the model, or the samples that it is given"
