"""Which node holds which parties, and what an actor finds where it runs."""

from fedray.placement.actors import (
    AGGREGATOR,
    aggregator_of,
    here,
    on_node,
    tell,
    wait_until_up,
)
from fedray.placement.seats import (
    Node,
    Seat,
    Site,
    existing,
    nodes,
    own,
    seat_all,
    share_out,
    shown,
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
