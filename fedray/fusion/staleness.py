"""Stale updates: trained from weights that have moved on since; how much they count.

Source: Nguyen et al. 2022 (FedBuff), arXiv:2106.06639, Algorithm 1 and section 5.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fedray.fusion.base import Accumulator
from fedray.messages import Update
from fedray.weights import Weights


def staleness_weight(staleness: int, kind: str = "sqrt") -> float:
    """By what an update counts: sqrt: 1/√(1+τ); none: 1.

    staleness : τ, the steps since the weights were sent that it was trained from.

    Source: Nguyen et al. 2022, arXiv:2106.06639, section 5 (its s(τ)).
    """
    return (1 + staleness) ** -0.5 if kind == "sqrt" else 1.0


def move_base(update: Update, then: Weights, now: Weights, scale: float) -> Update:
    """An update whose step goes from other weights than it was trained from.

    Tensors that are not of floats stay as they are, and what a fusion rule has beside
    the weights too.

    then, now : the weights that it was trained from, and those it is to go from.
    scale : multiplies the step.
    """
    factor, moved = np.float32(scale), dict(update.weights)
    for name, array in now.items():
        if array.dtype.kind == "f" and name in moved:
            moved[name] = array + factor * (update.weights[name] - then[name])
    return replace(update, weights=moved)


@dataclass(frozen=True)
class StalenessWeights:
    """Adds updates to a weighted mean by their age.

    With u the step of an update, n what it would weigh fresh and s its staleness
    weight, the mean goes from today's weights by Σ s n u / Σ s n (`weights`), or by
    Σ s n u / Σ n (`count`: with n = 1 the paper's 1/K Σ s u).
    """

    kind: Literal["sqrt", "none"] = "sqrt"
    normalise: Literal["weights", "count"] = "weights"

    def add(
        self,
        into: Accumulator,
        update: Update,
        then: Weights,
        now: Weights,
        staleness: int,
    ) -> None:
        """Add an update that was trained from `then`, as a step from `now`.

        A fresh one is added as it is: without staleness the bits are those of a
        synchronous mean.
        """
        if not staleness:
            into.add(update)
            return
        weight = staleness_weight(staleness, self.kind)
        if self.normalise == "count":
            into.add(move_base(update, then, now, weight))
        else:
            into.add(move_base(update, then, now, 1.0), scale=weight)
