"""One PyTorch module that trains in place."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch

from fedray.config import FederationConfig
from fedray.errors import DataError, WeightsMismatch
from fedray.models.base import (
    Blueprint,
    PartySlice,
    ProgressCallback,
    no_progress,
    train_one_by_one,
)
from fedray.models.pytorch import stacking_check
from fedray.models.pytorch.build import build
from fedray.models.pytorch.optimizers import (
    BINARY,
    CLASSES,
    loss_named,
    make_optimizer,
    step,
)
from fedray.models.pytorch.stacked import Stack
from fedray.models.torch_common import usable
from fedray.weights import Weights, mismatch

# arrays from the object store are read-only, and only read; told so each time, Python
# would also forget which other warnings it has given once
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

EVALUATE_BATCH = {"cpu": 64, "cuda": 512}  # on a CPU a batch must fit its cache


class TorchModel:
    """A module, its loss and its optimizer's settings, for one actor's life.

    Raises
    ------
    WeightsMismatch
        If what was built is not what the blueprint says.
    """

    def __init__(self, blueprint: Blueprint, config: FederationConfig, device: str):
        self.config, self.device = blueprint.settle(config), usable(device)
        self.on_progress: ProgressCallback = no_progress
        self.notes: dict[str, str] = {}
        self.loss = loss_named(self.config.loss)
        self.module = build(blueprint.plan, blueprint.schema).to(self.device)
        self.tensors = self.module.state_dict()  # views: they follow the training
        different = mismatch(self.weights(), blueprint.schema)
        if different:
            raise WeightsMismatch("the model built here", different)
        trained = set(blueprint.parameters)
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(name in trained)
        self.trained = [p for p in self.module.parameters() if p.requires_grad]
        self._stack: Stack | Literal[False] | None = None  # None: not yet decided

    def weights(self) -> Weights:
        """Arrays in state_dict order; on a CPU they are views of the live module."""
        return {
            name: np.ascontiguousarray(tensor.cpu().numpy()).reshape(tensor.shape)
            for name, tensor in self.tensors.items()
        }

    def load(self, weights: Weights) -> None:
        """Copy arrays into the module's own tensors."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(torch.from_numpy(weights[name]))

    def ready(self, x: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Tensors on the device: floats as the module's, class targets as int64."""
        samples, targets = torch.as_tensor(x), torch.as_tensor(y)
        if samples.is_floating_point():
            samples = samples.to(self._dtype())
        if self.config.loss in CLASSES:
            one_hot = targets.ndim == 2 and targets.shape[1] > 1
            targets = targets.argmax(1) if one_hot else targets.reshape(len(targets))
            targets = targets.long()
        else:
            targets = targets.to(self._dtype())
        return samples.to(self.device), targets.to(self.device)

    def probe(self, source: str, x: torch.Tensor, y: torch.Tensor) -> None:
        """Run the model on one sample and look whether output and targets fit."""
        self.module.eval()
        try:
            with torch.no_grad():
                out = self.module(x[:1])
        except (RuntimeError, ValueError, IndexError) as error:
            first = str(error).splitlines()[0][:200]
            got = f"samples of shape {list(x.shape[1:])} ({x.dtype})"
            raise DataError(source, got, f"what the model takes: {first}") from None
        if not isinstance(out, torch.Tensor):
            got = f"a model that returns a {type(out).__name__}"
            raise DataError(source, got, "a model that returns one tensor")
        if self.config.loss in CLASSES:
            _check_classes(source, out, y)
        elif out[0].numel() != y[:1].numel():
            got = f"targets of shape {list(y.shape[1:])}"
            raise DataError(source, got, f"{list(out.shape[1:])}, as the model gives")

    def train_each(
        self,
        weights: Weights,
        parts: Sequence[PartySlice],
        x: torch.Tensor,
        y: torch.Tensor,
    ) -> Iterator[tuple[np.ndarray, Weights]]:
        """Train every part from `weights`, many at once where that is the same."""
        if len(parts) > 1 and self._stack is None:
            self._stack = stacking_check.stack_for(self, weights, x, y) or False
        stacks = self._stack.cut(parts, x) if self._stack and len(parts) > 1 else []
        for stacked in stacks:
            self.load(weights)
            yield self._stack.train(stacked, x, y)
        if not stacks:
            yield from train_one_by_one(self, weights, parts, x, y)

    def train(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        rows: np.ndarray,
        seed: int,
        start: Weights | None = None,
    ) -> float:
        """Train `epochs` passes in an order drawn from `seed`; fresh optimizer."""
        torch.manual_seed(seed)  # dropout
        order = np.random.default_rng(seed)
        optimizer = make_optimizer(self.config, self.trained)
        is_pulled = self.config.proximal_mu > 0
        anchor = [p.detach().clone() for p in self.trained] if is_pulled else []
        if start is not None:
            self.load(start)
        self.module.train()
        loss, n_done, n_all = torch.zeros(()), 0, len(rows) * self.config.epochs
        for _ in range(self.config.epochs):
            passed = rows[order.permutation(len(rows))]
            loss = torch.zeros((), device=self.device)
            batches = torch.from_numpy(passed).to(self.device)
            for batch in batches.split(self.config.batch_size):
                optimizer.zero_grad(set_to_none=True)
                batch_loss = self.losses(self.module(x[batch]), y[batch], "mean")
                batch_loss.backward()
                self._pull(anchor)
                step(optimizer)
                loss += batch_loss.detach() * len(batch)
                n_done += len(batch)
                self.on_progress(n_done / n_all)
        return float(loss) / len(rows)

    def _pull(self, anchor: list[torch.Tensor]) -> None:
        """Let gradients lead back to the global weights, if there is an anchor."""
        for parameter, start in zip(self.trained, anchor, strict=False):
            if parameter.grad is not None:
                moved = parameter.detach() - start
                parameter.grad.add_(moved, alpha=self.config.proximal_mu)

    def evaluate(self, x: Any, y: Any) -> tuple[float, float | None]:
        """Mean loss over the samples; accuracy for classes and two-way targets."""
        self.module.eval()
        loss, right, n_answers = 0.0, 0, 0
        size = EVALUATE_BATCH[self.device]
        with torch.no_grad():
            for given, targets in zip(x.split(size), y.split(size), strict=True):
                out = self.module(given)
                loss += float(self.losses(out, targets, "mean")) * len(targets)
                answers = self._answers(out, targets)
                if answers is not None:
                    right, n_answers = right + int(answers.sum()), n_answers + len(out)
        return loss / len(x), right / n_answers if n_answers else None

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Probabilities (N, C) of samples (N, ...); softmax of what the loss takes.

        nll_loss takes log-probabilities, whose softmax is the probabilities.
        """
        if self.config.loss not in CLASSES:
            got = f"a model trained with {self.config.loss}"
            raise DataError("of an ensemble", got, f"a loss of classes: {CLASSES}")
        samples, _ = self.ready(x, np.zeros(len(x), np.int64))
        self.module.eval()
        with torch.no_grad():
            parts = samples.split(EVALUATE_BATCH[self.device])
            out = torch.cat([self.module(part) for part in parts])
        if out.ndim != 2:
            got = f"model output of shape {list(out.shape)}"
            raise DataError("of an ensemble", got, "(samples, classes)")
        return out.double().softmax(1).cpu().numpy()

    def losses(
        self, out: torch.Tensor, targets: torch.Tensor, reduction: str = "none"
    ) -> torch.Tensor:
        """Losses of outputs, one each or as `reduction` says."""
        if self.config.loss not in CLASSES:
            targets = targets.reshape(out.shape)  # (N,) against (N, 1) would broadcast
        return self.loss(out, targets, reduction=reduction)

    def _answers(self, out: torch.Tensor, y: torch.Tensor) -> torch.Tensor | None:
        if self.config.loss in CLASSES:
            return out.argmax(1) == y
        if self.config.loss in BINARY:
            said = out > BINARY[self.config.loss]
            return (said == (y.reshape(out.shape) > 0.5)).reshape(len(y), -1).all(1)
        return None

    def _dtype(self) -> torch.dtype:
        floats = (t.dtype for t in self.tensors.values() if t.is_floating_point())
        return next(floats, torch.float32)


def _check_classes(source: str, out: torch.Tensor, y: torch.Tensor) -> None:
    if out.ndim < 2:
        got = f"model output of shape {list(out.shape)}"
        raise DataError(source, got, "(samples, classes), as this loss takes")
    n_classes = out.shape[1]
    n_wrong = int(((y < 0) | (y >= n_classes)).sum())
    if n_wrong:
        got = f"{n_wrong} of {y.numel()} labels outside 0..{n_classes - 1}"
        raise DataError(source, got, f"labels of the model's {n_classes} outputs")
