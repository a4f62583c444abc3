"""Which node holds which parties, and what an actor finds where it runs."""

from fedray.placement.actors import (
    AGGREGATOR,
    aggregator_of,
    here,
    on_node,
    tell,
    wait_until_up,
)
from fedray.placement.cluster import Node, existing, nodes, own, shown
from fedray.placement.scheduling import (
    Seat,
    Site,
    newcomer,
    seat_all,
    share_out,
    sites,
    sites_within,
)

__all__ = [
    "AGGREGATOR",
    "Node",
    "Seat",
    "Site",
    "aggregator_of",
    "existing",
    "here",
    "newcomer",
    "nodes",
    "on_node",
    "own",
    "seat_all",
    "share_out",
    "shown",
    "sites",
    "sites_within",
    "tell",
    "wait_until_up",
]
