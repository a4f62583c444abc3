"""How a round comes to its one update: what is asked of whom, and what is decided."""

from fedray.aggregator.collect import Collection
from fedray.aggregator.lineage import Lineage
from fedray.errors import TooFewUpdates
from fedray.messages import Update


class Always:
    """Everyone trains and sends; what came is fused."""

    def __init__(self, lineage: Lineage, collection: Collection):
        self.lineage, self.collection = lineage, collection
        self.record = collection.record

    def ask(self) -> None:
        """Ask the chosen parties; nothing is waited for."""
        self.collection.ask(self.lineage.broadcast, self.lineage.state)

    def update(self, until: float) -> Update | None:
        """Fold what comes until then (monotonic clock); None if nothing could be."""
        arriving = self.collection.arriving(self.lineage.state, until)
        try:
            return self.lineage.rule.combine(arriving)
        except TooFewUpdates:
            return None
