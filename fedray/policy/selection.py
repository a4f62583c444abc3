"""Client selection, seeds, quorum, split of parties over actors, merged scores."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from fedray.messages import PartyScores, Scores
from fedray.policy.metric_states import merge_states


def seed_for(seed: int, round: int, name: str) -> int:
    """Seed of everything random that one party does in one round.

    Derived from nothing else, so that a round trained twice is trained alike.
    """
    text = f"{seed}/{round}/{name}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


class ClientSelection(Protocol):
    """Which parties train in a round: a pure function, the same places each time."""

    def __call__(
        self, candidates: np.ndarray, count: int, seed: int, draw: int
    ) -> np.ndarray:
        """Some of the candidates, in their order.

        Parameters
        ----------
        candidates : (K,) ascending places in the config
        count : how many train; at least 1
        draw : the round for which they are chosen
        """


def select_random(
    candidates: np.ndarray, count: int, seed: int, draw: int
) -> np.ndarray:
    """Draw `count` of the candidates without replacement.

    Source: McMahan et al. 2017, arXiv:1602.05629, Algorithm 1.
    """
    n_candidates = len(candidates)
    if count >= n_candidates:
        return candidates
    rng = np.random.default_rng(seed_for(seed, draw, "choose"))
    places = rng.choice(n_candidates, count, replace=False, shuffle=False)
    return candidates[np.sort(places)]


def choose_fairly(
    candidates: np.ndarray, counts: np.ndarray, n: int, seed: int, draw: int
) -> np.ndarray:
    """Those that were chosen least often before, among equals by chance; ascending.

    Parameters
    ----------
    candidates : (K,) ascending places.
    counts : (K,) how often each was chosen before.
    draw : the round for which they are chosen.
    """
    if n >= len(candidates):
        return candidates
    rng = np.random.default_rng(seed_for(seed, draw, "choose"))
    ranked = np.lexsort([rng.random(len(candidates)), counts])
    return candidates[np.sort(ranked[:n])]


SELECTIONS: dict[str, ClientSelection] = {"random": select_random}


def count_chosen(n_parties: int, fraction: float) -> int:
    """How many of K parties train in a round: max(1, ⌊C·K + ½⌋).

    Source: McMahan et al. 2017, arXiv:1602.05629, Algorithm 1 (its C is `fraction`).
    """
    return max(1, math.floor(fraction * n_parties + 0.5))


def split_by_load(sizes: np.ndarray, n_actors: int) -> list[slice]:
    """Cut parties into one run for each actor, with sums of `sizes` as even as can be.

    By samples and order alone, never by measured time: the same parties are always
    dealt alike, so that they give the same bits. A run may be empty.

    Parameters
    ----------
    sizes : (K,) training samples of each party, all above 0
    """
    before = np.cumsum(sizes) - sizes
    centres = before + sizes / 2  # a party belongs where its middle lies
    actors = (centres * n_actors / max(1, sizes.sum())).astype(np.int64)
    ends = np.searchsorted(actors, np.arange(n_actors), side="right")
    return [slice(i, j) for i, j in zip([0, *ends[:-1]], ends, strict=True)]


def needed(quorum: float, n_chosen: int) -> int:
    """Reports without which a round fails."""
    return max(1, math.ceil(quorum * n_chosen - 1e-9))


def merge_scores(scores: Iterable[Scores]) -> tuple[float | None, float | None, int]:
    """Loss and accuracy over all test samples of all parties, and their number."""
    scores = [score for score in scores if score.n_samples]
    n_samples = sum(score.n_samples for score in scores)
    weights = [one.weights or (one.n_samples, one.n_samples) for one in scores]
    loss = _mean([one.loss for one in scores], [own for own, _ in weights])
    accuracy = _mean([one.accuracy for one in scores], [own for _, own in weights])
    return loss, accuracy, n_samples


def join_scores(scores: Sequence[Scores]) -> Scores:
    """Scores of several models in one, each on the samples of other parties."""
    scores = [score for score in scores if score.n_samples]
    loss, accuracy, n_samples = merge_scores(scores)
    weights = None
    if any(score.weights for score in scores):
        each = [one.weights or (one.n_samples, one.n_samples) for one in scores]
        weights = sum(own for own, _ in each), sum(own for _, own in each)
    columns = [score.by_party for score in scores if score.by_party is not None]
    by_party = PartyScores.concatenate(columns) if columns else None
    states = merge_states(score.states for score in scores)
    return Scores(
        n_samples, loss, accuracy, weights, merge_metrics(scores), by_party, states
    )


def merge_metrics(scores: Iterable[Scores]) -> dict[str, float]:
    """Means of all other numbers, weighted by test samples, over those that have each.

    A number that is not finite at one party is left out there.
    """
    terms: dict[str, list[tuple[float, int]]] = {}
    for score in scores:
        for name, value in score.metrics.items():
            if score.n_samples:
                terms.setdefault(name, []).append((value, score.n_samples))
    return {
        name: sum(value * n for value, n in own) / sum(n for _, n in own)
        for name, own in terms.items()
    }


def _mean(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """Weighted mean; None if a value that has a weight is not there."""
    pairs = [(v, w) for v, w in zip(values, weights, strict=True) if w]
    terms = [(v, w) for v, w in pairs if v is not None]
    if not terms or len(terms) < len(pairs):
        return None
    return sum(v * w for v, w in terms) / sum(w for _, w in terms)
