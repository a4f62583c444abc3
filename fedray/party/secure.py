"""A party under secure aggregation: its updates leave as masked vectors of integers.

Of a round the aggregator gets nothing else of one party: no loss, no drift, no sample
count. What a party promises whoever asks is said by `fedray.secure_sum`.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedray.errors import SecureSumError
from fedray.fusion import State
from fedray.messages import PartyInfo, Report, Update
from fedray.party.group import PartyGroup
from fedray.party.updates import TrainedStacks, UpdateBuilder, conceal
from fedray.secure_sum import Attempt, FolderStorage, PartySide, scale_weight
from fedray.secure_sum.vectors import (
    MASKED,
    VectorPlan,
    check_sum,
    clip_norm_of,
    count_samples,
)
from fedray.weights import Weights, digest

SECURE = "secure_sum"  # folder within the run's in party_dir


class SecureAnswers(NamedTuple):
    """What a party answers to requests of secure sums: see `fedray.secure_sum`.

    opened_round : the last round for which it revealed shares; -1: none.
    """

    answers: list[bytes]
    opened_round: int


class SecurePartyGroup(PartyGroup):
    """One party, whose weights nobody but itself sees; see `PartyGroup`."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.builder = self.masked_updates = MaskedUpdates(self.plan, self.rule)

    @cached_property
    def side(self) -> PartySide:
        """Identity, keys and open attempts of this party, on disk; made on first use.

        Raises
        ------
        SecureSumError, DataError
            If they cannot be made, or read.
        """
        folder = self.config.require_party_folder()
        if self.plan.own_folder:
            folder = Path(self.plan.own_folder).expanduser()
        storage = FolderStorage(folder / SECURE / self.name)
        least = self.config.min_sum
        return PartySide(self.name, storage, min_sum=least, check=self._check)

    def join(
        self, payload: Weights | None = None, n_most: int | None = None
    ) -> PartyInfo:
        """As a `PartyGroup` joins; with its identity, without its own sample count."""
        info = super().join(payload, n_most)
        with self._sanitize_errors("joining"):
            n_train = self._counted_samples()
            return replace(info, n_train=n_train, identity=self.side.public_key)

    def secure_answers(self, requests: Sequence[bytes]) -> SecureAnswers:
        """Answers to requests of a secure sum's steps, but for that of the vector."""
        with self._sanitize_errors("secure aggregation"):
            answers = self.side.answer_all(requests)
            return SecureAnswers(answers, self.side.opened_round)

    def train_masked(
        self,
        round: int,
        parties: np.ndarray,
        payload: Weights,
        request: bytes,
        most_samples: int,
    ) -> tuple[Report | Update | None, ...]:
        """Train as `train` does; the update that is returned is masked.

        A vector that was masked before is sent again as it was, without training.

        request : of a secure sum, for this party's vector.
        most_samples : a number that no party's sample count exceeds.
        """
        with self._sanitize_errors(f"training round {round}"):
            attempt = self.side.attempt_of(request)
            if attempt.round != round:
                got = f"a request for round {attempt.round} in round {round}"
                raise SecureSumError(f"party {self.name}", got, "the same round")
            vector = self.side.masked(request)
            if vector is not None:
                report = self._discreet(self._empty_report(round, parties))
                if self.releases.is_on:  # it may have been killed before it noted that
                    own = self._unpack(payload)
                    self.releases.add(round, parties.tolist(), digest(own))
                return report, self.masked_updates.wrap(vector, round)
            self.masked_updates.prepare(
                self.side, request, digest(payload), most_samples
            )
            trained = self.train(round, parties, payload)
            assert isinstance(trained, tuple)
            return self._discreet(trained[0]), *trained[1:]

    def _discreet(self, report: Any) -> Report:
        """A report that does not say how many samples there are, nor how many steps."""
        is_by_step = self.config.scheduler_every == "step"
        rate = None if is_by_step else report.learning_rate
        return replace(report, n_samples=self._counted_samples(), learning_rate=rate)

    def _counted_samples(self) -> np.ndarray:
        """The sample count as others may know it, (1,)."""
        n_train = int(self.local_data.n_train.sum())
        return np.array([count_samples(self.config, n_train)])

    def _check(self, attempt: Attempt) -> None:
        """See that an attempt is of this run, and its sum of what the config says."""
        who, run = f"party {self.name}", Path(self.plan.own_folder).name
        if run and attempt.run != run:
            raise SecureSumError(who, f"a sum of run {attempt.run}", f"run {run}")
        n_parties = len(attempt.roster)
        check_sum(self.config, attempt.parameters, n_parties, attempt.round)


class MaskedUpdates(UpdateBuilder):
    """Makes the update of a single party, masked, for the request that was prepared."""

    def prepare(
        self, side: PartySide, request: bytes, received: bytes, most_samples: int
    ) -> None:
        """Say what the next vector is masked for; received : the weights' digest."""
        self._next = side, request, received, most_samples

    def build(
        self,
        report: Report,
        stacks: TrainedStacks,
        weights: Weights,
        state: State | None,
    ) -> list[Update | None]:
        """The masked update, or None if what was trained may not be fused."""
        updates = list(self._updates(report, stacks))
        conceal(report, self.config)
        if not updates:
            return [None]  # it has refused to train
        (update,) = updates
        side, request, received, most_samples = self._next
        plan = VectorPlan(
            clip_norm_of(self.config), side.attempt_of(request).parameters
        )
        rejection = self._check(update, self.sent_schema, weights)
        if rejection and not (plan.has_noise and rejection.code == "non_finite"):
            report.refused[int(report.parties[0])] = rejection
            return [None]
        values = plan.encode(update.weights, weights)
        most = plan.sums.max_weight
        weight = scale_weight(min(update.n_samples, most_samples), most_samples, most)
        vector = side.mask(request, received, [values], weight)
        return [self.wrap(vector, report.round)]

    def wrap(self, vector: np.ndarray, round: int) -> Update:
        """A masked vector as it travels; it says nothing of samples."""
        return self.sign(Update({MASKED: vector}, 1), round, self.plan.parties.start)
