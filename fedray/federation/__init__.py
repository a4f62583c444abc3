"""The door: config in, actors placed, progress followed, result out."""

from fedray.federation.actors import Watch, connected
from fedray.federation.membership import join, leave
from fedray.federation.query import queries, query
from fedray.federation.run import Result, read_config, run
from fedray.federation.vocabulary import blueprint_of

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
