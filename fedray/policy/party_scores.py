"""Scores of each party's own tests: sums over actors, and how far they spread."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from fedray.messages import PartyScores, Scores

WORST_SHARE = 0.1  # of the parties, whose mean is the worst of a spread
MEASURES = {"loss": min, "accuracy": max}  # and which of two values is the better one


def merge_parties(scores: Iterable[Scores]) -> PartyScores | None:
    """Each party's sums over all actors that measured some of its samples.

    Rows are in config order; None where no party's samples were measured.
    """
    parts = [one.by_party for one in scores if one.by_party is not None]
    parts = [part for part in parts if len(part.parties)]
    if not parts:
        return None
    every = PartyScores.concatenate(parts)
    parties, rows = np.unique(every.parties, return_inverse=True)
    merged = PartyScores.zeros(np.zeros(len(parties), np.int64))
    np.add.at(merged.n_samples, rows, every.n_samples)
    for name in ("loss", "loss_weight", "right", "answers"):
        values = np.bincount(rows, getattr(every, name), len(parties))
        getattr(merged, name)[:] = values
    return merged._replace(parties=parties)


def mean_scores(own: PartyScores) -> dict[str, np.ndarray]:
    """Numbers of each party: its loss and accuracy, NaN for none."""
    return {"loss": own.mean_losses(), "accuracy": own.accuracies()}


def spread(values: np.ndarray, worst_is_low: bool) -> dict[str, float]:
    """Least, median and greatest of the parties' values, and how the worst ones do.

    Every party counts alike, however many samples it has. `worst_tenth` is the mean of
    the worst tenth of the parties, rounded up: of 25 parties of the worst three.
    Values that are not finite are left out; empty where less than two are left.
    """
    values = np.sort(values[np.isfinite(values)])
    if len(values) < 2:
        return {}
    n_worst = math.ceil(WORST_SHARE * len(values))
    worst = values[:n_worst] if worst_is_low else values[-n_worst:]
    return {
        "min": float(values[0]),
        "median": float(np.median(values)),
        "max": float(values[-1]),
        "worst_tenth": float(worst.mean()),
    }


def spreads(own: PartyScores | None) -> dict[str, dict[str, float]]:
    """Spreads over the parties by name; none where there is one party, or none."""
    if own is None:
        return {}
    by_name = {
        name: spread(values, worst_is_low=MEASURES[name] is max)
        for name, values in mean_scores(own).items()
    }
    return {name: numbers for name, numbers in by_name.items() if numbers}


def worst_rows(own: PartyScores, n_most: int) -> np.ndarray:
    """Rows of at most so many parties, in config order: those that do worst.

    By accuracy, where there is one, then by loss.
    """
    if len(own.parties) <= n_most:
        return np.arange(len(own.parties))
    loss, accuracy = np.nan_to_num(own.mean_losses(), nan=-np.inf), own.accuracies()
    ranked = np.lexsort([-loss, np.nan_to_num(accuracy, nan=2.0)])
    return np.sort(ranked[:n_most])


def to_plain(
    own: PartyScores, rows: np.ndarray, names: list[str]
) -> dict[str, list[Any]]:
    """Columns of some rows as plain data; None for what is not finite."""
    n_samples = own.n_samples[rows].tolist()
    plain: dict[str, list[Any]] = {"party": names, "n_samples": n_samples}
    for name, values in mean_scores(own).items():
        plain[name] = finite(values[rows])
    return plain


def finite(values: np.ndarray) -> list[float | None]:
    """Values as plain data; None for what is not finite."""
    return [value if math.isfinite(value) else None for value in values.tolist()]
