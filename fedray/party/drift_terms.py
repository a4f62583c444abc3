"""What FedNova and SCAFFOLD need at a party: its rates, and its control variate c_i."""

import functools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np

from fedray.fusion import RATE_SUM, FusionRule, RoundContext, scaffold
from fedray.models import PartySlice, RateSum
from fedray.party.loading import GroupPlan
from fedray.party.state import PartyStateStore, open_store
from fedray.weights import Weights, n_bytes, row

FOLDER = "controls"  # within the run's folder in party_dir
MAX_BYTES = 64 << 20  # of control variates that are read, or wait for their file


class DriftTerms:
    """Prepares parties' trainings, and adds what the fusion rule needs to their result.

    Control variates are saved on this node before a round is reported. Which of them a
    party goes on from the aggregator says: that of the last round in which the party's
    update was fused, so that c stays the mean of all c_i.
    """

    def __init__(self, rule: FusionRule, plan: GroupPlan):
        self.rule, self.plan = rule, plan
        self.are_needed = bool(rule.extra_schema({}))
        self.notes: dict[str, str] = {}  # by party, that its c_i was lost
        self._own: dict[str, Weights | None] = {}  # c_i of those in training
        self._ahead: dict[str, Weights | None] = {}  # read for trainings to come
        self._counted: dict[str, int] = {}  # round that each goes on from, in order
        self._pending: dict[str, Weights] = {}  # new c_i that wait for their file

    @functools.cached_property
    def store(self) -> PartyStateStore:
        """Where control variates are kept.

        Raises
        ------
        DataError
            If there is no such folder.
        """
        return open_store(self.plan, FOLDER)

    def check(self) -> None:
        """Raise DataError where what this rule keeps cannot be written."""
        if self.rule.has_controls:
            self.store.check()

    def prepare(
        self, slices: Sequence[PartySlice], places: np.ndarray, context: RoundContext
    ) -> list[PartySlice]:
        """The same trainings, with what the rule asks of them.

        places : of the parties in the config.
        """
        if not self.are_needed:
            return [*slices]
        prepared = [
            part._replace(rates=RateSum(_rates_before(part))) for part in slices
        ]
        if not self._has_controls(context):
            return prepared
        counted = scaffold.rounds_counted(context.state, places).tolist()
        names = [part.party for part in prepared]
        self._counted = dict(zip(names, counted, strict=True))
        self._own, self._ahead, self._pending = {}, {}, {}
        control = context.state["control"]
        return [
            part._replace(correction=partial(self._correction, part, control))
            for part in prepared
        ]

    def extend(
        self, stack: Weights, slices: Sequence[PartySlice], context: RoundContext
    ) -> Weights:
        """Trained weights (S, *shape) with what the rule needs beside them."""
        if not self.are_needed:
            return stack
        rates = np.array([part.rates.total for part in slices if part.rates])
        extended = stack | {RATE_SUM: rates}
        if not self._has_controls(context):
            return extended
        control, changes = context.state["control"], list[Weights]()
        for i, part in enumerate(slices):
            trained, total = row(stack, i), float(rates[i])
            change = scaffold.find_change(control, context.weights, trained, total)
            changes.append(change)
            own = self._own.pop(part.party, None)
            new = change if own is None else {k: own[k] + change[k] for k in change}
            self._pending[part.party] = new
        if sum(map(n_bytes, self._pending.values())) >= MAX_BYTES:
            self.save(slices[0].round)
        for name in control:
            stacked = np.stack([change[name] for change in changes])
            extended[name + scaffold.CONTROL] = stacked
        return extended

    def save(self, round: int) -> None:
        """Write the new control variates; on disk when this returns.

        Raises
        ------
        OSError
            If the disk refuses.
        """
        by_round = defaultdict[int, list[str]](list)
        for party in self._pending:
            by_round[self._counted[party]].append(party)
        for counted, parties in by_round.items():
            new = [self._pending[party] for party in parties]
            arrays = {name: [own[name] for own in new] for name in new[0]}
            self.store.save(round, parties, arrays, since=counted + 1)
        self._pending = {}

    def _has_controls(self, context: RoundContext) -> bool:
        return self.rule.has_controls and "control" in context.state

    def _correction(self, part: PartySlice, control: Weights) -> Weights:
        """c − c_i of one party, which is in training then."""
        if part.party not in self._ahead and part.party not in self._own:
            size = max(1, MAX_BYTES // max(1, n_bytes(control)))
            names = [*self._counted]
            first = names.index(part.party)
            self._ahead = self._recall(names[first : first + size], part.round)
        if part.party in self._ahead:
            self._own[part.party] = self._ahead.pop(part.party)
        own = self._own[part.party]
        return scaffold.find_correction(control, own)

    def _recall(self, parties: Iterable[str], round: int) -> dict[str, Weights | None]:
        """The c_i that parties go on from; None: zero, as before their first round."""
        recalled: dict[str, Weights | None] = {}
        by_round = defaultdict[int, list[str]](list)
        for party in parties:
            by_round[self._counted[party]].append(party)
        for counted, names in by_round.items():
            states = self.store.recall(names, counted + 1)
            for party, state in zip(names, states, strict=True):
                is_there = 0 < state.round == counted
                recalled[party] = state.arrays if is_there else None
                if counted and not is_there:
                    why = state.problem or f"none of round {counted} is on its node"
                    note = f"began its control variate anew in round {round}: {why}"
                    self.notes[party] = note
        return recalled


def _rates_before(part: PartySlice) -> float:
    """The sum of rates with which a party trained its own weights so far."""
    return 0.0 if part.start is None else float(part.start[RATE_SUM])
