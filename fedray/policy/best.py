"""Whose model everyone adopts: `fusion_algorithm: best_model`."""

import math
from collections.abc import Iterable, Mapping

from fedray.messages import Report, Score
from fedray.policy.turns import overall

Rank = tuple[float, float]  # the greater the better


def candidates(reports: Iterable[Report], n_most: int) -> list[int]:
    """Places in the config of those that are best by their own tests, best first.

    Without accuracies (regression) by loss; who has no test samples is none, and ties
    fall to who comes first in the config.
    """
    ranked = []
    for report in reports:
        for place, own in zip(report.parties.tolist(), report.scores, strict=True):
            n_samples, loss, accuracy = own.tolist()
            if n_samples and math.isfinite(loss) and place not in report.refused:
                none = math.isnan(accuracy)
                ranked.append((_rank(loss, None if none else accuracy), -place))
    return [-place for _, place in sorted(ranked, reverse=True)[:n_most]]


def ranking(judged: Mapping[int, Iterable[Score]]) -> list[int]:
    """Candidates by what all others' test samples say together, best first."""
    ranked = []
    for place, scores in judged.items():
        loss, accuracy, n_samples = overall(scores)
        if n_samples and loss is not None and math.isfinite(loss):
            ranked.append((_rank(loss, accuracy), -place))
    return [-place for _, place in sorted(ranked, reverse=True)]


def _rank(loss: float, accuracy: float | None) -> Rank:
    return (0.0 if accuracy is None else accuracy, -loss)
