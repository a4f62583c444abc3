"""Parties that train on from their own weights until they fuse."""

from collections.abc import Collection, Iterator

import numpy as np

from fedray import fusion
from fedray.fusion import FusionRule
from fedray.messages import Drift, Rejection, Report, Update
from fedray.party.loading import Loaded
from fedray.party.updates import Stacks
from fedray.weights import Schema, Weights, levels, mean_of_stack, row, sketch


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

    def update(self, party: int) -> Update:
        """One party's own."""
        i = int(np.searchsorted(self.parties, party))
        return Update(row(self.weights, i), int(self.report.n_samples[i]))

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
    apart: Apart, base: Weights, names: Collection[str], rule: FusionRule, seed: int
) -> Drift:
    """How far all that are finite are from the weights that were fused last."""
    report = apart.report
    share, squares, total = 0.0, 0.0, np.zeros(1, np.float32)
    for which, stack in apart.stacks():
        fine = np.isfinite(report.drift[which])
        if not fine.any():
            continue
        few = slice(None) if fine.all() else fine
        shares = rule.shares(report.n_samples[which][fine])
        mean = mean_of_stack({name: stack[name][few] for name in names}, shares)
        share += float(shares.sum())
        squares += float(shares @ report.drift[which][fine] ** 2)
        total = total + np.float32(shares.sum()) * sketch(mean, base, names, seed)
    return Drift(share, squares, *levels(total))


def refused(apart: Apart, needed: Schema) -> dict[int, Rejection]:
    """Places of parties that are not finite, and what of them is not."""
    found = {}
    for i in np.flatnonzero(~np.isfinite(apart.report.drift)):
        update = Update(row(apart.weights, i), 1)
        bad = fusion.rejection_reason(update, needed) or "drift is too far for a float"
        found[int(apart.parties[i])] = Rejection.parse(bad)
    return found


def scores_of(apart: Apart, ready: Loaded, own: np.ndarray) -> np.ndarray:
    """Of each party's weights on its own tests: (parties, 3) count, loss, accuracy.

    own : places of these parties within the actor's.
    """
    found = np.full((len(own), 3), np.nan)
    for i in range(len(own)):
        found[i] = ready.score(row(apart.weights, i), parties=own[i : i + 1])
    return found


def sketches_of(
    stacks: Stacks, base: Weights, names: Collection[str], seed: int
) -> np.ndarray:
    """Of each party that comes, where it went from `base`: (parties, 2048)."""
    return np.array(
        [
            sketch(row(stack, i), base, names, seed)
            for which, stack in stacks
            for i in range(which.stop - which.start)
        ]
    )
