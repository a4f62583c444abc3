"""The aggregator: asks parties to train, fuses what comes back, keeps the record."""

from fedray.aggregator.conductor import Aggregator, AggregatorPlan, party_actor
from fedray.aggregator.crew import reason

__all__ = ["Aggregator", "AggregatorPlan", "party_actor", "reason"]
