"""One Keras model that trains in place, on torch."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from fedray.config import FederationConfig
from fedray.errors import DataError, WeightsMismatch
from fedray.models.base import (
    Blueprint,
    Part,
    Stepped,
    one_by_one,
    tell_unstacked,
    unheard,
)
from fedray.models.keras import losses, probe, variables
from fedray.models.keras.backend import drawing, on
from fedray.models.keras.build import build
from fedray.models.keras.optimizers import make_optimizer
from fedray.models.torch_common import usable
from fedray.weights import Weights, mismatch

EVALUATE_BATCH = {"cpu": 128, "cuda": 512}


class KerasModel:
    """A model, its loss and its optimizer's settings, for one actor's life.

    Raises
    ------
    WeightsMismatch
        If what was built is not what the blueprint says.
    """

    def __init__(self, blueprint: Blueprint, config: FederationConfig, device: str):
        self.config, self.device = blueprint.settle(config), usable(device)
        self.stepped: Stepped = unheard
        self.loss = losses.named(self.config.loss, self.config.loss_args)
        with on(self.device), drawing(0):
            self.model = build(blueprint.plan)
        self.names = list(blueprint.schema)
        if len(self.names) != len(self.model.weights):
            n = len(self.model.weights)
            told = f"{n} tensors instead of {len(self.names)}"
            raise WeightsMismatch("the model built here", told)
        different = mismatch(self.weights(), blueprint.schema)
        if different:
            raise WeightsMismatch("the model built here", different)
        moved = set(blueprint.parameters)
        self.trained = [
            variable
            for name, variable in zip(self.names, self.model.weights, strict=True)
            if name in moved
        ]
        self._told = False

    def weights(self) -> Weights:
        """Arrays in get_weights() order; on a CPU they are views of the live model."""
        return variables.values(self.model, self.names)

    def load(self, weights: Weights) -> None:
        """Copy arrays into the model's own tensors."""
        for name, variable in zip(self.names, self.model.weights, strict=True):
            # a copy where the store's array is read-only: torch would warn
            array = weights[name]
            array = array if array.flags.writeable else array.copy()
            variables.tensor(variable).copy_(torch.from_numpy(array))

    def ready(self, x: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Tensors on the device; targets as this loss takes them."""
        samples = torch.as_tensor(x)
        if samples.is_floating_point():
            samples = samples.to(getattr(torch, self.model.dtype_policy.variable_dtype))
        samples = samples.to(self.device)
        targets = torch.as_tensor(y)
        with on(self.device):
            targets = probe.targets(self.model, self.loss, samples, targets)
        return samples, targets.to(self.device)

    def probe(self, source: str, x: torch.Tensor, y: torch.Tensor) -> None:
        """Run the model on a few samples and look whether output and targets fit."""
        with on(self.device), torch.no_grad():
            out = probe.output(self.model, source, x[: probe.N_LOOKED_AT])
            probe.check(self.loss, source, out, y)

    def train_each(
        self, weights: Weights, parts: Sequence[Part], x: torch.Tensor, y: torch.Tensor
    ) -> Iterator[tuple[np.ndarray, Weights]]:
        """Train every part from `weights`, one after another."""
        if self.config.stacked == "true" and len(parts) > 1 and not self._told:
            tell_unstacked(self.config, "Keras models are not trained stacked")
            self._told = True
        return one_by_one(self, weights, parts, x, y)

    def train(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        rows: np.ndarray,
        seed: int,
        start: Weights | None = None,
    ) -> float:
        """Train `epochs` passes in an order drawn from `seed`; fresh optimizer.

        The loss told is that of the data; what layers add to it (regularizers) is
        trained with and not told.
        """
        with on(self.device), drawing(seed):
            variables.reseed(self.model, seed)
            order = np.random.default_rng(seed)
            optimizer = make_optimizer(self.config)
            optimizer.build(self.trained)
            starts = [variables.tensor(v).clone() for v in self._pulled()]
            if start is not None:
                self.load(start)
            loss, n_done, n_all = torch.zeros(()), 0, len(rows) * self.config.epochs
            for _ in range(self.config.epochs):
                passed = rows[order.permutation(len(rows))]
                loss = torch.zeros((), device=self.device)
                batches = torch.from_numpy(passed).to(self.device)
                for batch in batches.split(self.config.batch_size):
                    step_loss = self._step(x[batch], y[batch], optimizer, starts)
                    loss += step_loss * len(batch)
                    n_done += len(batch)
                    self.stepped(n_done / n_all)
            optimizer.finalize_variable_values(self.trained)
        return float(loss) / len(rows)

    def evaluate(self, x: Any, y: Any) -> tuple[float, float | None]:
        """Mean loss over the samples; accuracy for classes and two-way targets."""
        loss, right, n_answers = 0.0, 0, 0
        size = EVALUATE_BATCH[self.device]
        with on(self.device), torch.no_grad():
            for given, targets in zip(x.split(size), y.split(size), strict=True):
                out = self.model(given, training=False)
                loss += float(self._mean_loss(targets, out)) * len(targets)
                answers = probe.answers(self.loss, out, targets)
                if answers is not None:
                    right, n_answers = right + int(answers.sum()), n_answers + len(out)
        return loss / len(x), right / n_answers if n_answers else None

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Probabilities (N, C) of samples (N, ...), by what the loss takes."""
        if self.loss.targets not in ("one_hot", "labels"):
            got = f"a model trained with {self.config.loss}"
            raise DataError("of an ensemble", got, "a loss of classes (crossentropy)")
        samples = torch.as_tensor(np.ascontiguousarray(x))
        if samples.is_floating_point():
            samples = samples.to(getattr(torch, self.model.dtype_policy.variable_dtype))
        parts = samples.to(self.device).split(EVALUATE_BATCH[self.device])
        with on(self.device), torch.no_grad():
            out = torch.cat([self.model(part, training=False) for part in parts])
        if out.ndim != 2:
            got = f"model output of shape {list(out.shape)}"
            raise DataError("of an ensemble", got, "(samples, classes)")
        out = out.double()
        found = out if self.loss.outputs == "probabilities" else out.softmax(1)
        return found.cpu().numpy()

    def _mean_loss(self, y: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        if self.loss.targets in ("values", "yes_no"):
            y = y.reshape(out.shape)  # (N,) against (N, 1) would broadcast
        return self.loss.function(y, out)

    def _pulled(self) -> list[Any]:
        """Variables that the global weights pull at."""
        return self.trained if self.config.proximal_mu else []

    def _step(
        self, x: torch.Tensor, y: torch.Tensor, optimizer: Any, starts: list
    ) -> torch.Tensor:
        """One step on one batch; its mean loss before it."""
        out = self.model(x, training=True)
        loss = self._mean_loss(y, out)
        added = self.model.losses
        for variable in self.trained:
            variable.value.grad = None
        (loss + sum(added) if added else loss).backward()
        mu = self.config.proximal_mu
        with torch.no_grad():
            for variable, start in zip(self._pulled(), starts, strict=True):
                if variable.value.grad is not None:
                    moved = variables.tensor(variable) - start
                    variable.value.grad.add_(moved, alpha=mu)
            gradients = [variable.value.grad for variable in self.trained]
            optimizer.apply(gradients, self.trained)
        return loss.detach()
