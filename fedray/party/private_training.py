"""A party's own account of its data's privacy: what training with DP-SGD spends.

Before a training with `dp_sgd` its line stands in the ledger that lies at the party, or
it does not begin. The secret of the training, from which its batches and noise follow,
is bound to all that decides the result: the same training again gives the same bits and
spends nothing, any other one is another release.
"""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fedray.config import DpSgdSpec
from fedray.errors import BudgetExceeded, DataError
from fedray.fusion import RoundContext
from fedray.messages import Rejection, Report
from fedray.models import PartySlice, PrivateModel
from fedray.party.loading import GroupPlan, LocalData
from fedray.party.training_context import (
    TrainingContext,
    data_set_of_party,
    digest_settings,
    digest_weights,
    group_of,
    run_of,
)
from fedray.privacy.data_accounts import DataSet, Training
from fedray.privacy.party_book import FIRST_LIMIT, TRAINING, PartyBook
from fedray.privacy.private_steps import PrivateSteps, sampling_plan
from fedray.privacy.sample_budget import (
    Budget,
    RunTerms,
    Spending,
    epsilon_of_run,
    first_limit,
    noise_of,
    require_round,
    require_rounds,
    spent_of,
)
from fedray.weights import Weights

MAX_REASON = 450  # characters of why a party's data is not trained on


class Ask(NamedTuple):
    """One party's data, and what a run asks of it."""

    place: int  # in the config
    data: DataSet
    terms: RunTerms


