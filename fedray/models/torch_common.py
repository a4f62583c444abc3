"""Shared by models that run on torch: device, batches, labels, FedProx, evaluation."""

import contextlib
import functools
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from fedray.config import RunConfig, rate_function
from fedray.errors import ConfigError, DataError
from fedray.models.base import PartySlice, ProgressCallback
from fedray.models.loss_domains import LossUse, to_predictions
from fedray.models.torch_samples import TorchSamples
from fedray.models.torch_steps import passes_of
from fedray.nested import Nested, length, take

N_TRIED = 2  # samples that are tried before all are predicted


def usable_device(device: str) -> str:
    """The assigned device, or the CPU where torch cannot use it.

    On a GPU this switches the process to deterministic kernels: a round that is trained
    again must give the same bits, as it does on a CPU. Where torch has no such kernel
    it warns, and the bits may differ.
    """
    if device == "cpu" or not torch.cuda.is_available():
        return "cpu"
    # read when the first matrix product is made
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # fedray reads no memory that is not filled; torch's module has no annotation of it
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return device


def describe_arithmetic(device: str) -> str:
    """What decides the bits of a training beside weights, data and config."""
    vectors = torch.backends.cpu.get_cpu_capability()
    n_threads = torch.get_num_threads()
    used = f"torch {torch.__version__}, numpy {np.__version__}, {n_threads} threads"
    return f"{used}, {device}, {vectors}, {_describe_processor()}"


@functools.cache
def _describe_processor() -> str:
    """Kind of this machine's processor, by which libraries choose their code."""
    kind = f"{platform.machine()} {platform.processor()}"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        names = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")
        own = {name.strip(): value.strip() for name, value in fields.items()}
        kind += " " + " ".join(own.get(name, "") for name in names)
    return kind


def optimizer_error(config: RunConfig, error: Exception) -> ConfigError:
    """The ConfigError of an optimizer that does not take its arguments."""
    lines = str(error).strip().splitlines() or [""]
    args = f"optimizer_args {config.optimizer_args}"
    is_rate = bool({"lr", "learning_rate"} & {*config.optimizer_args})
    remedy = "; its rate is the key learning_rate" if is_rate else ""
    return ConfigError([f"{config.optimizer} refuses {args}: {lines[0][:300]}{remedy}"])


class BatchTrainable(Protocol):
    """A model that `run_epochs` trains."""

    config: RunConfig
    device: str
    on_progress: ProgressCallback

    def batch_sizes(self, n_samples: int) -> list[int]:
        """Sizes of the batches of one pass over this many samples."""

    def count_steps(self, n_samples: int) -> int:
        """Training steps of a party with this many samples in a round."""

    def weigh(self, y: Nested) -> torch.Tensor | None:
        """The sum of weights of a mean over these targets; None: their number."""


class OptimizerStep(Protocol):
    """Takes inputs and targets of a batch, makes one step; the mean loss before it."""

    def __call__(self, x: Nested, y: Any) -> torch.Tensor: ...

    def set_learning_rate(self, rate: float) -> None:
        """Take the next steps with this rate."""


def run_epochs(
    model: BatchTrainable,
    samples: TorchSamples,
    part: PartySlice,
    train_batch: OptimizerStep,
) -> float:
    """Train `epochs` passes, or `local_steps`; mean loss of the last pass.

    The order of each pass is drawn from the part's seed.
    """
    config, sizes = model.config, model.batch_sizes(len(part.rows))
    n_steps = model.count_steps(len(part.rows))
    is_scheduled = config.scheduler is not None
    rate_at = rate_function(config, part.round, n_steps, part.learning_rate)
    n_expected = config.local_steps or sum(sizes) * config.epochs
    loss, weights, n_done = torch.zeros((), device=model.device), 0.0, 0
    batches = _training_batches(config, samples, part, sizes)
    for step, (is_last_pass, x, y) in enumerate(batches):
        n_batch, own = length(x), model.weigh(y)
        weight = float(n_batch if own is None else own)
        if is_scheduled:  # a stream may have more batches than it declared
            train_batch.set_learning_rate(rate_at(min(step, n_steps - 1)))
        batch_loss = train_batch(x, y)
        if is_last_pass:
            loss += batch_loss * weight
            weights += weight
        n_done += n_batch if config.local_steps is None else 1
        model.on_progress(min(1.0, n_done / n_expected))
    return float(loss) / (weights or 1.0)


def _training_batches(
    config: RunConfig, samples: TorchSamples, part: PartySlice, sizes: list[int]
) -> Iterator[tuple[bool, Nested, Nested]]:
    """Batches of a round, and whether each belongs to the last pass.

    Of `local_steps` those are as many of the last ones as a pass has.
    """
    order, n_passes = np.random.default_rng(part.seed), passes_of(config, len(sizes))
    first, n_most = (part.round - 1) * n_passes, config.local_steps
    if n_most is None:
        for epoch in range(first, first + n_passes):
            for x, y in samples.shuffled(part.rows, sizes, order, epoch):
                yield epoch == first + n_passes - 1, x, y
        return
    n_done = 0
    for epoch in count(first):
        n_before = n_done
        with closing(samples.shuffled(part.rows, sizes, order, epoch)) as batches:
            for x, y in batches:
                yield n_done >= n_most - len(sizes), x, y
                n_done += 1
                if n_done == n_most:
                    return
        if n_done == n_before:
            needed = "at least one: a stream has to give its samples at every pass"
            raise DataError(part.party, "a pass without a batch", needed)


def takes_batch_statistics(module: torch.nn.Module) -> bool:
    """Whether a layer takes statistics of a batch in the mode the module is in."""
    return any(
        isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)
        and (layer.training or layer.running_mean is None)
        for layer in module.modules()
    )


def add_proximal_gradient(
    parameters: Iterable[torch.Tensor], anchor: Iterable[torch.Tensor], mu: float
) -> None:
    """Add the gradient of FedProx's term, mu · (w - w_global), to each `.grad`.

    anchor : the global weights, one tensor for each parameter.

    Source: Li et al. 2020, arXiv:1812.06127.
    """
    for parameter, start in zip(parameters, anchor, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - start, alpha=mu)


def predictions(
    model: Callable[[Nested], torch.Tensor], x: Nested, size: int, loss: LossUse
) -> np.ndarray:
    """What a model says of samples (N, ...), by batches: see `ScoredModel.predict`."""
    with torch.no_grad():
        starts = range(0, max(1, length(x)), size)  # of no sample: one empty batch
        parts = [
            to_predictions(loss, model(take(x, slice(i, i + size)))).cpu()
            for i in starts
        ]
    return torch.cat(parts).numpy()


def require_probabilities(predicted: np.ndarray, loss: LossUse) -> np.ndarray:
    """The same predictions, if they are probabilities of classes (N, C).

    Raises
    ------
    DataError
        If the loss is not one of classes, or the model's output of another shape.
    """
    if not loss.domain.has_classes:
        choices = [name for name, one in loss.choices.items() if one.has_classes]
        needed = f"a loss of classes: {', '.join(choices)}"
        raise DataError("of an ensemble", f"a model trained with {loss.name}", needed)
    if predicted.ndim != 2:
        got = f"model output of shape {list(predicted.shape)}"
        raise DataError("of an ensemble", got, "(samples, classes)")
    return predicted
