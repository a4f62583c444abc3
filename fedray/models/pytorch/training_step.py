"""One optimizer step of a PyTorch model on a batch."""

from typing import Any, Protocol

import torch
from torch import nn

from fedray.config import RunConfig
from fedray.models import torch_common
from fedray.models.base import PartySlice
from fedray.models.pytorch.losses import Loss
from fedray.models.pytorch.optimizers import make_optimizer, step
from fedray.models.torch_steps import Precision, StepTerms, clip_gradients
from fedray.nested import Nested


class SteppedModel(Protocol):
    """What a training step needs of a model."""

    config: RunConfig
    device: str
    module: nn.Module
    loss: Loss
    trained: list[nn.Parameter]

    def pulled(self) -> list[nn.Parameter]:
        """Parameters that proximal_mu pulls."""

    def weigh(self, y: Nested) -> torch.Tensor | None:
        """The sum of weights of a mean over these targets; None: their number."""

    def call(self, x: Nested, y: Nested = None) -> Any:
        """What the module returns."""


class TrainingStep:
    """One optimizer step on a batch; `part` says what of it runs."""

    def __init__(self, model: SteppedModel, party: PartySlice | None = None):
        self.part, self.model = "the optimizer", model
        self.optimizer = make_optimizer(model.config, model.trained)
        config = model.config
        self.mu = party.pull_of(config) if party else config.proximal_mu
        self.pulled = model.pulled() if self.mu > 0 else []
        self.anchor = [parameter.detach().clone() for parameter in self.pulled]
        self.precision = Precision(model.config, model.device)
        named = dict(model.module.named_parameters())
        self.drift = StepTerms(model.config, party, named)
        model.module.train()

    def set_learning_rate(self, rate: float) -> None:
        """Take the next steps with this rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def __call__(self, x: Nested, y: Nested) -> torch.Tensor:
        weight = self.model.weigh(y)
        if weight is not None and not weight:  # no label counts: there is no gradient
            return torch.zeros((), device=self.model.device)
        config, trained = self.model.config, self.model.trained
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision.autocast():
            self.part = "the model"
            returned = self.model.call(x, y)
            self.part = f"the loss {config.loss}"
            loss = self.model.loss.mean(returned, y)
        self.part = "the gradients of the model"
        self.precision.backward(loss)
        if self.precision.unscale(trained):
            self.follow_gradients()
        return loss.detach()

    def follow_gradients(self) -> None:
        """Take the optimizer's step, by gradients as pull, clipping and rule say."""
        config, trained = self.model.config, self.model.trained
        self.part = "the pull of proximal_mu"
        torch_common.add_proximal_gradient(self.pulled, self.anchor, self.mu)
        self.part = "gradient_clip_norm"
        clip_gradients(trained, config.gradient_clip_norm)
        self.part = f"the optimizer {config.optimizer}"
        self.drift.correct()
        step(self.optimizer)
        self.drift.count(self.optimizer.param_groups[0]["lr"])