class PrivateTraining:
    """Charges the trainings of an actor's parties to the ledger of their data."""

    def __init__(self, plan: GroupPlan):
        self.plan, self.config = plan, plan.config
        self.is_on = plan.config.dp_sgd is not None and plan.trains
        self._book: PartyBook | None = None

    @property
    def book(self) -> PartyBook:
        """The books of this node's parties."""
        if self._book is None:
            self._book = PartyBook(self.config.require_party_folder())
        return self._book

    def foresee(self, local_data: LocalData) -> Budget | None:
        """See whether the data may be trained on in all rounds, before the first.

        Of several parties the budget of the one that comes nearest to its limit. No
        training is charged.

        Raises
        ------
        BudgetExceeded
            If not: of the first party whose data may not.
        """
        if not self.is_on:
            return None
        budgets = []
        with self.book.locked(may_make=bool(run_of(self.plan))):
            for place in self.plan.parties:
                ask = self._ask(local_data, place)
                rest = self.book.accounts, ask.data, ask.terms, self._folder
                budgets.append(require_rounds(*rest))
        return max(budgets, key=lambda budget: budget.share)

    def noise(self, local_data: LocalData) -> float | None:
        """The smallest noise multiplier of the parties' trainings; None: no noise."""
        if not self.is_on:
            return None
        with self.book.locked(may_make=bool(run_of(self.plan))):
            asks = [self._ask(local_data, place) for place in self.plan.parties]
            noises = [noise_of(self.book.accounts, ask.data, ask.terms) for ask in asks]
        return min(noises)

    def prepare(
        self,
        local_data: LocalData,
        slices: Sequence[PartySlice],
        report: Report,
        start: tuple[RoundContext, Weights],
    ) -> list[PartySlice]:
        """Charge a round's trainings, and give each its secret; on disk then.

        Parameters
        ----------
        report : of these parties; those that would go past a limit are added to its
            `refused`, and may not be trained.
        start : the round, and weights beside those in it that are the same each round.

        Raises
        ------
        BudgetExceeded
            If none may be trained.
        """
        if not self.is_on:
            return [*slices]
        context = self._context(local_data, *start)
        errors: dict[int, BudgetExceeded] = {}
        prepared, asks = list[PartySlice](), list[Ask]()
        with self.book.locked():
            for place, part in zip(report.parties.tolist(), slices, strict=True):
                ask = self._ask(local_data, place)
                try:
                    part = self._charge(local_data, ask, part, context)
                except BudgetExceeded as error:
                    errors[place] = error
                prepared.append(part)
                asks.append(ask)
            self.book.flush()
            if report.spending is not None:
                self._note(report.spending, asks)
        if len(errors) == len(slices):
            raise next(iter(errors.values())) from None
        for place, refusal in errors.items():
            report.refused[place] = Rejection.parse(refusal.summary[:MAX_REASON])
        return prepared

    def new_columns(self, n_parties: int) -> Spending | None:
        """What `prepare` fills in of a report; None without DP-SGD."""
        return Spending.unknown(n_parties, self._spec.delta) if self.is_on else None

    def allowed(self, chunk: slice, report: Report) -> Iterator[slice]:
        """Runs of a chunk's parties between those that may not be trained."""
        start = chunk.start
        refused = report.refused if self.is_on else {}
        for i in range(chunk.start, chunk.stop):
            if int(report.parties[i]) in refused:
                if start < i:
                    yield slice(start, i)
                start = i + 1
        if start < chunk.stop:
            yield slice(start, chunk.stop)

    def _charge(
        self,
        local_data: LocalData,
        ask: Ask,
        part: PartySlice,
        context: TrainingContext,
    ) -> PartySlice:
        """Add a training to the ledger, unless this very one is there."""
        book, (_, data, terms) = self.book, ask
        noise = noise_of(book.accounts, data, terms)
        numbers = terms.rate, noise, terms.n_steps
        group, n_samples = group_of(self.plan, ask.place), len(part.rows)
        own = {
            "group": group,
            "n_samples": n_samples,
            "plan": numbers,
            "content": data.content,
            "again": "" if self._repeats(local_data) else os.urandom(16).hex(),
        }
        bound = context.bind(part, own)
        training = Training(
            terms.run, group, part.round, part.party, book.key.tag("training", bound),
            n_samples, *numbers, terms.delta,
        )  # fmt: skip
        if not book.accounts.has(training.tag):
            self._pay(ask, training)
        secret = book.key.derive("training", bound)
        return part._replace(
            private=PrivateSteps(noise, terms.rate, terms.n_steps, secret)
        )

    def _pay(self, ask: Ask, training: Training) -> None:
        """Add a training to the ledger, if it keeps to all limits."""
        book, (_, data, terms) = self.book, ask
        accounts = book.accounts
        require_round(accounts, data, terms, training, self._folder)
        if accounts.of(data).first is None:
            limit = first_limit(terms, training.noise_multiplier)._asdict()
            book.add(FIRST_LIMIT, **data.to_line(), **limit, run=terms.run)
        book.add(TRAINING, **data.to_line(), **training._asdict())

    def _repeats(self, local_data: LocalData) -> bool:
        """Whether the same training gives the same bits."""
        return local_data.is_in_memory and local_data.model.device == "cpu"

    @property
    def _folder(self) -> str:
        """What commands of the owner need to find the books; empty: nothing."""
        return self.config.party_dir or ""

    @property
    def _spec(self) -> DpSgdSpec:
        assert self.config.dp_sgd is not None
        return self.config.dp_sgd

    def _ask(self, local_data: LocalData, place: int) -> Ask:
        """What this run asks of a party's data."""
        spec, own = self._spec, local_data.config
        n = int(np.diff(local_data.starts)[place - self.plan.parties.start])
        if spec.delta >= 1 / n:
            name = self.config.party_name(place)
            got = f"dp_sgd.delta {spec.delta:g} for {n:,} samples"
            needed = f"less than 1 / {n:,}: else publishing a sample would be allowed"
            raise DataError(name, got, needed)
        plan = own.batch_size, own.epochs, own.local_steps
        terms = RunTerms(
            run_of(self.plan), self.config.rounds, spec.epsilon, spec.noise_multiplier,
            spec.delta, *sampling_plan(n, *plan),
        )  # fmt: skip
        book = self.book
        key = book.key if book.is_open else None
        return Ask(place, data_set_of_party(self.plan, local_data, place, key), terms)

    def _context(
        self, local_data: LocalData, context: RoundContext, frozen: Weights
    ) -> TrainingContext:
        """What all parties of a call have in common."""
        model = local_data.model
        if not isinstance(model, PrivateModel):
            kind = type(model).__name__
            raise DataError(
                self.plan.name, f"dp_sgd with {kind}", "model_type: pytorch"
            )
        return TrainingContext(
            run_of(self.plan),
            context.round,
            digest_weights(context.weights, frozen),
            digest_settings(model.config, self.plan.parties.start),
            model.arithmetic(self.plan.name, local_data.train),
        )

    def _note(self, spending: Spending, asks: Sequence[Ask]) -> None:
        """Fill in what has been spent of each party's data, with this round's."""
        for i, (_, data, terms) in enumerate(asks):
            accounts = self.book.accounts
            spending.epsilon[i] = spent_of(accounts, data, terms)
            spending.run_epsilon[i] = epsilon_of_run(accounts, data, terms)
            spending.noise_multiplier[i] = noise_of(accounts, data, terms)
            spending.sampling_rate[i], spending.n_steps[i] = terms.rate, terms.n_steps
