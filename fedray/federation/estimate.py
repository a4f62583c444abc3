"""What a run would need and move, estimated from what a check found."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import ray

from fedray import fusion
from fedray.config import FederationConfig
from fedray.messages import Found
from fedray.models import Blueprint
from fedray.placement import Node, Site
from fedray.weights import Weights, encoding, size_of

COPIES = 4  # of the model in training: gradients, two of the optimizer's, the update


def memory_needed(
    node: Node, sites: list[Site], found: Mapping[str, Found], model_bytes: int
) -> int:
    """Bytes of all actors of a node while they train; measured, but for the copies."""
    needed = 0
    for site in sites:
        one = found.get(site.actors[0])
        if site.seat.node == node.id and one:
            needed += len(site.actors) * (one.peak_bytes + COPIES * model_bytes)
    return needed


def round_bytes(
    config: FederationConfig, blueprint: Blueprint, sites: list[Site]
) -> int:
    """Bytes of a round that fuses, the first aside: its start weights travel too.

    Weights go to every node once; back comes one model from each actor, or from each
    node where the rule may combine there: the aggregator's own node never does. A
    fraction of the parties is taken to reach as many actors as it has parties.
    """
    size = size_of(encoding.form(blueprint.schema, config.wire_dtype))
    own = ray.get_runtime_context().get_node_id()
    actors: dict[str, int] = defaultdict(int)
    for site in sites:
        actors[site.seat.node] += len(site.actors)
    n_chosen = max(1, int(config.party_fraction * config.num_parties + 0.5))
    n_nodes = min(len(actors), n_chosen)
    if not fusion.configured(config, blueprint.parameters).associative:
        return size * (n_nodes + n_chosen)
    n_updates = sum(n if node == own else 1 for node, n in actors.items())
    return size * (n_nodes + min(n_updates, n_chosen))


def sizes(
    config: FederationConfig, blueprints: list[Blueprint], weights: list[Weights]
) -> dict[str, Any]:
    """What a model is, or all of an ensemble together."""
    sizes = [
        own[name].size
        for blueprint, own in zip(blueprints, weights, strict=True)
        for name in blueprint.parameters
    ]
    schemas, dtype = [blueprint.schema for blueprint in blueprints], config.wire_dtype
    return {
        "model_type": ", ".join(sorted({one.model_type for one in blueprints})),
        "n_parameters": int(sum(sizes)),
        "bytes": sum(map(size_of, schemas)),
        "bytes_sent": sum(size_of(encoding.form(schema, dtype)) for schema in schemas),
    }
