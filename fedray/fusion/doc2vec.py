"""Fusion of doc2vec: sums or means of the parties' changes, row by row."""

import numpy as np

from fedray.fusion.base import Accumulator, FusionRule, RoundContext, State, Sum
from fedray.messages import Update
from fedray.weights import Weights

SEEN = "seen"  # (V,) how often a party used each word; travels for share: mean
SQUARES = "/squares"  # after a tensor's name: (V,) Σ‖Δ_k‖² of its rows
POWERS = {"none": 0.0, "fourth": 0.5, "root": 1.0}


class Doc2Vec(FusionRule):
    """Rows of word vectors and of `syn1neg` move by what the parties changed.

    With Δ_k a party's change of one row, S = ΣΔ_k and Q = Σ‖Δ_k‖² over K parties:

    - additive: ``v ← β v + S · min(1, √Q / ‖S‖)^p``, ``row += v``, β the momentum and p
      by `cap`: none 0, fourth ½, root 1. What parties learned about different words
      adds up whole; what all learned alike counts K, K^¾ or √K times.
    - mean: ``row += Σ n_k Δ_k / Σ n_k``, n_k how often party k used the word.
    - output_only: ``row += S / K``, of `syn1neg` alone.

    S, Q, Σ n Δ and Σ n are sums, so that combining goes in stages.

    Source: output_only is Witherspoon et al. 2020, arXiv:2008.13298; the others are
    fedray's own, measured by benchmarks/doc2vec_lee.py.
    """

    name = "doc2vec"
    needs_context = True

    def __init__(
        self, share: str = "additive", cap: str = "fourth", momentum: float = 0.0
    ):
        self.share, self.power = share, POWERS[cap]
        self.momentum = momentum if share == "additive" else 0.0

    def init(self, weights: Weights) -> State:
        """Momentum starts at zero."""
        if not self.momentum:
            return {}
        return {"momentum": {name: np.zeros_like(a) for name, a in weights.items()}}

    def to_additive(self, update: Update, weights: Weights, state: State) -> Update:
        """One party's changes, as terms that add up."""
        names = [name for name in weights if name != SEEN]
        terms = {name: update.weights[name] - weights[name] for name in names}
        if self.share == "additive":
            for name in names:
                terms[name + SQUARES] = _squares(terms[name])
        if self.share == "mean":
            counts = terms[SEEN] = update.weights[SEEN]
            for name in names:
                terms[name] *= counts[:, None]
        return Update(terms, update.n_samples, update.n_parties)

    def accumulator(self, context: RoundContext) -> Accumulator:
        """Sums of changes, in the memory of one update."""
        return Sum(self.name)

    def step(
        self, weights: Weights, update: Update, state: State
    ) -> tuple[Weights, State]:
        """Move every row; one that nobody ever changed stays as it is."""
        new, moving = dict(weights), {}
        for name in weights:
            if name == SEEN:
                continue
            step = update.weights[name] * self._factor(name, update)
            if self.momentum:
                step += np.float32(self.momentum) * state["momentum"][name]
                moving[name] = step
            new[name] = weights[name] + step
        return new, {"momentum": moving} if moving else state

    def _factor(self, name: str, update: Update) -> np.ndarray | np.float32:
        """What the sum of a row's changes is multiplied by: (V, 1), or one for all."""
        if self.share == "output_only":
            return np.float32(1 / update.n_parties)
        if self.share == "mean":
            factor = 1 / np.maximum(1, update.weights[SEEN])
        else:
            moved = _squares(update.weights[name])
            apart = update.weights[name + SQUARES]
            ratio = np.divide(apart, moved, out=np.ones_like(moved), where=moved > 0)
            factor = np.minimum(1, ratio) ** (self.power / 2)
        return factor.astype(np.float32)[:, None]


def _squares(rows: np.ndarray) -> np.ndarray:
    """‖row‖² of each, as float64: no finite row overflows it."""
    return np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
