"""No fusion: each party continues from its own model (ensembles)."""

from fedray.fusion.accumulators import SingleUpdate
from fedray.fusion.base import Accumulator, FusionRule, RoundContext


class NoFusion(FusionRule):
    """A round of one party: what it trained is what it continues from."""

    name = "ensemble"
    associative = False  # there is nothing to combine with

    def accumulator(self, context: RoundContext) -> Accumulator:
        """The party's own update, the only one."""
        return SingleUpdate(self.name)
