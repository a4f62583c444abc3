"""Estimates what travels in a round."""

from collections import defaultdict
from collections.abc import Mapping

import ray

from fedray import fusion, policy
from fedray.config import FederationConfig
from fedray.fusion import scaffold
from fedray.models import Blueprint
from fedray.placement import ActorPool
from fedray.weights import encoding, size_of


def round_bytes(
    config: FederationConfig,
    blueprints: Mapping[str | None, Blueprint],
    pools: list[ActorPool],
) -> int | None:
    """Estimate the bytes sent in a round that fuses, except the first; None: none.

    In the first one the start weights travel too. Weights go to every node once; back
    comes one model from each actor, or from each node where the rule may combine
    there: never from the aggregator's own. A fraction of the parties is assumed to
    reach as many actors as it has parties.

    blueprints : of the global models, with schemas of what travels every round.
    """
    if None not in blueprints:  # each member goes to its own party, and back
        return sum(sum(_sizes(config, one)) for one in blueprints.values())
    blueprint = blueprints[None]
    rule = fusion.from_config(config, blueprint.shared_parameters)
    controls = scaffold.control_bytes(rule, blueprint.schema)
    down, up = (size + controls for size in _sizes(config, blueprint))
    own_node = ray.get_runtime_context().get_node_id()
    n_actors: dict[str, int] = defaultdict(int)
    for pool in pools:
        n_actors[pool.placement.node_id] += len(pool.actors)
    n_chosen = policy.count_chosen(config.num_parties or 0, config.party_fraction)
    n_updates = n_chosen
    if rule.associative:
        actors = n_actors.items()
        n_updates = sum(n if node == own_node else 1 for node, n in actors)
    n_nodes = min(len(n_actors), n_chosen)
    return down * n_nodes + up * min(n_updates, n_chosen) or None


def _sizes(config: FederationConfig, blueprint: Blueprint) -> tuple[int, int]:
    """Bytes of the weights as they are sent, and of an update."""
    schema, dtype = blueprint.schema, config.wire_dtype
    down, up = encoding.form(schema, dtype), encoding.update_form(schema, dtype)
    return size_of(down), size_of(up)
