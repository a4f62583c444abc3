"""PartyGroup: model and data of one party, or of many that share an actor."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fedray import fusion, models
from fedray.errors import FrozenMoved, WeightsMismatch
from fedray.fusion import RoundContext, State
from fedray.messages import (
    ActorLocation,
    Comparison,
    PartyInfo,
    Report,
    Score,
    Scores,
    Update,
    UpdateSketches,
)
from fedray.models import FreezableModel, Model, PartySlice
from fedray.party.actor_log import log_joining, log_round
from fedray.party.comparison import Compared, Rates, score_models
from fedray.party.drift_terms import DriftTerms
from fedray.party.failures import sanitize_errors
from fedray.party.loading import (
    GroupPlan,
    LocalData,
    last_rates,
    load_local_data,
    party_slices,
)
from fedray.party.local_training import (
    LocalState,
    decision_report,
    sketch_updates,
)
from fedray.party.personal import OwnArrays, PersonalState
from fedray.party.private_training import PrivateTraining
from fedray.party.progress import ProgressReporter
from fedray.party.release_records import ReleaseRecords
from fedray.party.trial import (
    compare_passes,
    repeat_training,
    try_training,
    undo_trial,
)
from fedray.party.updates import TrainedStacks, UpdateBuilder
from fedray.weights import Weights, digest, distances, encoding, mismatch, n_bytes


class PartyGroup:
    """Trains and evaluates the parties of one actor; a plain class.

    A real party is a group of one, and its update travels as it is. Many parties train
    one after another or stacked, and where the rule is associative their updates are
    combined here, so that one model leaves the actor however many they are.

    Data and model are made on first use, not in the constructor: a restarted actor
    reloads by itself, and what goes wrong arrives as an error that says so.

    Parameters
    ----------
    locate : called once, inside the actor.
    on_progress : takes the run, this actor's name and the share of a long training
        that is done.
    """

    def __init__(
        self,
        plan: GroupPlan,
        locate: Callable[[], ActorLocation],
        on_progress: Callable[[str, str, float], None] | None = None,
    ):
        self.plan, self.name, self.config = plan, plan.name, plan.config
        self.location = locate()
        self.schema = plan.blueprint.schema
        self.rule = fusion.from_config(plan.config, plan.blueprint.shared_parameters)
        self.builder = UpdateBuilder(plan, self.rule)
        self.drift = DriftTerms(self.rule, plan)
        models.named(plan.blueprint.model_type)  # imports while the aggregator starts
        report = models.no_progress
        if on_progress:
            report = partial(on_progress, plan.run, plan.name)
        self.progress = ProgressReporter(report, plan.config.num_parties or 1)
        self._local_data: LocalData | None = None
        self.personal = PersonalState(plan)
        self.private = PrivateTraining(plan)
        self.releases = ReleaseRecords(plan)
        self._frozen: Weights = {}  # that this actor was given
        self._n_frozen_bytes = 0  # of these, which no answer has counted
        self._learning_rate: float | None = None  # that the aggregator decided on
        self._states: list[LocalState] = []

    def __repr__(self) -> str:
        return f"party:{getattr(self, 'name', '?')}"  # Ray asks before __init__ too

    @property
    def local_data(self) -> LocalData:
        """Model and samples, loaded on first use."""
        if self._local_data is None:
            self._local_data = load_local_data(
                self.plan, self.location.device, self.location.node
            )
            self._local_data.model.on_progress = self.progress.advance
        return self._local_data

    def join(
        self, payload: Weights | None = None, n_most: int | None = None
    ) -> PartyInfo:
        """Load data and model, try a training step, and report sample counts.

        payload : the weights that round 1 starts from; None: the model as it is.
        n_most : samples that the step may take; None: as many as training takes.
        """
        with self._sanitize_errors("joining"):
            local_data = self.local_data
            n_test = len(local_data.test)
            self.drift.check()
            self.releases.check()
            budget = self.private.foresee(local_data)
            moved = self._try(payload, n_most)
            sample, n_classes = local_data.signature(self.config)
            log_joining(self, len(self.plan.parties), local_data)
            return PartyInfo(
                self.location.node,
                local_data.model.device,
                local_data.n_train,
                n_test,
                self.location.process,
                sample,
                n_classes,
                local_data.data_state,
                moved,
                self._count_frozen_bytes(),
                budget=budget,
            )

    def with_frozen(
        self, frozen: Weights, method: str, *arguments: Any, **named: Any
    ) -> Any:
        """Call a method with weights that lack tensors which are in `frozen`.

        They travel once to the node, and stay in its object store.
        """
        if not self._frozen:
            self._n_frozen_bytes += n_bytes(frozen)
        self._frozen = frozen
        return getattr(self, method)(*arguments, **named)

    def with_learning_rate(
        self, learning_rate: float, method: str, *arguments: Any
    ) -> Any:
        """Call a method that trains, from this rate instead of the config's."""
        self._learning_rate = learning_rate
        try:
            return getattr(self, method)(*arguments)
        finally:
            self._learning_rate = None

    def _try(self, payload: Weights | None, n_most: int | None) -> tuple[str, ...]:
        """Look whether data and model fit, and try to train; changes nothing else.

        Returns the names of frozen tensors that training moved.
        """
        local_data, model = self.local_data, self.local_data.model
        if payload is None:  # a copy, since a training step changes the model's own
            weights = {name: array.copy() for name, array in model.weights().items()}
        else:
            weights = self.personal.complete(self._unpack(payload))
        self.personal.check()
        with undo_trial(model, weights):
            model.load(weights)
            model.probe(self.name, local_data.train)
            if len(local_data.test):
                model.probe(f"{self.name} (test samples)", local_data.test)
            finite = self._must_be_finite()
            return try_training(self.plan, local_data, weights, n_most, finite)

    def repeat_training(self, payload: Weights) -> str:
        """Train a class of the user's own twice; what then differs, in words."""
        with self._sanitize_errors("training twice"):
            return repeat_training(self.plan, self.local_data, self._unpack(payload))

    def compare_passes(self) -> str:
        """Read samples outside memory twice; which are then others, in words."""
        with self._sanitize_errors("reading its data twice"):
            return compare_passes(self.plan, self.local_data)

    def _must_be_finite(self) -> bool:
        """Whether a round fails for a single update that is refused."""
        config, n_parties = self.config, self.config.num_parties or 1
        is_borne = config.bears_refusals or self.rule.n_withstood(n_parties)
        return not is_borne and config.quorum == 1 and config.over_select == 1

    def train(
        self,
        round: int,
        parties: np.ndarray,
        payload: Weights,
        state: State | None = None,
        since: int | None = None,
    ) -> Report | tuple[Report | Update | None, ...]:
        """Train these parties from the weights `payload`, each on its own samples.

        Everything random comes from (seed, round, name), nothing is remembered that
        could not be had again: a round trained twice gives the same updates.

        Parameters
        ----------
        parties : (K,) ascending places in the config, all of this group
        payload : the global weights as they travel (`fedray.weights.encoding`)
        state : of the fusion rule, if it needs context
        since : the first round since `payload` was fused, if parties train on from
            their own weights: they keep them, and only the report is returned

        Returns
        -------
        The report, then one Update if this is a single party; the one that all were
        combined into (None if all were refused) if the rule is associative; else one
        for every party. A single party's arrays are the model's own, valid until the
        next call; Ray copies them on their way out.
        """
        with self._sanitize_errors(f"training round {round}"):
            started = time.perf_counter()
            weights = self._unpack(payload)
            context = RoundContext(round, weights, state or {})
            if since is not None:
                report = self._train_locally(parties, context, since).report
                log_round(self, report, report.seconds)
                return replace(report, n_bytes=n_bytes(payload))
            report = self._empty_report(round, parties)
            stacks = self._stacks(report, context)
            updates = self.builder.build(report, stacks, weights, state)
            if self.releases.is_on:
                self.releases.add(round, parties.tolist(), digest(weights))
            seconds = time.perf_counter() - started
            log_round(self, report, seconds)
            return replace(report, seconds=seconds, n_bytes=n_bytes(payload)), *updates

    def update(
        self,
        round: int,
        parties: np.ndarray,
        payload: Weights,
        state: State | None,
        since: int,
    ) -> tuple[Report | Update | None, ...]:
        """Report and updates, as `train` returns them, of parties that trained locally.

        Weights that were lost with an earlier actor are trained again.
        """
        with self._sanitize_errors(f"sending round {round}"):
            weights = self._unpack(payload)
            context = RoundContext(round, weights, state or {})
            local = self._train_locally(parties, context, since)
            updates = self.builder.build(local.report, local.stacks(), weights, state)
            return replace(local.report, n_bytes=n_bytes(payload)), *updates

    def sketch_updates(self, parties: np.ndarray, payload: Weights) -> UpdateSketches:
        """Sketch what a first round of training changes in each party's weights."""
        with self._sanitize_errors("comparing"):
            weights, report = self._unpack(payload), self._empty_report(1, parties)
            names, seed = self.plan.blueprint.shared_parameters, self.config.seed
            stacks = self._stacks(report, RoundContext(1, weights))
            sketches = sketch_updates(stacks, weights, names, seed)
            is_finite = np.isfinite(report.drift)
            if not is_finite.all():
                party = self.config.party_name(int(parties[~is_finite][0]))
                exploded = f"the training of {party} is not finite"
                raise FloatingPointError(f"{exploded}: lower learning_rate")
            return UpdateSketches(
                self.location.node, parties, sketches, n_bytes(payload)
            )

    def evaluate(
        self,
        payload: Weights,
        part: tuple[int, int] = (0, 1),
        parties: np.ndarray | None = None,
        round: int = 0,
    ) -> Score:
        """Loss and accuracy of the weights `payload` on the parties' own test samples.

        part : (i, n) takes the i-th of n equal parts; several actors share the work.
        parties : whose samples count; None: all of this actor's.
        round : whose result the weights are; 0: they are those of the start.
        """
        with self._sanitize_errors("evaluating"):
            own = None if parties is None else parties - self.plan.parties.start
            weights = self.personal.complete(self._unpack(payload))
            score = self.local_data.score
            if self.personal.names:
                score = partial(self.personal.score, self.local_data)
            return self._score(score(weights, part, own, round), n_bytes(payload))

    def candidate(
        self, round: int, parties: np.ndarray, payload: Weights, party: int
    ) -> Update:
        """One party's update of a round that these parties trained locally."""
        with self._sanitize_errors(f"sending round {round}"):
            weights = self._unpack(payload)
            context = RoundContext(round, weights)
            local = self._train_locally(parties, context, round)
            update = self.builder.sign(local.update_of(party), round, party)
            return self.builder.pack(update, weights, round, party)

    def judge(self, candidate: Update, payload: Weights, parties: np.ndarray) -> Score:
        """Evaluate another party's update on these parties' own test samples.

        payload : the global weights that it was trained from.
        """
        with self._sanitize_errors("looking at a candidate"):
            base, dtype = self._unpack(payload), self.config.wire_dtype
            weights = encoding.unpack(candidate.weights, self.schema, dtype, base)
            own = parties - self.plan.parties.start
            scores = self.local_data.score(weights, parties=own)
            return self._score(scores, n_bytes(candidate.weights))

    def compare(
        self,
        parties: np.ndarray,
        initial: Weights,
        payload: Weights,
        rounds: int,
        rates: Rates | None = None,
    ) -> Comparison:
        """Scores of several models on these parties' own tests: see `score_models`."""
        with self._sanitize_errors("training alone"):
            final, first = map(self._unpack, (payload, initial))
            own = self.plan, self.local_data, self.personal, self.progress, rates or {}
            weights = first, final, self._frozen
            models = score_models(Compared(*own), weights, parties, rounds)
            return Comparison(self.location.node, models, dict(self.personal.notes))

    def _score(self, scores: Scores, size: int) -> Score:
        if own := scores.by_party:
            places = own.parties + self.plan.parties.start
            scores = scores._replace(by_party=own._replace(parties=places))
        scores = scores._replace(metrics=dict(scores.metrics))
        state = self.local_data.data_state
        return Score(self.location.node, scores, size, state)

    def _unpack(self, payload: Weights) -> Weights:
        dtype = self.config.wire_dtype
        if payload.keys() != self.schema.keys():
            self._fix_the_rest(payload)
        different = mismatch(payload, encoding.form(self.schema, dtype))
        if different:
            raise WeightsMismatch("the weights sent to this party", different)
        return encoding.unpack(payload, self.schema, dtype)

    def _fix_the_rest(self, payload: Weights) -> None:
        """Take what travels from these weights' names.

        The rest is frozen, tied, or what own layers start from.
        """
        blueprint, frozen = self.plan.blueprint, self._frozen
        fixed = set(blueprint.frozen) - payload.keys()
        schema = blueprint.round_schema(fixed)
        is_complete = fixed.union(blueprint.personal) <= frozen.keys()
        if schema.keys() == payload.keys() and is_complete:
            model = self.local_data.model
            if isinstance(model, FreezableModel):
                model.fix({n: a for n, a in frozen.items() if n in fixed})
            self.personal.initial = {name: frozen[name] for name in blueprint.personal}
            self.schema = self.builder.schema = schema

    def _empty_report(self, round: int, parties: np.ndarray) -> Report:
        n_samples = self.local_data.n_train[parties - self.plan.parties.start]
        loss, drift = np.full((2, len(parties)), np.nan)
        node, process = self.location.node, self.location.process
        state = self.local_data.data_state
        is_scheduled = self.config.scheduler is not None
        return Report(
            round, node, parties, n_samples, loss, drift, 0.0, 0, process=process,
            data=state, n_frozen_bytes=self._count_frozen_bytes(),
            learning_rate=np.full(len(parties), np.nan) if is_scheduled else None,
            spending=self.private.new_columns(len(parties)),
        )  # fmt: skip

    def _count_frozen_bytes(self) -> int:
        """Bytes that were received once, and are told of once."""
        n, self._n_frozen_bytes = self._n_frozen_bytes, 0
        return n

    def _train_locally(
        self, parties: np.ndarray, context: RoundContext, since: int
    ) -> LocalState:
        """Train one more round from the parties' own weights; all if those are lost.

        context : the round, and the weights of the last fusion.
        """
        round = context.round
        local = next((s for s in self._states if s.matches(since, parties)), None)
        if local and local.round == round:
            return local
        started = time.perf_counter()
        # a state whose training fails half-way must not be used again
        self._states = [s for s in self._states if not s.overlaps(parties)]
        if local is None or local.round != round - 1:
            local = LocalState(since, parties)
        notes: dict[int, str] = {}
        for number in range(local.round + 1, round + 1):
            report = self._empty_report(number, parties)
            local.store(report, self._stacks(report, context, local))
            notes |= report.notes
            report.notes.update(notes)
        report = decision_report(local, context.weights, self.local_data, self.builder)
        seconds = time.perf_counter() - started
        local.report = replace(report, seconds=seconds)
        self._states.append(local)
        return local

    def _stacks(
        self, report: Report, context: RoundContext, local: LocalState | None = None
    ) -> TrainedStacks:
        """Train, and yield which parties and their weights, valid until the next.

        Fills the report's columns.

        local : the parties train on from these weights of their own.
        """
        data = self.local_data
        slices = party_slices(self.plan, data, report.round, report.parties)
        if self._learning_rate is not None:
            rate = self._learning_rate
            slices = [s._replace(learning_rate=rate) for s in slices]
        if report.learning_rate is not None:
            report.learning_rate[:] = last_rates(data.model, slices)
        if local:
            slices = [s._replace(start=local.start(k)) for k, s in enumerate(slices)]
        slices = self.drift.prepare(slices, report.parties, context)
        slices = self.private.prepare(data, slices, report, (context, self._frozen))
        self.progress.begin(len(slices) * self.personal.n_trainings)
        since = local.since if local else None
        for chunk in self.personal.chunks(len(slices)):
            for which in self.private.allowed(chunk, report):
                yield from self._train_chunk(report, context, slices, which, since)
        self.drift.save(report.round)
        notes = data.model.notes | self.personal.notes | self.drift.notes
        for every in (data.model.notes, self.personal.notes, self.drift.notes):
            every.clear()
        for party, part in zip(report.parties.tolist(), slices, strict=True):
            if part.party in notes:
                report.notes[party] = notes[part.party]

    def _train_chunk(
        self,
        report: Report,
        context: RoundContext,
        slices: list[PartySlice],
        chunk: slice,
        since: int | None,
    ) -> TrainedStacks:
        """Train some of a call's parties, whose own arrays are in memory meanwhile."""
        data, personal, weights = self.local_data, self.personal, context.weights
        names, base = self.plan.blueprint.shared_parameters, personal.complete(weights)
        parts, end = slices[chunk], chunk.start
        own = OwnArrays(personal.recall(parts, base))
        starts = personal.starts(parts, own.states)
        for losses, trained in data.model.train_each(base, starts, data.train):
            self.progress.finish(len(losses))
            self._require_fixed(data.model)
            which = slice(end, end + len(losses))
            end = which.stop
            report.loss[which] = losses
            stack, stays = personal.split(trained)
            report.drift[which] = distances(stack, weights, names)
            own.add(stays, np.isfinite(report.drift[which]))
            yield which, self.drift.extend(stack, slices[which], context)
        if personal.is_ditto:
            self._train_own_models(own, base, parts)
        if personal.is_kept:
            personal.save(parts, own, since)

    def _train_own_models(
        self, own: OwnArrays, base: Weights, parts: list[PartySlice]
    ) -> None:
        """Train each party's own model beside the global one (Ditto)."""
        samples, model = self.local_data.train, self.local_data.model
        own.is_finite = []
        trainings = self.personal.own_trainings(parts, own.states)
        for losses, stack in model.train_each(base, trainings, samples):
            self.progress.finish(len(losses))
            self._require_fixed(model)
            own.add(stack, np.ones(len(losses), bool))

    def _require_fixed(self, model: Model) -> None:
        """Refuse a training that moved what does not travel, and put that back."""
        if isinstance(model, FreezableModel) and (names := model.fixed.restore()):
            raise FrozenMoved(self.name, names)

    def _sanitize_errors(self, stage: str) -> AbstractContextManager[None]:
        return sanitize_errors(self.plan, stage, self.location.node)
