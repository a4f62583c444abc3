"""Norm clipping and centred clipping: means of differences of bounded length."""

from dataclasses import replace
from functools import partial

import numpy as np

from fedray.errors import TooFewUpdates
from fedray.fusion.base import Accumulator, AllUpdates, FusionRule, RoundContext, State
from fedray.fusion.robust_matrix import Rows, Slice, draw_buckets, sums_of_squares
from fedray.messages import Update
from fedray.weights import Weights, blocks


class Clipping(FusionRule):
    """Mean of the differences Δ_i = w_i − w, each cut to `clip_norm` (τ) first.

    - norm_clipping: w + mean(Δ_i · min(1, τ/‖Δ_i‖))
    - centred_clipping: w + v + mean((Δ_i − v) · min(1, τ/‖Δ_i − v‖)), v being what this
      gave beyond w in the last round, at first zero

    Norms are over all float tensors together, buffers included, in float64. Other
    tensors stay as they are in w: no one party may move them. All parties count alike:
    sample counts can be made up. Without buckets the terms add up, so that they are
    combined where they are made.

    Sources: Sun et al. 2019, arXiv:1911.07963, section 4; Karimireddy et al. 2021,
    arXiv:2012.10333, section 4.1 (one step a round); buckets: arXiv:2006.09365.
    """

    weight_by = "n_parties"
    keys = ("clip_norm",)

    def __init__(self, name: str, clip_norm: float, bucketing: int = 1, seed: int = 0):
        self.name, self.clip_norm = name, clip_norm
        self.bucketing, self.seed = bucketing, seed
        self.needs_context = self.associative = bucketing == 1

    def init(self, weights: Weights) -> State:
        """Nothing, or a centre that is at zero."""
        if self.name == "norm_clipping":
            return {}
        return {"centre": {k: np.zeros_like(weights[k]) for k in _floats(weights)}}

    def to_additive(self, update: Update, weights: Weights, state: State) -> Update:
        """Weights at most τ from the centre: such weights average to the new weights.

        The update itself where nothing is cut.
        """
        if not self.needs_context:
            return update
        centre = _centre(weights, state)
        names = _floats(weights)
        rows = Rows([update])
        factor = float(_factors(rows, centre, self.clip_norm)[0])
        clipped = {k: update.weights[k] for k in names}
        if factor < 1:
            clipped = _fused(rows, centre, np.array([factor]))
        fixed = {k: array for k, array in weights.items() if k not in clipped}
        return replace(update, weights=_in_order(clipped | fixed, weights))

    def accumulator(self, context: RoundContext) -> Accumulator:
        """Plain mean of clipped weights; with buckets of all updates at once."""
        if self.associative:
            return super().accumulator(context)
        return AllUpdates(partial(self._fuse, context))

    def _fuse(self, context: RoundContext, updates: list[Update]) -> Update:
        if not updates:
            raise TooFewUpdates(self.name, 0, 1)
        centre = _centre(context.weights, context.state)
        buckets = draw_buckets(len(updates), self.bucketing, self.seed, context.round)
        rows = Rows(updates, buckets)
        fused = _fused(rows, centre, _factors(rows, centre, self.clip_norm))
        fixed = {k: array for k, array in centre.items() if k not in fused}
        return Update(
            _in_order(fused | fixed, updates[0].weights),
            sum(update.n_samples for update in updates),
            sum(update.n_parties for update in updates),
        )

    def step(
        self, weights: Weights, update: Update, state: State
    ) -> tuple[Weights, State]:
        """The mean is the new weights; how far it lies off is the next centre."""
        if self.name == "norm_clipping":
            return update.weights, state
        new, centre = update.weights, {}
        for name, old in state["centre"].items():
            centre[name] = np.asarray(new[name] - weights[name], old.dtype)
        return new, {"centre": centre}


def _floats(weights: Weights) -> list[str]:
    return [name for name, array in weights.items() if array.dtype.kind == "f"]


def _in_order(weights: Weights, like: Weights) -> Weights:
    return {name: weights[name] for name in like}


def _centre(weights: Weights, state: State) -> Weights:
    steps = state.get("centre", {})
    return weights | {name: weights[name] + steps[name] for name in steps}


def _factors(rows: Rows, centre: Weights, clip_norm: float) -> np.ndarray:
    """By what each row's difference to the centre is multiplied, (K,)."""
    flat = blocks.flat([centre[name] for name in rows.names])

    def of_slice(block: blocks.Block, part: Slice) -> np.ndarray:
        return sums_of_squares(_subtract_centre(part, block, flat))

    lengths = np.sqrt(np.zeros(len(rows)) + rows.summed(of_slice))
    return clip_norm / np.maximum(lengths, clip_norm)


def _fused(rows: Rows, centre: Weights, factors: np.ndarray) -> Weights:
    """Centre + mean of factor_i · (row_i − centre)."""
    flat = blocks.flat([centre[name] for name in rows.names])

    def of_slice(block: blocks.Block, part: Slice) -> np.ndarray:
        step = _subtract_centre(part, block, flat)
        np.multiply(step, factors[:, None], out=step)
        mean = step.mean(axis=0)
        for piece, at in block.parts(flat):
            np.add(mean[at], piece, out=mean[at])
        return mean

    return rows.fused(of_slice)


def _subtract_centre(part: Slice, block: blocks.Block, flat: list[np.ndarray]) -> Slice:
    """The slice less the centre, in float64."""
    step = blocks.scratch(part.size, np.float64, 1).reshape(part.shape)
    for piece, at in block.parts(flat):
        np.subtract(part[:, at], piece, out=step[:, at], dtype=np.float64)
    return step
