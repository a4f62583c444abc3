"""AdaptiveFusion: parties train on by themselves, and fuse only when they disagree."""

import math
import time
from dataclasses import replace

from fedray import policy
from fedray.aggregator.collector import UpdateCollector
from fedray.aggregator.round import (
    Disagreement,
    Failed,
    NotFused,
    RoundResult,
    RoundStep,
)
from fedray.aggregator.strategies.always import AlwaysFuse, collect_reports, fuse
from fedray.messages import RoundReport


class AdaptiveFusion(AlwaysFuse):
    """Everyone trains on by itself, and sends only when the parties disagree.

    The same parties go on together from fusion to fusion. One that is late or lost
    comes back with the rounds that it missed, trained again from the same seeds.
    """

    _growth: float | None = None  # of the disagreement of one round
    _first = (0.0, 0.0)  # disagreement of the first round since the last fusion

    def restore(self, last: RoundReport | None) -> None:
        """Go on with the growth that was measured in round 1."""
        if last is not None:
            self._growth = last.growth

    def dispatch(self, step: RoundStep) -> None:
        """Ask for reports: no weights leave a party for them."""
        self.calls.ask(step, step.items, "train", are_sent=False, since=step.since)

    def collect(self, step: RoundStep, until: float) -> RoundResult:
        """Decide from the reports; fold updates only if they are to be fused."""
        collector = collect_reports(step, self.calls, until)
        if isinstance(collector, Failed):
            return collector
        reported = collector.reported
        drifts = [r.drifted for r in reported.values() if r.drifted is not None]
        estimate, common = policy.disagreement(drifts)
        if math.isnan(estimate):
            return Failed("no update could be fused: none is finite")
        disagreement = self._judge(step, estimate, common)
        if not policy.must_fuse(
            self.config, step.since, step.round, estimate, disagreement.threshold
        ):
            return NotFused(disagreement)
        self.calls.ask(step, reported, "update", are_sent=True, since=step.since)
        collector = UpdateCollector(step, self.calls, reported, can_close_early=False)
        result = fuse(collector, time.monotonic() + self.config.round_timeout_s)
        if isinstance(result, Failed):
            return result
        return replace(result, disagreement=disagreement)

    def _judge(self, step: RoundStep, estimate: float, common: float) -> Disagreement:
        """The parties' disagreement, and what it may be until they fuse.

        common : how far they went together; see `policy.disagreement`.
        """
        if self._growth is None:
            self._growth = policy.growth(self.config, estimate, common)
        if step.round == step.since:
            self._first = estimate, common
        limit = policy.threshold(self.config, self._growth, self._first, common)
        return Disagreement(estimate, limit, self._growth)
