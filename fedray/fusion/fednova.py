"""FedNova: normalised averaging of parties that take unequal numbers of steps."""

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from fedray.fusion.base import RATE_SUM, FusionRule, State
from fedray.fusion.fedavg import tensors_to_move
from fedray.messages import Update
from fedray.weights import Form, Schema, Weights

STEP = "/step"  # after a tensor's name: a party's step for each unit of its rates


class FedNova(FusionRule):
    """Normalised averaging: w ← w − τ_eff Σ p_k η d_k, with p_k a party's samples.

    A party that takes more steps, since it has more samples, moves further and would
    count twice in a plain mean. Here η d_k = (w − w_k) / ‖a_k‖₁ is what it moved in
    each of its steps, and τ_eff = Σ p_k ‖a_k‖₁ how many steps all take on average. a_k
    says how much each of its gradients counts in w_k: 1 in plain SGD, so that ‖a_k‖₁ is
    the number of steps; more with momentum, less with `proximal_mu`. The party measures
    η ‖a_k‖₁ as it trains (`RATE_SUM`); η cancels out. Where all take equally many steps
    this is `fedavg`. Buffers take the mean.

    learning_rate : of the aggregator; multiplies τ_eff.

    Source: Wang et al. 2020, arXiv:2007.07481, equations (6) and (7), section 4.
    """

    name = "fednova"
    weight_by = "n_samples"
    needs_context = True

    def __init__(
        self, learning_rate: float = 1.0, parameters: Collection[str] | None = None
    ):
        self.learning_rate, self.parameters = learning_rate, parameters

    def extra_schema(self, schema: Schema) -> Schema:
        """One number: how far a gradient of 1 would have carried a weight."""
        return {RATE_SUM: Form((), "float64")}

    def to_additive(self, update: Update, weights: Weights, state: State) -> Update:
        """The step for each unit of the rates, beside buffers and the rates."""
        rates, terms = float(update.weights[RATE_SUM]), dict(update.weights)
        for name in tensors_to_move(weights, self.parameters):
            old, new = weights[name], terms.pop(name)
            wide = np.promote_types(old.dtype, np.float32)
            step = np.subtract(new, old, dtype=wide)
            unit = step / wide.type(rates) if rates else np.zeros_like(step)
            terms[name + STEP] = np.asarray(unit)
        return replace(update, weights=terms)

    def discount(self, update: Update, scale: float) -> Update:
        """A late update whose step counts `scale` times."""
        steps = {
            name: np.asarray(array * array.dtype.type(scale))
            for name, array in update.weights.items()
            if name.endswith(STEP)
        }
        return replace(update, weights=update.weights | steps)

    def step(
        self, weights: Weights, update: Update, state: State
    ) -> tuple[Weights, State]:
        """Take as long a step as all parties on average, along their mean direction."""
        length, new = self.learning_rate * float(update.weights[RATE_SUM]), {}
        for name, old in weights.items():
            step = update.weights.get(name + STEP)
            if step is None:
                new[name] = update.weights[name]
            else:
                new[name] = old + step.dtype.type(length) * step
        return new, state
