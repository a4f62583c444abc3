"""A party's own record of the noised sums that it was part of, over all runs."""

import dataclasses

from fedray.party.loading import GroupPlan
from fedray.party.training_context import group_of, run_of, source_of
from fedray.privacy.central import settings_of
from fedray.privacy.central_epsilon import calibrate
from fedray.privacy.central_records import CentralRecords, CentralRun, ranges_of
from fedray.privacy.party_book import CENTRAL, PartyBook


class ReleaseRecords:
    """Notes in the books of an actor's parties which noised sums they are part of.

    The noise is the aggregator's, or that of all parties together: what is noted of it
    is what the run's config claims.
    """

    def __init__(self, plan: GroupPlan):
        self.plan, self.config = plan, plan.config
        has_noise = plan.config.noise_for_parties is not None
        self.is_on = has_noise and plan.trains and bool(run_of(plan))
        self._book: PartyBook | None = None

    def check(self) -> None:
        """See that the books can be written.

        Raises
        ------
        LedgerError
            If they cannot, or are lost or altered.
        """
        if self.is_on:
            with self._open().locked():
                pass

    def add(self, round: int, places: list[int], weights: bytes) -> None:
        """Note a round that these parties have trained; on disk when this returns.

        places : in the config, ascending.
        weights : digest of those that the round began with.
        """
        if not self.is_on or not places:
            return
        book, at = self._open(), (round, weights.hex()[:16])
        with book.locked():
            run = self._run(book.central, places[0])
            parts = places if run.cut else [0]
            if book.central.has(run, at, parts):
                return  # trained again: the same update
            line = {"round": round, "weights": at[1], "parts": ranges_of(parts)}
            book.add(CENTRAL, **run._asdict(), **line)

    def _open(self) -> PartyBook:
        if self._book is None:
            self._book = PartyBook(self.config.require_party_folder())
        return self._book

    def _run(self, records: CentralRecords, place: int) -> CentralRun:
        """What the config claims of the run's releases; as in its first round."""
        config, privacy = self.config, self.config.privacy
        assert privacy is not None
        source, cut = source_of(self.plan, place)
        source = source or config.party_name(place)
        run, group = run_of(self.plan), group_of(self.plan, place)
        if earlier := records.find(run, group, source, cut):
            return earlier
        settings = settings_of(config, 1, 0, privacy.noise_multiplier or 1.0)
        delta = privacy.delta or 0.0
        if privacy.noise_multiplier is None and privacy.epsilon is not None:
            z = calibrate(settings, config.rounds, privacy.epsilon, delta)
            settings = dataclasses.replace(settings, noise_multiplier=z)
        return CentralRun(
            run, group, source, cut, settings.mechanism, settings.sampling,
            settings.noise_multiplier, settings.cycle, settings.band,
            settings.participations, privacy.epsilon, delta, config.secure_aggregation,
        )  # fmt: skip
