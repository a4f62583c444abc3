"""How a round comes to its one update: what is asked of whom, and what is decided."""

import math
import time

from fedray import policy
from fedray.aggregator.collector import Collection
from fedray.aggregator.global_model import Lineage
from fedray.config import FederationConfig
from fedray.messages import Update


class Always:
    """Everyone trains and sends; what came is fused."""

    def __init__(
        self, lineage: Lineage, collection: Collection, config: FederationConfig
    ):
        self.lineage, self.collection, self.config = lineage, collection, config
        self.record = collection.record
        self.notes: list[str] = []

    def ask(self) -> None:
        """Ask the chosen parties; nothing is waited for."""
        self.collection.ask(self.lineage.broadcast, self.lineage.state)

    def update(self, until: float) -> tuple[Update | None, str]:
        """Fold what comes until then (monotonic clock); or say why nothing could be."""
        return self.collection.combined(self.lineage.state, until)


class Adaptive(Always):
    """Everyone trains on by itself, and sends only when the parties disagree.

    The same parties go on together from fusion to fusion. One that is late or lost
    comes back with the rounds that it missed, trained again from the same seeds.
    """

    def ask(self) -> None:
        """Ask for reports: no weights leave a party for them."""
        since = self.lineage.done + 1
        self.collection.ask(self.lineage.broadcast, self.lineage.state, since)

    def update(self, until: float) -> tuple[Update | None, str]:
        """Decide from the reports; fold the updates only if they are to be fused."""
        record, lineage, since = self.record, self.lineage, self.lineage.done + 1
        drifts = [report.drifted for report in self.collection.reports(until)]
        estimate, common = policy.disagreement(drifts)
        n_needed = policy.needed(self.config.quorum, len(record.chosen))
        if record.n_reported < n_needed or math.isnan(estimate):
            return None, "no update could be fused: none is finite"
        if lineage.growth is None:
            lineage.growth = policy.growth(self.config, estimate, common)
        if record.round == since:
            lineage.one = estimate, common
        words = lineage.growth, lineage.one, common
        record.estimate, record.growth = estimate, lineage.growth
        record.threshold = policy.threshold(self.config, *words)
        words = since, record.round, estimate, record.threshold
        record.aggregated = policy.must_fuse(self.config, *words)
        if not record.aggregated:
            return None, ""
        self.collection.ask_updates(since)
        return super().update(time.monotonic() + self.config.round_timeout_s)
