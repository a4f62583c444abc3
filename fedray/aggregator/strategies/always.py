"""AlwaysFuse: synchronous rounds, in which every update that arrives is fused."""

from fedray import policy
from fedray.aggregator.collector import UpdateCollector
from fedray.aggregator.dispatch import Dispatch
from fedray.aggregator.round import Failed, Fused, LateUpdate, RoundResult, RoundStep
from fedray.config import FederationConfig
from fedray.errors import TooFewUpdates
from fedray.fusion import RoundContext
from fedray.messages import RoundReport


class AlwaysFuse:
    """Everyone trains and sends; what came is fused."""

    def __init__(self, config: FederationConfig, dispatch: Dispatch):
        self.config, self.calls = config, dispatch
        self._late: dict[str, LateUpdate] = {}  # by actor: of earlier rounds

    def restore(self, last: RoundReport | None) -> None:
        """Nothing to remember."""

    def n_wanted(self, n_present: int, n_chosen: int) -> int:
        """All of the chosen; where more were asked than are wanted, the first ones."""
        if self.config.over_select > 1:
            return policy.count_chosen(n_present, self.config.party_fraction)
        return n_chosen

    def dispatch(self, step: RoundStep) -> None:
        """Ask for reports and updates; late calls that are due are waited for too."""
        updates = self.calls.take_due_updates(step)
        self._late = {late.item.actor: late for late in updates}
        self.calls.ask(step, step.items, "train", are_sent=True)

    def collect(self, step: RoundStep, until: float) -> RoundResult:
        """Fold what comes until then (monotonic clock)."""
        items = [*step.items, *(late.item for late in self._late.values())]
        return fuse(UpdateCollector(step, self.calls, items, self._late), until)


def collect_reports(
    step: RoundStep, dispatch: Dispatch, until: float
) -> UpdateCollector | Failed:
    """Receive reports without updates, on which a strategy decides; or too few came."""
    collector = UpdateCollector(step, dispatch, step.items)
    collector.collect_reports(until)
    return Failed("too few parties reported") if step.n_missing else collector


def fuse(collector: UpdateCollector, until: float) -> Fused | Failed:
    """All updates of a round in one, as its fusion rule combines them."""
    step, model = collector.step, collector.step.model
    context = RoundContext(step.round, model.last_broadcast.weights, model.state)
    accumulator = model.rule.accumulator(context)
    collector.collect(accumulator, until)
    try:
        return Fused(accumulator.result())
    except TooFewUpdates as error:
        if (empty := step.empty_sum()) is not None:
            return Fused(empty)
        return Failed(f"no update could be fused: {error}")
