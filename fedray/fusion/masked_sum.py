"""Sums of masked vectors, which wrap around: secure aggregation adds nothing else."""

from fedray.fusion.base import Accumulator, FusionRule, RoundContext, Sum


class MaskedSum(FusionRule):
    """Sum of the parties' masked vectors, modulo 2 to the bits of their type.

    Exact in any order, so that parties are combined where they were masked.
    """

    name = "secure sum"
    needs_rounds = True

    def accumulator(self, context: RoundContext) -> Accumulator:
        """The sum, in the memory of one vector; unsigned integers wrap around."""
        return Sum(self.name)
