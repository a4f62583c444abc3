"""Updates from trained weights: one party's own, one for all, or one for each.

Checks each party's weights before they are combined, and packs what travels.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from fedray import fusion
from fedray.config import FederationConfig
from fedray.errors import TooFewUpdates
from fedray.fusion import FusionRule, RoundContext, State
from fedray.messages import Origin, Rejection, Report, Update
from fedray.party.loading import GroupPlan
from fedray.weights import Schema, Weights, encoding, mismatch, non_finite, row

TrainedStacks = Iterator[tuple[slice, Weights]]  # which parties; arrays (S, *shape)


class UpdateBuilder:
    """Makes the updates that one actor sends, as its plan, config and rule say."""

    def __init__(self, plan: GroupPlan, rule: FusionRule):
        self.plan, self.config, self.rule = plan, plan.config, rule
        self.schema = plan.blueprint.schema

    @property
    def sent_schema(self) -> Schema:
        """Of a party's update: the weights, and what the rule needs beside them."""
        return self.schema | self.rule.extra_schema(self.schema)

    def build(
        self,
        report: Report,
        stacks: TrainedStacks,
        weights: Weights,
        state: State | None,
    ) -> list[Update | None]:
        """Updates as they travel, from stacks that are trained one at a time.

        Parameters
        ----------
        report : of these parties; rejected ones are added to its `refused`.
        weights : the global ones that they were trained from.
        """
        updates: list[Update | None]
        if len(self.plan.parties) == 1:
            updates = list(self._updates(report, stacks))
        elif self.rule.associative:
            updates = [self._combine(report, stacks, weights, state)]
        else:
            own = {
                update.origin and update.origin.party: _copy(update)
                for update in self._updates(report, stacks)
            }  # those that refuse to train have none
            updates = [own.get(party) for party in report.parties.tolist()]
        conceal(report, self.config)
        first = int(report.parties[0])
        return [
            update and self.pack(update, weights, report.round, first)
            for update in updates
        ]

    def pack(
        self, update: Update, weights: Weights, round: int, first_party: int
    ) -> Update:
        """Encode an update as it travels.

        weights : those it was trained from.
        first_party : of those it is of, if it does not say.
        """
        party = update.origin.party if update.origin else first_party
        name = self.config.party_name(party)
        sender = encoding.Sender(self.config.seed, round, name)
        packed = encoding.pack(update.weights, self.config.wire_dtype, weights, sender)
        return replace(update, weights=packed)

    def sign(self, update: Update, round: int, party: int) -> Update:
        """Add whose update it is, and of which round."""
        return replace(update, origin=Origin(self.plan.run, round, party))

    def _updates(self, report: Report, stacks: TrainedStacks) -> Iterator[Update]:
        """Every party's update, valid until the next."""
        for which, stack in stacks:
            for i, n_samples in enumerate(report.n_samples[which].tolist()):
                party = int(report.parties[which][i])
                yield self.sign(Update(row(stack, i), n_samples), report.round, party)

    def _combine(
        self,
        report: Report,
        stacks: TrainedStacks,
        weights: Weights,
        state: State | None,
    ) -> Update | None:
        """Combine all parties' updates; None if all are rejected."""
        context = RoundContext(report.round, weights, state or {})
        updates = self._additive_updates(report, stacks, context)
        try:
            return fusion.combine(self.rule, updates, context)
        except TooFewUpdates:
            return None

    def _additive_updates(
        self, report: Report, stacks: TrainedStacks, context: RoundContext
    ) -> Iterator[Update]:
        """Updates that add up: whole stacks where possible, or else each party's."""
        needed = self.sent_schema
        for which, stack in stacks:
            n_samples = report.n_samples[which]
            if self._can_merge(stack, report.drift[which]):
                yield self.rule.merge(stack, n_samples, context)
                continue
            for i, party in enumerate(report.parties[which].tolist()):
                update = Update(row(stack, i), int(n_samples[i]))
                rejection = self._check(update, needed, context.weights)
                if rejection:
                    report.refused[party] = rejection
                else:
                    update = self.sign(update, report.round, party)
                    weights, state = context.weights, context.state
                    yield self.rule.to_additive(update, weights, state)

    def _check(self, update: Update, needed: Schema, base: Weights) -> Rejection | None:
        rejection = fusion.rejection_reason(update, needed)
        max_norm = self.config.max_update_norm
        return rejection or fusion.exceeds_norm(update.weights, base, max_norm)

    def _can_merge(self, stack: Weights, drift: np.ndarray) -> bool:
        """May a stack be merged at once, with no look at each party's update?

        Parameters that training moves are finite where `drift` is; all other tensors
        are the same for all parties. Merging and adding one by one differ in their last
        bits, so that only the data may decide.
        """
        has_max_norm = self.config.max_update_norm is not None
        if not self.rule.can_merge or has_max_norm or len(drift) == 1:
            return False
        first = row(stack, 0)
        is_valid = mismatch(first, self.schema) is None and non_finite(first) is None
        return is_valid and bool(np.isfinite(drift).all())


def conceal(report: Report, config: FederationConfig) -> None:
    """Take out of a report what nobody outside the party may know.

    The noise of `dp_sgd` does not cover the loss. Masks hide an update from the
    aggregator, and with it how far it moved.
    """
    if config.dp_sgd is not None or config.secure_aggregation:
        report.loss[:] = np.nan
    if config.secure_aggregation:
        report.drift[:] = np.nan


def _copy(update: Update) -> Update:
    """Copy an update whose arrays the model's next training overwrites."""
    weights = {name: array.copy() for name, array in update.weights.items()}
    return replace(update, weights=weights)
