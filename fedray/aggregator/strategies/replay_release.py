"""ReplayRelease: a round that was released before a crash asks nobody again."""

from fedray.aggregator.round import Fused, RoundResult, RoundStep
from fedray.messages import RoundReport, Update


class ReplayRelease:
    """Steps on from the release of a round, with the reporters that it had then."""

    def restore(self, last: RoundReport | None) -> None:
        """Nothing to remember."""

    def n_wanted(self, n_present: int, n_chosen: int) -> int:
        """No reports."""
        return 0

    def dispatch(self, step: RoundStep) -> None:
        """Take up the round's record; nobody is asked."""
        if step.release is None:
            raise ValueError(f"round {step.round} has no release")
        step.record.restore(step.release.record)

    def collect(self, step: RoundStep, until: float) -> RoundResult:
        """The release, as the sum that the global model steps on from."""
        if step.release is None:
            raise ValueError(f"round {step.round} has no release")
        return Fused(Update(step.release.total, 0, step.record.n_reported))
