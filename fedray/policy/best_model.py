"""Ranking of the parties' models by test scores (`fusion_algorithm: best_model`)."""

import math
from collections.abc import Iterable, Mapping

from fedray.messages import Report, Scores
from fedray.policy.selection import merge_scores

Rank = tuple[float, float]  # the greater the better


def candidates(reports: Iterable[Report], n_most: int) -> list[int]:
    """Places in the config of those that are best by their own tests, best first.

    Without accuracies (regression) by loss; who has no test samples is none, and ties
    fall to who comes first in the config.
    """
    ranked = []
    for report in reports:
        if report.scores is None:
            continue  # a party that does not say how good it is
        for place, own in zip(report.parties.tolist(), report.scores, strict=True):
            n_samples, loss, accuracy = own.tolist()
            if n_samples and math.isfinite(loss) and place not in report.refused:
                has_accuracy = not math.isnan(accuracy)
                rank = _rank(loss, accuracy if has_accuracy else None)
                ranked.append((rank, -place))
    return [-place for _, place in sorted(ranked, reverse=True)[:n_most]]


def ranking(
    judged: Mapping[int, Iterable[Scores]], n_samples: Mapping[int, int]
) -> list[int]:
    """Candidates by what all others' test samples say together, best first.

    Accuracies within a standard error of the best one, √(a(1−a)/n) over n samples, say
    nothing about which is better: of those, who learned from more samples comes first.
    Without it the luckiest of many small parties is adopted, and the work of a large
    one thrown away. Without accuracies (regression) the loss alone decides.

    n_samples : that each candidate was trained on.

    Source: the one-standard-error rule of Breiman et al. 1984, Classification and
    Regression Trees, section 3.4.3.
    """
    merged = {place: merge_scores(scores) for place, scores in judged.items()}
    merged = {k: v for k, v in merged.items() if v[2] and math.isfinite(v[0] or 0.0)}
    accuracies = [
        accuracy for _, accuracy, _ in merged.values() if accuracy is not None
    ]
    ranked = []
    for place, (loss, accuracy, n_tests) in merged.items():
        size = 0
        if accuracy is not None and len(accuracies) == len(merged):
            best = max(accuracies)
            is_near = accuracy >= best - math.sqrt(best * (1 - best) / n_tests)
            size = n_samples[place] if is_near else 0
        ranked.append((size, _rank(loss or 0.0, accuracy), -place))
    return [-place for *_, place in sorted(ranked, reverse=True)]


def _rank(loss: float, accuracy: float | None) -> Rank:
    return (0.0 if accuracy is None else accuracy, -loss)
