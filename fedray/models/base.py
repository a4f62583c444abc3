"""What a model is to fedray, whichever framework it comes from."""

from dataclasses import dataclass
from typing import Any, Protocol

from fedray.config import FederationConfig
from fedray.weights import Schema, Weights


@dataclass(frozen=True)
class Blueprint:
    """A model without its weights: small plain data that travels to every party.

    plan : what the adapter of `model_type` rebuilds the model from.
    schema : names, shapes, dtypes of everything that travels, in the model's order.
    parameters : the names that training moves; the rest are buffers or frozen.
    """

    model_type: str
    plan: Any
    schema: Schema
    parameters: tuple[str, ...]


class Model(Protocol):
    """One live model inside a party: built once, weights overwritten in place."""

    device: str  # cpu or cuda: where it really is

    def __init__(
        self, blueprint: Blueprint, config: FederationConfig, device: str
    ) -> None: ...

    def ready(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Turn samples (N, ...) and targets into what `train` takes, on the device."""

    def probe(self, source: str, x: Any, y: Any) -> None:
        """Raise DataError where these samples and targets do not fit this model."""

    def weights(self) -> Weights:
        """Arrays of the model as it is now; valid until it is trained or loaded."""

    def load(self, weights: Weights) -> None:
        """Overwrite the model in place; `weights` are not kept."""

    def train(self, x: Any, y: Any, seed: int) -> float:
        """Train `epochs` passes from the loaded weights; mean loss of the last one."""

    def evaluate(self, x: Any, y: Any) -> tuple[float, float | None]:
        """Mean loss, and accuracy where it means something."""
