"""What leaves an actor of trained weights: a party's own, one for all, or each."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from fedray import fusion, wire
from fedray.errors import TooFewUpdates
from fedray.fusion import Fusion, State
from fedray.messages import Report, Update
from fedray.weights import Schema, Weights, mismatch, non_finite, row

Stacks = Iterator[tuple[slice, Weights]]  # which parties, their weights (S, *shape)


@dataclass(frozen=True)
class Sender:
    """How one actor's parties send.

    dtype : in which weights travel.
    is_one : the actor has one party, whose update travels as it is.
    """

    rule: Fusion
    schema: Schema
    dtype: str
    is_one: bool

    def made(
        self, report: Report, stacks: Stacks, weights: Weights, state: State | None
    ) -> list[Update | None]:
        """Updates as they travel, made of stacks that come one at a time.

        report : of these parties; who must not count is named in it.
        weights : the global ones that they were trained from.
        """
        if self.is_one:
            made = list(self._updates(report, stacks))
        elif self.rule.associative:
            made = [self._combined(report, stacks, weights, state)]
        else:
            made = [_copy(update) for update in self._updates(report, stacks)]
        return [self.packed(update, weights) for update in made]

    def _updates(self, report: Report, stacks: Stacks) -> Iterator[Update]:
        """Every party's update, valid until the next."""
        for which, stack in stacks:
            for i, n_samples in enumerate(report.n_samples[which].tolist()):
                yield Update(row(stack, i), n_samples)

    def _combined(
        self, report: Report, stacks: Stacks, weights: Weights, state: State | None
    ) -> Update | None:
        """All updates in one; those that must not count are left out and named."""

        def admitted() -> Iterator[Update]:
            for which, stack in stacks:
                n_samples = report.n_samples[which]
                if self._are_fine(stack, report.drift[which]):
                    yield self.rule.merge(stack, n_samples)
                    continue
                for i, party in enumerate(report.parties[which].tolist()):
                    update = Update(row(stack, i), int(n_samples[i]))
                    bad = fusion.refusal(update, self.schema)
                    if bad:
                        report.refused[party] = bad
                    else:
                        yield self.rule.admit(update, weights, state or {})

        try:
            return self.rule.combine(admitted())
        except TooFewUpdates:
            return None

    def _are_fine(self, stack: Weights, drift: np.ndarray) -> bool:
        """May a stack count as a whole? If not, its parties are looked at one by one.

        What a party's training moves is finite if its drift is; the rest all share.
        """
        if self.rule.by is None or self.rule.admits or len(drift) == 1:
            return False
        first = row(stack, 0)
        whole = mismatch(first, self.schema) is None and non_finite(first) is None
        return whole and bool(np.isfinite(drift).all())

    def packed(self, update: Update | None, weights: Weights) -> Update | None:
        """An update as it travels."""
        if update is None:
            return None
        packed = wire.pack(update.weights, self.dtype, weights)
        return replace(update, weights=packed)


def _copy(update: Update) -> Update:
    """An update that stays as it is when the model trains on."""
    weights = {name: array.copy() for name, array in update.weights.items()}
    return replace(update, weights=weights)
