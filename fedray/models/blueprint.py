"""A model without its weights, and which of its tensors travel."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedray import user_code
from fedray.config import FederationConfig, RunConfig
from fedray.errors import format_count
from fedray.weights import Schema, Weights

N_SHOWN = 3  # names of personal tensors in a sentence


@dataclass(frozen=True)
class Blueprint:
    """A model without its weights: small plain data that travels to every party.

    plan : what the adapter of `model_type` rebuilds the model from.
    schema : names, shapes, dtypes of all that the model has, in its order.
    parameters : the names that training moves; the rest are buffers or frozen.
    frozen : names that do not train while others do. Those that no step of training
        moves at joining travel once to each actor, not every round. Empty where all
        parameters train: then everything travels.
    tied : second names of tensors, and the first, under which they travel.
    bfloat16 : names whose numbers have 16 bits in files; here they have 32.
    personal : names of layers that stay at their party: each party has its own, which
        neither travel nor are fused.
    settings : defaults of keys that the config may leave open (optimizer,
        learning_rate, loss), from the model file or else from the adapter.
    outside : fingerprints of tensors that the model has beside those that travel; a
        party's must be alike.
    notes : what people must know of the model.
    loss : the code of a loss that is the user's own; it travels with the model.
    metrics : the code of metrics that are functions of the user's, by their names.
    """

    model_type: str
    plan: Any
    schema: Schema
    parameters: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    outside: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    loss: user_code.Source | None = None
    frozen: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    bfloat16: frozenset[str] = frozenset()
    personal: tuple[str, ...] = ()
    metrics: Mapping[str, user_code.Source] = field(default_factory=dict)

    @property
    def shared_parameters(self) -> tuple[str, ...]:
        """Names that training moves and that are fused."""
        personal = set(self.personal)
        return tuple(name for name in self.parameters if name not in personal)

    @property
    def personal_note(self) -> str:
        """Which layers of the global model were never trained; empty: all were."""
        if not self.personal:
            return ""
        shown = ", ".join(self.personal[:N_SHOWN])
        more = ", ..." * (len(self.personal) > N_SHOWN)
        n_tensors = format_count(len(self.personal), "tensor")
        return (
            f"personal: {n_tensors} ({shown}{more}) stay at their party; global_model "
            "has them as they were before round 1, never trained"
        )

    @property
    def metadata(self) -> dict[str, str]:
        """What a .safetensors file of the global model says of it."""
        return {"never_trained": ", ".join(self.personal)} if self.personal else {}

    @property
    def travels_whole(self) -> bool:
        """Whether all of `schema` travels every round."""
        return not self.frozen and not self.tied and not self.personal

    @property
    def own_schema(self) -> Schema:
        """What a live model has, each tensor once."""
        return {n: form for n, form in self.schema.items() if n not in self.tied}

    def round_schema(self, fixed: Collection[str]) -> Schema:
        """What travels every round; `fixed` are those of `frozen` that nobody moves."""
        rest = {*fixed, *self.tied, *self.personal}
        return {name: form for name, form in self.schema.items() if name not in rest}

    @property
    def forms(self) -> Schema:
        """`schema` with the dtypes that the live model has."""
        return with_bfloat16(self.schema, self.bfloat16)

    def sent_whole(self) -> "Blueprint":
        """The same model, of which everything travels, as earlier versions had it."""
        again = [name for name, first in self.tied.items() if first in self.parameters]
        names = {*self.parameters, *again}
        parameters = tuple(name for name in self.schema if name in names)
        return replace(self, parameters=parameters, frozen=(), tied={})

    def complete(self, weights: Weights) -> Weights:
        """Weights with tied tensors under all of their names, in the model's order."""
        return {
            name: weights[name if name in weights else self.tied[name]]
            for name in self.schema
        }

    def settle(self, config: FederationConfig) -> RunConfig:
        """The config with everything in it that training will use."""
        return config.resolve(self.settings)


def with_bfloat16(schema: Schema, names: Collection[str]) -> Schema:
    """A schema in which these tensors are bfloat16, as files and live models have them.

    Arrays have no such dtype: there they are float32.
    """
    return {
        name: form._replace(dtype="bfloat16") if name in names else form
        for name, form in schema.items()
    }
