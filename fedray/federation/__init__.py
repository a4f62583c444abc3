"""The door: config in, actors placed, progress followed, result out."""

from fedray.federation.actors import Watch, connected
from fedray.federation.door import Result, read_config, run
from fedray.federation.query import queries, query

__all__ = [
    "Result",
    "Watch",
    "connected",
    "queries",
    "query",
    "read_config",
    "run",
]
