"""The aggregator: asks parties to train, fuses what comes back, keeps the record."""

from fedray.aggregator.conductor import Aggregator, party_actor
from fedray.aggregator.crew import reason
from fedray.aggregator.plan import AggregatorPlan

__all__ = ["Aggregator", "AggregatorPlan", "party_actor", "reason"]
