"""Which node holds which parties, and what an actor finds where it runs."""

from fedray.placement.actors import here, on_node, wait_until_up
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
    "Node",
    "Seat",
    "Site",
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
    "wait_until_up",
]
