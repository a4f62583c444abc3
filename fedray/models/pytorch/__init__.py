"""PyTorch models: whole modules, state_dicts, .safetensors files, architectures."""

from typing import Any

from fedray.config import FederationConfig
from fedray.models import scoring
from fedray.models.adapter import ModelAdapter
from fedray.models.base import Blueprint, Takes, answer, missing_files
from fedray.models.pytorch import losses, optimizers
from fedray.models.pytorch.distillation import distill
from fedray.models.pytorch.model import TorchModel
from fedray.models.pytorch.model_files import (
    read,
    read_file,
    save_adapter,
    write,
)

__all__ = ["ADAPTER", "PyTorchAdapter"]


class PyTorchAdapter:
    """The adapter of model_type pytorch."""

    model_type = "pytorch"
    suffix = ".pt"
    writes: tuple[str, ...] = (".pt", ".safetensors")
    has_score = True
    takes: Takes = "samples"
    survey = None
    statistics = None
    search = None

    make = staticmethod(TorchModel)
    read = staticmethod(read)
    read_file = staticmethod(read_file)
    write = staticmethod(write)
    save_adapter = staticmethod(save_adapter)
    answer = staticmethod(answer)
    distill = staticmethod(distill)

    def problems(self, config: FederationConfig) -> list[str]:
        """Everything wrong with optimizer, loss, model_file and architecture."""
        return optimizers.problems(config) + missing_files(config)

    def answers_of(self, blueprint: Blueprint, config: FederationConfig) -> Any:
        """What the model answers, by its loss (`fedray.models.scoring`)."""
        own = blueprint.settle(config)
        if blueprint.loss is not None or own.loss == losses.MODEL:
            return scoring.UNKNOWN
        loss = losses.make(own.loss, own.loss_args)
        return scoring.answers_of_loss(own.loss, loss.use.domain)


ADAPTER: ModelAdapter = PyTorchAdapter()
