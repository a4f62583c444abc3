"""The aggregator: asks parties to train, fuses what comes back, keeps the record."""

from fedray.aggregator.conductor import Aggregator, AggregatorPlan, party_actor

__all__ = ["Aggregator", "AggregatorPlan", "party_actor"]
