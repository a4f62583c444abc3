"""The edge's own process: trains for a service that it calls, and is never called.

Imports no Ray. What it may be asked is limited by its owner's policy, and all that
leaves it is listed in its state folder.
"""

from fedray.edge.agent import Agent, EdgeOptions
from fedray.edge.dry_run import describe_departures
from fedray.edge.errors import EdgeEnded
from fedray.edge.http_client import check_urls
from fedray.edge.policy import EdgePolicy, read_policy
from fedray.edge.state import StateFolder
from fedray.edge.work import PartyOptions

__all__ = [
    "Agent",
    "EdgeEnded",
    "EdgeOptions",
    "EdgePolicy",
    "PartyOptions",
    "StateFolder",
    "check_urls",
    "describe_departures",
    "read_policy",
]
