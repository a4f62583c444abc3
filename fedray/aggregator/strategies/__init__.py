"""Round strategies: when to fuse, how many reports are wanted, what replaces weights.

To add one: a file here with a class that does what `RoundStrategy` says, its name in
STRATEGIES, and the config key that asks for it in `strategy_name`.
"""

from fedray.aggregator.dispatch import Dispatch
from fedray.aggregator.round import RoundStrategy
from fedray.aggregator.strategies.adaptive import AdaptiveFusion
from fedray.aggregator.strategies.adopt_best import AdoptBest
from fedray.aggregator.strategies.always import AlwaysFuse
from fedray.aggregator.strategies.buffered import BufferedFusion
from fedray.aggregator.strategies.secure_aggregation import SecureAggregation
from fedray.config import FederationConfig

STRATEGIES: dict[str, type[AlwaysFuse]] = {
    "always": AlwaysFuse,
    "adaptive": AdaptiveFusion,
    "best_model": AdoptBest,
    "buffered": BufferedFusion,
    "secure_aggregation": SecureAggregation,
}


def strategy_name(config: FederationConfig) -> str:
    """Which strategy a config asks for."""
    if config.secure_aggregation:
        return "secure_aggregation"
    is_best = config.fusion_algorithm == "best_model"
    return "best_model" if is_best else config.aggregation


def make_strategy(config: FederationConfig, dispatch: Dispatch) -> RoundStrategy:
    """A strategy for one global model, for as long as that lives."""
    return STRATEGIES[strategy_name(config)](config, dispatch)
