"""Simulated Byzantine attacks, for research: hostile updates, and flipped labels.

All hostile parties work together and see what the honest ones send in the same round.
They are laid over the updates where these are fused, after the checks, so that any rule
can be tried against them; label flips happen in the hostile parties' own data.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import NormalDist

import numpy as np

from fedray.config import AttackSpec
from fedray.errors import DataError, format_count
from fedray.fusion.base import (
    Accumulator,
    AllUpdates,
    FusionRule,
    RoundContext,
    State,
    combine,
)
from fedray.messages import Update
from fedray.weights import Schema, Weights

ON_LABELS = ("label_flip", "scaled_poison")
ON_UPDATES = ("sign_flip", "alie", "ipm", "gaussian", "same_value", "scaled_poison")
SCALES = {"sign_flip": 1.0, "ipm": 0.1, "gaussian": 1.0, "same_value": 1.0,
          "scaled_poison": 10.0}  # fmt: skip


class RuleUnderAttack(FusionRule):
    """Any rule, with the updates of hostile parties replaced before it is applied.

    rule : what the federation fuses by.
    places : of the hostile parties, in the config.
    """

    associative = False

    def __init__(
        self, rule: FusionRule, attack: AttackSpec, places: frozenset[int], seed: int
    ):
        self.name, self.rule, self.attack = rule.name, rule, attack
        self.places, self.seed = places, seed
        self.needs_context, self.has_controls = rule.needs_context, rule.has_controls

    def init(self, weights: Weights) -> State:
        """The rule's own."""
        return self.rule.init(weights)

    def n_withstood(self, n_updates: int) -> int:
        """The rule's own."""
        return self.rule.n_withstood(n_updates)

    def extra_schema(self, schema: Schema) -> Schema:
        """The rule's own."""
        return self.rule.extra_schema(schema)

    def accumulator(self, context: RoundContext) -> Accumulator:
        """Keeps all updates: hostile parties know what the honest ones send."""
        return AllUpdates(partial(self._fuse, context))

    def _fuse(self, context: RoundContext, updates: list[Update]) -> Update:
        """Replace the hostile parties' updates, and fuse all by the rule."""
        rule, weights, state = self.rule, context.weights, context.state
        honest = [u for u in updates if _place(u) not in self.places]
        hostile = [u for u in updates if _place(u) in self.places]
        replacements = {
            _place(update): self._attack_update(update, honest, len(hostile), context)
            for update in hostile
        }
        additive = (
            rule.to_additive(replacements.get(_place(u), u), weights, state)
            for u in updates
        )
        return combine(rule, additive, context)

    def step(
        self, weights: Weights, update: Update, state: State
    ) -> tuple[Weights, State]:
        """The rule's own."""
        self.rule.n_parties = self.n_parties
        return self.rule.step(weights, update, state)

    def _attack_update(
        self,
        update: Update,
        honest: list[Update],
        n_hostile: int,
        context: RoundContext,
    ) -> Update:
        """One hostile party's update after the attack; only float tensors change."""
        weights = dict(update.weights)
        seeds = [self.seed, context.round, _place(update) + 1]
        rng = np.random.default_rng(seeds)
        for name, base in context.weights.items():
            if base.dtype.kind == "f":
                own = update.weights[name] - base
                others = [other.weights[name] - base for other in honest]
                step = attack_step(self.attack, own, others, n_hostile, rng)
                with np.errstate(over="ignore"):
                    weights[name] = np.asarray(base + step, base.dtype)
        return replace(update, weights=weights)


def _place(update: Update) -> int:
    """Place in the config of the party that sent an update."""
    if update.origin is None:
        raise ValueError("an attack needs updates of single parties")
    return update.origin.party


def attack_step(
    attack: AttackSpec,
    own: np.ndarray,
    others: Sequence[np.ndarray],
    n_hostile: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """The difference to the global weights that a hostile party sends for one tensor.

    own : what it honestly moved it by
    others : what each honest party did

    - sign_flip: −scale · own (Li et al. 2019, arXiv:1811.03761, section 6)
    - scaled_poison: scale · own, trained on flipped labels (Bagdasaryan et al. 2018,
      arXiv:1807.00459, section 4.1)
    - gaussian: N(0, scale²) (Blanchard et al. 2017, arXiv:1703.02757, section 5)
    - same_value: scale everywhere (Li et al. 2019)
    - ipm: −scale · mean of the honest (Xie et al. 2019, arXiv:1903.03936)
    - alie: mean − z · deviation of the honest (Baruch et al. 2019, arXiv:1902.06156)
    """
    kind, scale = attack.kind, attack.scale
    scale = SCALES.get(kind, 1.0) if scale is None else scale
    if kind == "sign_flip":
        return -scale * own
    if kind == "scaled_poison":
        return scale * own
    if kind == "gaussian":
        return scale * rng.standard_normal(own.shape)
    if kind == "same_value":
        return np.full(own.shape, scale)
    if not others:
        return own  # nobody to hide among
    mean = np.asarray(np.mean(others, axis=0, dtype=np.float64))
    if kind == "ipm":
        return -scale * mean
    z = alie_deviations(len(others) + n_hostile, n_hostile)
    return np.asarray(mean - z * np.std(others, axis=0, dtype=np.float64))


def alie_deviations(n: int, n_hostile: int) -> float:
    """How many deviations ALIE hides within: Φ⁻¹((n−f−s) / (n−f)), s = ⌊n/2+1⌋ − f.

    Where the hostile are a majority by themselves any lie would do: three.

    Source: Baruch et al. 2019, arXiv:1902.06156, Algorithm 3.
    """
    n_honest = n - n_hostile
    n_supporters = n // 2 + 1 - n_hostile
    share = (n_honest - n_supporters) / n_honest
    return NormalDist().inv_cdf(share) if 0 < share < 1 else 3.0 * (share >= 1)


def flip_labels(y: np.ndarray, n_classes: int) -> np.ndarray:
    """Labels y as n_classes − 1 − y.

    Raises
    ------
    DataError
        If they are not labels from 0 to n_classes − 1.
    """
    labels = y.dtype.kind in "iu" and y.ndim == 1
    if not labels or y.min() < 0 or y.max() >= n_classes:
        needed = f"whole labels from 0 to {n_classes - 1} (attack.n_classes)"
        raise DataError("of a hostile party", f"{y.dtype.name}{list(y.shape)}", needed)
    return n_classes - 1 - y


def warning(attack: AttackSpec, n_parties: int) -> str:
    """The warning that a run under a simulated attack shows."""
    first = ", ".join(attack.parties[:5]) + (", …" if len(attack.parties) > 5 else "")
    n_all = format_count(n_parties, "party", "parties")
    return (
        f"ATTACK RUN: {attack.kind} by {len(attack.parties)} of {n_all} ({first}) is "
        "simulated; do not use this model"
    )
