"""A party group: one model, and the data of one party or of many. A plain class."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np

from fedray import fusion, models, policy, wire
from fedray.errors import TooFewUpdates, WeightsMismatch
from fedray.fusion import State
from fedray.messages import Here, Joined, Origin, Report, Score, Update
from fedray.models import Part
from fedray.party.loading import GroupPlan, Loaded, load, told
from fedray.weights import Weights, distances, mismatch, n_bytes, non_finite, row


class PartyGroup:
    """Holds one model and the data of its parties for its actor's life.

    A real party is a group of one, and its update travels as it is. Many parties train
    one after another or stacked, and where the rule is associative their updates are
    combined here, so that one model leaves the actor however many they are.

    Data and model are made on first use, not in the constructor: a restarted actor
    reloads by itself, and what goes wrong arrives as an error that says so.
    `here` is asked once, inside the actor.
    """

    def __init__(self, plan: GroupPlan, here: Callable[[], Here]):
        self.plan, self.name, self.config = plan, plan.name, plan.config
        self.here = here()
        self.schema = plan.blueprint.schema
        self.rule = fusion.configured(plan.config, plan.blueprint.parameters)
        models.named(plan.blueprint.model_type)  # imports while the aggregator starts
        self._loaded: Loaded | None = None

    def __repr__(self) -> str:
        return f"party:{getattr(self, 'name', '?')}"  # Ray asks before __init__ too

    @property
    def loaded(self) -> Loaded:
        """Model and samples, loaded on first use."""
        return self._ready()

    def join(self) -> Joined:
        """Load data and model, see that they fit, and say how much there is."""
        with self._told("joining"):
            ready = self._ready()
            ready.model.probe(self.name, *ready.train)
            n_test = len(ready.test[0])
            if n_test:
                ready.model.probe(self.name, *ready.test)
            device = ready.model.device
            here = self.here
            return Joined(here.node, device, ready.n_train, n_test, here.process)

    def train(
        self,
        round: int,
        parties: np.ndarray,
        sent: Weights,
        state: State | None = None,
    ) -> tuple[Report | Update | None, ...]:
        """Train these parties from the weights `sent`, each on its own samples.

        Everything random comes from (seed, round, name), nothing is remembered: a round
        trained twice gives the same updates.

        Parameters
        ----------
        parties : (K,) ascending places in the config, all of this group
        sent : the global weights as they travel (`fedray.wire`)
        state : of the fusion rule, if it admits

        Returns
        -------
        The report, then one Update if this is a single party; the one that all were
        combined into (None if all were refused) if the rule is associative; else one
        for every party. A single party's arrays are the model's own, valid until the
        next call; Ray copies them on their way out.
        """
        with self._told(f"training round {round}"):
            started = time.perf_counter()
            weights = self._received(sent)
            report = self._blank(round, parties, n_bytes(sent))
            if len(self.plan.parties) == 1:
                made = list(self._updates(report, weights))
            elif self.rule.associative:
                made = [self._combined(report, weights, state)]
            else:
                made = [_copy(update) for update in self._updates(report, weights)]
            packed = [self._packed(update, weights) for update in made]
            seconds = time.perf_counter() - started
            return replace(report, seconds=seconds), *packed

    def evaluate(self, sent: Weights, part: tuple[int, int] = (0, 1)) -> Score:
        """Loss and accuracy of the weights `sent` on the parties' own test samples.

        part : (i, n) takes the i-th of n equal parts; several actors share the work.
        """
        with self._told("evaluating"):
            ready = self._ready()
            weights = self._received(sent)
            loss = accuracy = None
            x, y = ready.test
            i, n = part
            rows = slice(len(x) * i // n, len(x) * (i + 1) // n)
            n_samples = rows.stop - rows.start
            if n_samples:
                ready.model.load(weights)
                loss, accuracy = ready.model.evaluate(x[rows], y[rows])
            return Score(self.here.node, n_samples, loss, accuracy, n_bytes(sent))

    def _received(self, sent: Weights) -> Weights:
        dtype = self.config.wire_dtype
        different = mismatch(sent, wire.form(self.schema, dtype))
        if different:
            raise WeightsMismatch("the weights sent to this party", different)
        return wire.unpack(sent, self.schema, dtype)

    def _blank(self, round: int, parties: np.ndarray, n_sent: int) -> Report:
        n_samples = self._ready().n_train[parties - self.plan.parties.start]
        loss, drift = np.full((2, len(parties)), np.nan)
        node, process = self.here.node, self.here.process
        columns = parties, n_samples, loss, drift
        return Report(round, node, *columns, 0.0, n_sent, process=process)

    def _stacks(
        self, report: Report, weights: Weights
    ) -> Iterator[tuple[slice, Weights]]:
        """Which parties trained, and their weights (S, *shape), valid until the next.

        Fills the report's columns.
        """
        ready, moved = self._ready(), self.plan.blueprint.parameters
        parts, end = [], 0
        for party in report.parties:
            i = party - self.plan.parties.start
            places = ready.places[ready.starts[i] : ready.starts[i + 1]]
            name = self.config.party_name(party)
            seed = policy.seed_for(self.config.seed, report.round, name)
            parts.append(Part(places, seed, name, report.round))
        trained = ready.model.train_each(weights, parts, *ready.train)
        for losses, stack in trained:
            which = slice(end, end + len(losses))
            end = which.stop
            report.loss[which] = losses
            report.drift[which] = distances(stack, weights, moved)
            yield which, stack
        notes = getattr(ready.model, "notes", {})  # a model's that remembers things
        for party, part in zip(report.parties.tolist(), parts, strict=True):
            if part.party in notes:
                report.notes[party] = notes.pop(part.party)

    def _updates(self, report: Report, weights: Weights) -> Iterator[Update]:
        """Every party's update, valid until the next."""
        for which, stack in self._stacks(report, weights):
            for i, n_samples in enumerate(report.n_samples[which].tolist()):
                party = int(report.parties[which][i])
                origin = Origin(self.plan.run, report.round, party)
                yield Update(row(stack, i), n_samples, origin=origin)

    def _combined(
        self, report: Report, weights: Weights, state: State | None
    ) -> Update | None:
        """All updates in one; those that must not count are left out and named."""

        most = self.config.max_update_norm

        def admitted() -> Iterator[Update]:
            for which, stack in self._stacks(report, weights):
                n_samples = report.n_samples[which]
                if self._are_fine(stack, report.drift[which]):
                    yield self.rule.merge(stack, n_samples)
                    continue
                for i, party in enumerate(report.parties[which].tolist()):
                    update = Update(row(stack, i), int(n_samples[i]))
                    bad = fusion.refusal(update, self.schema)
                    bad = bad or fusion.too_long(update.weights, weights, most)
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
        each = self.rule.by is None or self.rule.admits
        if each or self.config.max_update_norm is not None or len(drift) == 1:
            return False
        first = row(stack, 0)
        whole = mismatch(first, self.schema) is None and non_finite(first) is None
        return whole and bool(np.isfinite(drift).all())

    def _packed(self, update: Update | None, weights: Weights) -> Update | None:
        if update is None:
            return None
        packed = wire.pack(update.weights, self.config.wire_dtype, weights)
        return replace(update, weights=packed)

    def _ready(self) -> Loaded:
        if self._loaded is None:
            self._loaded = load(self.plan, self.here.device)
        return self._loaded

    def _told(self, stage: str) -> AbstractContextManager[None]:
        return told(self.name, stage)


def _copy(update: Update) -> Update:
    """An update that stays as it is when the model trains on."""
    weights = {name: array.copy() for name, array in update.weights.items()}
    return replace(update, weights=weights)
