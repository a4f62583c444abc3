"""Shared by models that run on torch: device, batches, labels, FedProx, evaluation."""

import os
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
import torch

from fedray.config import RunConfig
from fedray.errors import ConfigError, DataError
from fedray.models.base import ProgressCallback


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


def optimizer_error(config: RunConfig, error: Exception) -> ConfigError:
    """The ConfigError of an optimizer that does not take its arguments."""
    lines = str(error).strip().splitlines() or [""]
    args = f"optimizer_args {config.optimizer_args}"
    return ConfigError([f"{config.optimizer} refuses {args}: {lines[0][:300]}"])


class BatchTrainable(Protocol):
    """A model that `run_epochs` trains."""

    config: RunConfig
    device: str
    on_progress: ProgressCallback

    def batch_sizes(self, n_samples: int) -> list[int]:
        """Sizes of the batches of one pass over this many samples."""


def run_epochs(
    model: BatchTrainable,
    rows: np.ndarray,
    order: np.random.Generator,
    train_batch: Callable[[torch.Tensor], torch.Tensor],
) -> float:
    """Train `config.epochs` passes over shuffled batches; mean loss of the last pass.

    Parameters
    ----------
    rows : (n,) int64, the samples' places in x and y.
    order : draws the order of each pass.
    train_batch : takes places (B,) int64 on the model's device, makes one step, and
        returns the mean loss before it.
    """
    epochs, sizes = model.config.epochs, model.batch_sizes(len(rows))
    n_used = sum(sizes)
    loss, n_done = torch.zeros(()), 0
    for _ in range(epochs):
        shuffled = rows[order.permutation(len(rows))][:n_used]
        loss = torch.zeros((), device=model.device)
        for batch in torch.from_numpy(shuffled).to(model.device).split(sizes):
            loss += train_batch(batch) * len(batch)
            n_done += len(batch)
            model.on_progress(n_done / (n_used * epochs))
    return float(loss) / n_used


def extreme_rows(x: torch.Tensor, y: torch.Tensor, n_most: int) -> np.ndarray:
    """Places of up to `n_most` samples, those with the extreme values first.

    The smallest and largest value of all samples and targets, then of each column of
    samples that are rows of few numbers, then samples in their order.
    """
    places: list[int] = []
    for values in (x, y):
        flat = values.cpu().numpy().reshape(len(values), -1)
        if flat.size:
            places += [int(i) // flat.shape[1] for i in (flat.argmin(), flat.argmax())]
    flat = x.cpu().numpy().reshape(len(x), -1)
    if x.ndim == 2 and 1 < flat.shape[1] <= n_most:
        places += np.stack([flat.argmin(0), flat.argmax(0)], 1).ravel().tolist()
    places += range(min(n_most, len(x)))
    return np.array([*dict.fromkeys(places)][:n_most])


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


def evaluate_batches(
    x: torch.Tensor,
    y: torch.Tensor,
    sizes: list[int],
    score: Callable[
        [torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]
    ],
) -> tuple[float, float | None]:
    """Mean loss over samples (N, ...), and accuracy where `score` gives answers.

    Parameters
    ----------
    sizes : of the batches, samples; together as many as there are.
    score : takes samples and targets of a batch; returns the mean loss and which
        answers are right, (B, ...) bool, or None for targets that are values.
    """
    loss, n_right, n_answers = 0.0, 0, 0
    with torch.no_grad():
        for samples, targets in zip(x.split(sizes), y.split(sizes), strict=True):
            batch_loss, is_right = score(samples, targets)
            loss += float(batch_loss) * len(targets)
            if is_right is not None:
                n_right += int(is_right.sum())
                n_answers += is_right.numel()
    return loss / len(x), n_right / n_answers if n_answers else None


def output_of_classes(
    model: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, size: int
) -> torch.Tensor:
    """A model's output (N, classes) in float64 for samples (N, ...), by batches.

    Raises
    ------
    DataError
        If the output has another shape.
    """
    with torch.no_grad():
        out = torch.cat([model(batch) for batch in x.split(size)])
    if out.ndim != 2:
        got = f"model output of shape {list(out.shape)}"
        raise DataError("of an ensemble", got, "(samples, classes)")
    return out.double()
