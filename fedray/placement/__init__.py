"""Which node holds which parties, and what an actor finds where it runs."""

from fedray.placement.actors import here, on_node, wait_until_up
from fedray.placement.seats import (
    Node,
    Seat,
    Site,
    nodes,
    seat_all,
    share_out,
    sites,
    sites_within,
)

__all__ = [
    "Node",
    "Seat",
    "Site",
    "here",
    "nodes",
    "on_node",
    "seat_all",
    "share_out",
    "sites",
    "sites_within",
    "wait_until_up",
]
