"""A party group: one model, and the data of one party or of many. A plain class."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import numpy as np

from fedray import fusion, models
from fedray.errors import WeightsMismatch
from fedray.fusion import State
from fedray.messages import (
    ActorLocation,
    PartyInfo,
    Report,
    Score,
    Update,
    UpdateSketches,
)
from fedray.party.loading import GroupPlan, Loaded, load, parts_of, told
from fedray.party.local_training import Apart, drift_of, refused, scores_of, sketches_of
from fedray.party.progress import Pace
from fedray.party.updates import Sender, Stacks
from fedray.weights import Weights, distances, encoding, mismatch, n_bytes


class PartyGroup:
    """Holds one model and the data of its parties for its actor's life.

    A real party is a group of one, and its update travels as it is. Many parties train
    one after another or stacked, and where the rule is associative their updates are
    combined here, so that one model leaves the actor however many they are.

    Data and model are made on first use, not in the constructor: a restarted actor
    reloads by itself, and what goes wrong arrives as an error that says so.
    `here` is asked once, inside the actor. `tell` takes the run, this actor's name and
    the share of a long training that is done.
    """

    def __init__(
        self,
        plan: GroupPlan,
        here: Callable[[], ActorLocation],
        tell: Callable[[str, str, float], None] | None = None,
    ):
        self.plan, self.name, self.config = plan, plan.name, plan.config
        self.here = here()
        self.schema = plan.blueprint.schema
        self.rule = fusion.configured(plan.config, plan.blueprint.parameters)
        self.sender = Sender(plan, self.rule)
        models.named(plan.blueprint.model_type)  # imports while the aggregator starts
        told = partial(tell, plan.run, plan.name) if tell else models.no_progress
        self.pace = Pace(told, plan.config.num_parties)
        self._loaded: Loaded | None = None
        self._apart: list[Apart] = []

    def __repr__(self) -> str:
        return f"party:{getattr(self, 'name', '?')}"  # Ray asks before __init__ too

    @property
    def loaded(self) -> Loaded:
        """Model and samples, loaded on first use."""
        if self._loaded is None:
            self._loaded = load(self.plan, self.here.device)
            self._loaded.model.on_progress = self.pace.within
        return self._loaded

    def join(self) -> PartyInfo:
        """Load data and model, see that they fit, and say how much there is."""
        with self._told("joining"):
            ready = self.loaded
            ready.model.probe(self.name, *ready.train)
            n_test = len(ready.test[0])
            if n_test:
                ready.model.probe(self.name, *ready.test)
            who = self.here.node, ready.model.device, ready.n_train, n_test
            return PartyInfo(*who, self.here.process, *ready.form(self.config))

    def train(
        self,
        round: int,
        parties: np.ndarray,
        sent: Weights,
        state: State | None = None,
        since: int | None = None,
    ) -> Report | tuple[Report | Update | None, ...]:
        """Train these parties from the weights `sent`, each on its own samples.

        Everything random comes from (seed, round, name), nothing is remembered that
        could not be had again: a round trained twice gives the same updates.

        Parameters
        ----------
        parties : (K,) ascending places in the config, all of this group
        sent : the global weights as they travel (`fedray.weights.encoding`)
        state : of the fusion rule, if it admits
        since : the first round since `sent` was fused, if parties train apart: they go
            on from their own weights, keep them, and only the report is returned

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
            if since is not None:
                report = self._trained_apart(round, parties, weights, since).report
                return replace(report, n_bytes=n_bytes(sent))
            report = self._blank(round, parties)
            stacks = self._stacks(report, weights)
            made = self.sender.made(report, stacks, weights, state)
            seconds = time.perf_counter() - started
            return replace(report, seconds=seconds, n_bytes=n_bytes(sent)), *made

    def update(
        self,
        round: int,
        parties: np.ndarray,
        sent: Weights,
        state: State | None,
        since: int,
    ) -> tuple[Report | Update | None, ...]:
        """What `train` returns, of parties that have trained apart since a fusion.

        Weights that were lost with an earlier actor are trained again.
        """
        with self._told(f"sending round {round}"):
            weights = self._received(sent)
            apart = self._trained_apart(round, parties, weights, since)
            made = self.sender.made(apart.report, apart.stacks(), weights, state)
            return replace(apart.report, n_bytes=n_bytes(sent)), *made

    def directions(self, parties: np.ndarray, sent: Weights) -> UpdateSketches:
        """Where a first round of training would take each of these parties."""
        with self._told("comparing"):
            weights, report = self._received(sent), self._blank(1, parties)
            moved, seed = self.plan.blueprint.parameters, self.config.seed
            stacks = self._stacks(report, weights)
            sketches = sketches_of(stacks, weights, moved, seed)
            lost = parties[~np.isfinite(report.drift)]
            if len(lost):
                who = self.config.party_name(int(lost[0]))
                raise FloatingPointError(f"the training of {who} is not finite")
            return UpdateSketches(self.here.node, parties, sketches, n_bytes(sent))

    def evaluate(
        self,
        sent: Weights,
        part: tuple[int, int] = (0, 1),
        parties: np.ndarray | None = None,
    ) -> Score:
        """Loss and accuracy of the weights `sent` on the parties' own test samples.

        part : (i, n) takes the i-th of n equal parts; several actors share the work.
        parties : whose samples count; None: all of this actor's.
        """
        with self._told("evaluating"):
            own = None if parties is None else parties - self.plan.parties.start
            score = self.loaded.score(self._received(sent), part, own)
            return Score(self.here.node, *score, n_bytes(sent))

    def candidate(
        self, round: int, parties: np.ndarray, sent: Weights, party: int
    ) -> Update:
        """One party's update of a round that these parties have trained apart."""
        with self._told(f"sending round {round}"):
            weights = self._received(sent)
            apart = self._trained_apart(round, parties, weights, round)
            update = self.sender.signed(apart.update(party), round, party)
            return self.sender.packed(update, weights)

    def judge(self, candidate: Update, sent: Weights, parties: np.ndarray) -> Score:
        """How another's update does on these parties' own test samples.

        sent : the global weights that it was trained from.
        """
        with self._told("looking at a candidate"):
            base, dtype = self._received(sent), self.config.wire_dtype
            weights = encoding.unpack(candidate.weights, self.schema, dtype, base)
            own = parties - self.plan.parties.start
            score = self.loaded.score(weights, parties=own)
            return Score(self.here.node, *score, n_bytes(candidate.weights))

    def _received(self, sent: Weights) -> Weights:
        dtype = self.config.wire_dtype
        different = mismatch(sent, encoding.form(self.schema, dtype))
        if different:
            raise WeightsMismatch("the weights sent to this party", different)
        return encoding.unpack(sent, self.schema, dtype)

    def _blank(self, round: int, parties: np.ndarray) -> Report:
        n_samples = self.loaded.n_train[parties - self.plan.parties.start]
        loss, drift = np.full((2, len(parties)), np.nan)
        node, process = self.here.node, self.here.process
        columns = parties, n_samples, loss, drift
        return Report(round, node, *columns, 0.0, 0, process=process)

    def _trained_apart(
        self, round: int, parties: np.ndarray, weights: Weights, since: int
    ) -> Apart:
        """Train on from what is kept; all rounds again where that was lost."""
        found = [apart for apart in self._apart if apart.is_of(since, parties)]
        if found and found[0].round == round:
            return found[0]
        started = time.perf_counter()
        # what fails half-way is not kept
        self._apart = [a for a in self._apart if not a.shares(parties)]
        again = not found or found[0].round != round - 1
        apart = Apart(since, parties) if again else found[0]
        for round_ in range(apart.round + 1, round + 1):
            report = self._blank(round_, parties)
            apart.keep(report, self._stacks(report, weights, apart))
        moved, seed = self.plan.blueprint.parameters, self.config.seed
        told = {"refused": refused(apart, self.schema)}
        if self.config.aggregation == "adaptive":
            told["drifted"] = drift_of(apart, weights, moved, self.rule, seed)
        else:
            first = self.plan.parties.start
            told["scores"] = scores_of(apart, self.loaded, parties - first)
        seconds = time.perf_counter() - started
        apart.report = replace(apart.report, seconds=seconds, **told)
        self._apart.append(apart)
        return apart

    def _stacks(
        self, report: Report, weights: Weights, apart: Apart | None = None
    ) -> Stacks:
        """Which parties trained, and their weights (S, *shape), valid until the next.

        Fills the report's columns. Those that train `apart` go on from their own.
        """
        ready, moved = self.loaded, self.plan.blueprint.parameters
        parts, end = parts_of(self.plan, ready, report.round, report.parties), 0
        if apart:
            parts = [p._replace(start=apart.start(k)) for k, p in enumerate(parts)]
        self.pace.begin(len(parts))
        trained = ready.model.train_each(weights, parts, *ready.train)
        for losses, stack in trained:
            self.pace.finished(len(losses))
            which = slice(end, end + len(losses))
            end = which.stop
            report.loss[which] = losses
            report.drift[which] = distances(stack, weights, moved)
            yield which, stack
        notes = ready.model.notes
        for party, part in zip(report.parties.tolist(), parts, strict=True):
            if part.party in notes:
                report.notes[party] = notes.pop(part.party)

    def _told(self, stage: str) -> AbstractContextManager[None]:
        return told(self.name, stage)
