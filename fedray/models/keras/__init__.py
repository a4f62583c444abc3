"""Keras models on the torch backend: .keras and .h5 files, architectures."""

from typing import Any

from fedray.config import FederationConfig
from fedray.models import scoring
from fedray.models.adapter import ModelAdapter
from fedray.models.base import Blueprint, Takes, answer, missing_files
from fedray.models.keras import losses, optimizers
from fedray.models.keras.model import KerasModel
from fedray.models.keras.model_files import read, read_file, write

__all__ = ["ADAPTER", "KerasAdapter"]


class KerasAdapter:
    """The adapter of model_type keras."""

    model_type = "keras"
    suffix = ".keras"
    writes: tuple[str, ...] = (".keras", ".safetensors")
    has_score = True
    takes: Takes = "samples"
    survey = None
    statistics = None
    search = None
    distill = None

    make = staticmethod(KerasModel)
    read = staticmethod(read)
    read_file = staticmethod(read_file)
    write = staticmethod(write)
    answer = staticmethod(answer)

    def problems(self, config: FederationConfig) -> list[str]:
        """Everything wrong with optimizer, loss, model_file and architecture."""
        return optimizers.problems(config) + missing_files(config)

    def answers_of(self, blueprint: Blueprint, config: FederationConfig) -> Any:
        """What the model answers, by its loss (`fedray.models.scoring`)."""
        own = blueprint.settle(config)
        if blueprint.loss is not None:
            return scoring.UNKNOWN
        loss = losses.named(own.loss, own.loss_args)
        return scoring.answers_of_loss(own.loss, loss.use.domain)


ADAPTER: ModelAdapter = KerasAdapter()
