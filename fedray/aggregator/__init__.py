"""The aggregator: asks parties to train, fuses what comes back, keeps the record."""

from fedray.aggregator.conductor import Aggregator, AggregatorPlan

__all__ = ["Aggregator", "AggregatorPlan"]
