"""The aggregator: asks parties to train, fuses their updates, records every round."""

from fedray.aggregator.aggregator import Aggregator
from fedray.aggregator.disclosure import Disclosure
from fedray.aggregator.frozen_tensors import put_starts
from fedray.aggregator.host import AggregatorHost, LentAggregator
from fedray.aggregator.membership import (
    JoinReply,
    config_with,
    config_without,
    problems,
    stop_problems,
)
from fedray.aggregator.party_actors import LentParty, reason
from fedray.aggregator.startup import (
    AggregatorPlan,
    group_plan,
    start_named,
    start_party,
)

__all__ = [
    "Aggregator",
    "AggregatorHost",
    "AggregatorPlan",
    "Disclosure",
    "JoinReply",
    "LentAggregator",
    "LentParty",
    "config_with",
    "config_without",
    "group_plan",
    "problems",
    "put_starts",
    "reason",
    "start_named",
    "start_party",
    "stop_problems",
]
