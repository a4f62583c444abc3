"""Running a federation from Python: run, query, join, leave."""

from fedray.federation.actors import Watch
from fedray.federation.connection import cluster_connection, shutdown
from fedray.federation.membership import join, leave
from fedray.federation.memory_estimate import ModelBytes, party_bytes, run_bytes
from fedray.federation.query import queries, query
from fedray.federation.run import Result, folder_of_run, read_config, run
from fedray.federation.survey import load_blueprint

__all__ = [
    "ModelBytes",
    "Result",
    "Watch",
    "cluster_connection",
    "folder_of_run",
    "join",
    "leave",
    "load_blueprint",
    "party_bytes",
    "queries",
    "query",
    "read_config",
    "run",
    "run_bytes",
    "shutdown",
]
