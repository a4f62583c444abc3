"""What a model is to fedray, whichever framework it comes from."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from fedray import user_code
from fedray.config import FederationConfig
from fedray.errors import ConfigError
from fedray.weights import Schema, Weights

log = logging.getLogger("fedray")


Stepped = Callable[[float], None]  # told which share of a training is done


def unheard(share: float) -> None:
    """Take a training's progress where nobody asks for it."""


class Part(NamedTuple):
    """What one party trains in one round.

    rows : (n,) int64, its samples' places in x and y.
    seed : of everything random.
    start : what it trains on from, if not from the global weights.
    """

    rows: np.ndarray
    seed: int
    party: str = ""
    round: int = 1
    start: Weights | None = None


@dataclass(frozen=True)
class Blueprint:
    """A model without its weights: small plain data that travels to every party.

    plan : what the adapter of `model_type` rebuilds the model from.
    schema : names, shapes, dtypes of everything that travels, in the model's order.
    parameters : the names that training moves; the rest are buffers or frozen.
    settings : what the config may leave open (optimizer, learning_rate, loss), as the
        model file or else the adapter has it.
    """

    model_type: str
    plan: Any
    schema: Schema
    parameters: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def settle(self, config: FederationConfig) -> FederationConfig:
        """The config with everything in it that training will use."""
        left_open = (key for key in self.settings if getattr(config, key) in (None, {}))
        return replace(config, **{key: self.settings[key] for key in left_open})


def files_missing(config: FederationConfig) -> list[str]:
    """What can be told of model_file and architecture without building anything."""
    found = []
    if config.model_file and not Path(config.model_file).is_file():
        found.append(f"model_file {config.model_file} does not exist")
    if config.architecture:
        try:
            user_code.read(config.architecture, "architecture")
        except ConfigError as error:
            found += error.problems
    return found


def answer(blueprint: Blueprint, weights: Weights) -> tuple[Any, dict[str, Any]]:
    """The model as plain data: its arrays in the model's order, and their forms.

    A client rebuilds it: ``dict(zip(info["names"], arrays))``. An adapter whose model
    is more than that has an `answer` of its own.
    """
    arrays = [weights[name] for name in blueprint.schema]
    return arrays, {
        "names": list(blueprint.schema),
        "shapes": [list(array.shape) for array in arrays],
        "dtypes": [array.dtype.name for array in arrays],
    }


class Model(Protocol):
    """One live model inside a party: built once, weights overwritten in place."""

    device: str  # cpu or cuda: where it really is
    stepped: Stepped  # called after each step of a training of one; `unheard` at first

    def __init__(
        self, blueprint: Blueprint, config: FederationConfig, device: str
    ) -> None: ...

    def ready(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Turn samples (N, ...) and targets into what `train` takes, on the device."""

    def probe(self, source: str, x: Any, y: Any) -> None:
        """Raise DataError where these samples and targets do not fit this model."""

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Of each class (N, C) for samples (N, ...); DataError if there are none."""

    def weights(self) -> Weights:
        """Arrays of the model as it is now; valid until it is trained or loaded."""

    def load(self, weights: Weights) -> None:
        """Overwrite the model in place; `weights` are not kept."""

    def train(
        self,
        x: Any,
        y: Any,
        rows: np.ndarray,
        seed: int,
        start: Weights | None = None,
    ) -> float:
        """Train `epochs` passes from the loaded weights; mean loss of the last one.

        rows : (n,) int64, the samples' places in x and y.
        start : trained on from, instead; `proximal_mu` still pulls to the loaded ones.
        """

    def train_each(
        self, weights: Weights, parts: Sequence[Part], x: Any, y: Any
    ) -> Iterator[tuple[np.ndarray, Weights]]:
        """Train every part from `weights` or its own, one or several at a time.

        Each comes out as if it had been trained alone. Yields mean losses (S,) and
        arrays (S, *shape) of the next S parts, valid until the next are asked for.
        """

    def evaluate(self, x: Any, y: Any) -> tuple[float, float | None]:
        """Mean loss, and accuracy where it means something."""


def one_by_one(
    model: Model, weights: Weights, parts: Sequence[Part], x: Any, y: Any
) -> Iterator[tuple[np.ndarray, Weights]]:
    """What `train_each` yields where parties do not train together."""
    for part in parts:
        model.load(weights)
        loss = model.train(x, y, part.rows, part.seed, part.start)
        yield np.array([loss]), {n: a[None] for n, a in model.weights().items()}


def tell_unstacked(config: FederationConfig, why: str) -> None:
    """Log that parties do not train stacked; loudly where it was asked for."""
    level = logging.INFO if config.stacked == "auto" else logging.WARNING
    told = "parties of one actor train one by one, not stacked (stacked: %s): %s"
    log.log(level, told, config.stacked, why)
