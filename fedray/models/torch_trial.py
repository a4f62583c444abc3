"""Trial of training and evaluation before round 1: one real step for a kind of batch.

It finds what only training shows: batch norm and a batch of one, an optimizer that
refuses the model's gradients, a loss that refuses its outputs, ids outside an
embedding. Errors say shapes, never a sample's values.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from fedray import user_code
from fedray.config import RunConfig, rate_function
from fedray.errors import MetricError, TrialFailed, format_count
from fedray.messages import Scores
from fedray.models.torch_samples import TensorSamples, TorchSamples
from fedray.nested import Nested
from fedray.weights import Weights

N_EVALUATED = 16  # samples that an evaluation is tried on, the extreme ones
EVALUATION = "the evaluation"
NO_GRADIENT = (
    "the loss does not depend on what trains: take detach(), item(), no_grad() and "
    "argmax out of it and of the model"
)
ADVICE = {  # by the first words of the part that failed
    "the optimizer": "choose another optimizer or other optimizer_args; plain "
    "optim.SGD takes sparse gradients, Embedding(sparse=False) gives dense ones",
    "the pull of proximal_mu": "set proximal_mu: 0, or give layers dense gradients "
    "(sparse=False)",
    "gradient_clip_norm": "leave gradient_clip_norm out, or give layers dense "
    "gradients (sparse=False)",
    "the loss": "choose a loss that takes these outputs and targets",
    EVALUATION: "mend the model: it must take batches of any size, also one "
    "sample (squeeze() takes the batch's axis away)",
}
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


class HasPart(Protocol):
    """Something that runs in parts."""

    @property
    def part(self) -> str:
        """What runs now: the model, the loss, the gradients, the optimizer."""


class TrainingStep(HasPart, Protocol):
    """One optimizer step on a batch, as training takes it; returns the loss."""

    def __call__(self, x: Nested, y: Nested) -> torch.Tensor: ...

    def set_learning_rate(self, rate: float) -> None:
        """Take the next steps with this rate."""


class TriedModel(Protocol):
    """What a trial needs of a model."""

    config: RunConfig
    device: str
    trained: list[Any]

    def load(self, weights: Weights) -> None:
        """Overwrite the model in place."""

    def count_steps(self, n_samples: int) -> int:
        """Training steps of a party with this many samples in a round."""

    def new_step(self) -> TrainingStep:
        """A step with a new optimizer; the model is in training mode."""

    def evaluate(self, samples: TensorSamples) -> Scores:
        """Loss and accuracy."""


@dataclass
class OnePart:
    """What has one part alone, such as an evaluation."""

    part: str


def try_training(
    model: TriedModel,
    source: str,
    weights: Weights,
    samples: TorchSamples,
    sizes: list[int],
) -> list[float]:
    """Take a training step on a batch of each size; see `BatchModel.try_training`."""
    if not model.trained:
        reason = "since no parameter of the model is trained, all are frozen"
        raise TrialFailed(source, "training", reason, "unfreeze one (requires_grad)")
    extremes, losses = samples.extremes(max(sizes)), []
    for size in sizes:
        model.load(weights)
        batch = extremes.copy(size)
        what = f"a training step on {format_count(size, 'sample')}"
        with explained(OnePart("the optimizer"), source, what, model.config):
            step = model.new_step()
            if model.config.scheduler is not None:
                n_steps = model.count_steps(len(samples))
                step.set_learning_rate(rate_function(model.config, 1, n_steps)(0))
        with explained(step, source, what, model.config, is_single=size == 1):
            losses.append(float(step(batch.x, batch.y)))
    return losses


def try_evaluation(
    model: TriedModel,
    source: str,
    samples: TorchSamples,
    sizes: list[int],
) -> None:
    """Evaluate the extreme samples, and one sample if the last batch has no more.

    sizes : of an evaluation's batches.
    """
    extremes = samples.extremes(N_EVALUATED)
    for size in {len(extremes), *([1] if sizes[-1] == 1 else [])}:
        batch = extremes.copy(size)
        what = f"an evaluation of {format_count(size, 'test sample')}"
        with explained(OnePart(EVALUATION), source, what, model.config):
            model.evaluate(batch)


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
def explained(
    running: HasPart, source: str, what: str, config: RunConfig, is_single: bool = False
) -> Iterator[None]:
    """Turn any error into a TrialFailed that says in which part, and what to do.

    is_single : whether a training step takes one sample.
    """
    try:
        yield
    except (MemoryError, MetricError):
        raise
    except Exception as error:  # models, losses and optimizers raise of every kind
        reason = f"in {running.part}: {user_code.describe(error)}"
        remedy = _remedy(error, running.part, config, is_single)
        raise TrialFailed(source, what, reason, remedy) from None


def _remedy(error: Exception, part: str, config: RunConfig, is_single: bool) -> str:
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in text:
        return "lower batch_size, or give this party more memory"
    if "does not require grad" in text:
        return NO_GRADIENT
    if is_single and config.batch_size == 1:
        return "raise batch_size, or mend the model: it does not take a single sample"
    if is_single:
        return (
            "one sample is left over for the last batch: set drop_last: true, or "
            "another batch_size"
        )
    if isinstance(error, IndexError) and part != EVALUATION:
        return (
            "look whether the samples with the smallest and largest values fit, such "
            "as ids within an embedding"
        )
    fitting = (advice for words, advice in ADVICE.items() if part.startswith(words))
    return next(fitting, "mend the model, or the samples that it is given")
