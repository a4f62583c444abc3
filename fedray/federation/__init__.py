"""The door: config in, actors placed, progress followed, result out."""

from fedray.federation.actors import Watch, connected
from fedray.federation.door import Result, read_config, run
from fedray.federation.query import queries, query
from fedray.federation.survey import blueprint_of
from fedray.federation.turnover import join, leave

__all__ = [
    "Result",
    "Watch",
    "blueprint_of",
    "connected",
    "join",
    "leave",
    "queries",
    "query",
    "read_config",
    "run",
]
