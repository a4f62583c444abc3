"""What leaves an actor of trained weights: a party's own, one for all, or each."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from fedray import fusion
from fedray.errors import TooFewUpdates
from fedray.fusion import FusionRule, RoundContext, State
from fedray.messages import Origin, Rejection, Report, Update
from fedray.party.loading import GroupPlan
from fedray.weights import Weights, encoding, mismatch, non_finite, row

Stacks = Iterator[tuple[slice, Weights]]  # which parties, their weights (S, *shape)


class Sender:
    """How one actor's parties send: as their plan, config and rule say."""

    def __init__(self, plan: GroupPlan, rule: FusionRule):
        self.plan, self.config, self.rule = plan, plan.config, rule
        self.schema = plan.blueprint.schema

    def made(
        self, report: Report, stacks: Stacks, weights: Weights, state: State | None
    ) -> list[Update | None]:
        """Updates as they travel, made of stacks that come one at a time.

        report : of these parties; who must not count is named in it.
        weights : the global ones that they were trained from.
        """
        if len(self.plan.parties) == 1:
            made = list(self._updates(report, stacks))
        elif self.rule.associative:
            made = [self._combined(report, stacks, weights, state)]
        else:
            made = [_copy(update) for update in self._updates(report, stacks)]
        return [self.packed(update, weights) for update in made]

    def packed(self, update: Update | None, weights: Weights) -> Update | None:
        """An update as it travels."""
        if update is None:
            return None
        packed = encoding.pack(update.weights, self.config.wire_dtype, weights)
        return replace(update, weights=packed)

    def signed(self, update: Update, round: int, party: int) -> Update:
        """A party's update, which says whose it is."""
        return replace(update, origin=Origin(self.plan.run, round, party))

    def _updates(self, report: Report, stacks: Stacks) -> Iterator[Update]:
        """Every party's update, valid until the next."""
        for which, stack in stacks:
            for i, n_samples in enumerate(report.n_samples[which].tolist()):
                party = int(report.parties[which][i])
                yield self.signed(Update(row(stack, i), n_samples), report.round, party)

    def _combined(
        self, report: Report, stacks: Stacks, weights: Weights, state: State | None
    ) -> Update | None:
        """All updates in one; those that must not count are left out and named."""

        most = self.config.max_update_norm

        def additive_updates() -> Iterator[Update]:
            for which, stack in stacks:
                n_samples = report.n_samples[which]
                if self._are_fine(stack, report.drift[which]):
                    yield self.rule.merge(stack, n_samples)
                    continue
                for i, party in enumerate(report.parties[which].tolist()):
                    update = Update(row(stack, i), int(n_samples[i]))
                    bad = fusion.rejection_reason(update, self.schema)
                    bad = bad or fusion.exceeds_norm(update.weights, weights, most)
                    if bad:
                        report.refused[party] = Rejection.parse(bad)
                    else:
                        yield self.rule.to_additive(update, weights, state or {})

        try:
            context = RoundContext(report.round, weights, state or {})
            return fusion.combine(self.rule, additive_updates(), context)
        except TooFewUpdates:
            return None

    def _are_fine(self, stack: Weights, drift: np.ndarray) -> bool:
        """May a stack count as a whole? If not, its parties are looked at one by one.

        What a party's training moves is finite if its drift is; the rest all share.
        """
        each = self.rule.weight_by is None or self.rule.needs_context
        if each or self.config.max_update_norm is not None or len(drift) == 1:
            return False
        first = row(stack, 0)
        whole = mismatch(first, self.schema) is None and non_finite(first) is None
        return whole and bool(np.isfinite(drift).all())


def _copy(update: Update) -> Update:
    """An update that stays as it is when the model trains on."""
    weights = {name: array.copy() for name, array in update.weights.items()}
    return replace(update, weights=weights)
