"""Parties that train on from their own weights until they fuse."""

from collections.abc import Collection, Iterator

import numpy as np

from fedray import fusion
from fedray.fusion import Fusion
from fedray.messages import Drift, Report, Update
from fedray.weights import Schema, Weights, mean_of_stack, row, schema, sketch


class Apart:
    """What parties of one actor keep between fusions; lost with the actor.

    since : the first round after the last fusion.
    round : the last round that they have trained.
    """

    report: Report  # of that round

    def __init__(self, since: int, parties: np.ndarray):
        self.since, self.parties, self.round = since, parties, since - 1
        self.weights: Weights = {}  # (parties, *shape)
        self.slices: list[slice] = []  # that were trained, and are combined, together

    def is_of(self, since: int, parties: np.ndarray) -> bool:
        """Are these the same parties since the same fusion?"""
        return self.since == since and np.array_equal(self.parties, parties)

    def shares(self, parties: np.ndarray) -> bool:
        """Is one of these parties here?"""
        return bool(np.isin(parties, self.parties).any())

    def start(self, i: int) -> Weights | None:
        """What the i-th party goes on from; None: the last fusion."""
        return row(self.weights, i) if self.weights else None

    def keep(self, report: Report, trained: Iterator[tuple[slice, Weights]]) -> None:
        """Copy what parties have trained over what they began with."""
        self.slices, kept = [], self.weights
        for which, stack in trained:
            self.slices.append(which)
            for name, array in stack.items():
                if which.start == 0 and name not in kept:
                    shape = len(self.parties), *array.shape[1:]
                    kept[name] = np.empty(shape, array.dtype)
                kept[name][which] = array
        self.report, self.round = report, report.round

    def stacks(self) -> Iterator[tuple[slice, Weights]]:
        """What was kept, as it was trained."""
        for which in self.slices:
            yield which, {name: array[which] for name, array in self.weights.items()}


def drift_of(
    apart: Apart, base: Weights, names: Collection[str], rule: Fusion, seed: int
) -> Drift:
    """How far parties are from the weights that were fused last.

    Who is not finite is left out, and named in the report.
    """
    report, needed = apart.report, schema(base)
    share, squares, total = 0.0, 0.0, np.zeros(1, np.float32)
    for which, stack in apart.stacks():
        fine = np.isfinite(report.drift[which])
        for i in np.flatnonzero(~fine):
            report.refused[int(report.parties[which][i])] = _refusal(stack, i, needed)
        if not fine.any():
            continue
        few = slice(None) if fine.all() else fine
        shares = rule.shares(report.n_samples[which][fine])
        mean = mean_of_stack({name: stack[name][few] for name in names}, shares)
        share += float(shares.sum())
        squares += float(shares @ report.drift[which][fine] ** 2)
        total = total + np.float32(shares.sum()) * sketch(mean, base, names, seed)
    return Drift(share, squares, total)


def _refusal(stack: Weights, i: int, needed: Schema) -> str:
    update = Update(row(stack, i), 1)
    return fusion.refusal(update, needed) or "drift is too far for a float"
