"""How a round comes to its one update: what is asked of whom, and what is decided."""

from fedray.aggregator.collect import Collection
from fedray.aggregator.lineage import Lineage
from fedray.messages import Update


class Always:
    """Everyone trains and sends; what came is fused."""

    def __init__(self, lineage: Lineage, collection: Collection):
        self.lineage, self.collection = lineage, collection
        self.record = collection.record

    def ask(self) -> None:
        """Ask the chosen parties; nothing is waited for."""
        self.collection.ask(self.lineage.broadcast, self.lineage.state)

    def update(self, until: float) -> tuple[Update | None, str]:
        """Fold what comes until then (monotonic clock); or say why nothing could be."""
        return self.collection.combined(self.lineage.state, until)
