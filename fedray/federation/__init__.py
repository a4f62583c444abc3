"""Running a federation from Python: run, query, join, leave."""

from fedray.federation.actors import (
    StopAfterRound,
    Watch,
    lost_cluster,
    run_actors,
)
from fedray.federation.connection import cluster_connection, shutdown
from fedray.federation.membership import join, leave
from fedray.federation.memory_estimate import ModelBytes, party_bytes, run_bytes
from fedray.federation.query import queries, query
from fedray.federation.replay import Replay, replay
from fedray.federation.run import (
    Result,
    RunOptions,
    check_settings,
    folder_of_run,
    read_config,
    read_settings,
    run,
    run_by,
)
from fedray.federation.shared_actors import SharedActors, can_share
from fedray.federation.survey import load_blueprint

__all__ = [
    "ModelBytes",
    "Replay",
    "Result",
    "RunOptions",
    "SharedActors",
    "StopAfterRound",
    "Watch",
    "can_share",
    "check_settings",
    "cluster_connection",
    "folder_of_run",
    "join",
    "leave",
    "load_blueprint",
    "lost_cluster",
    "party_bytes",
    "queries",
    "query",
    "read_config",
    "read_settings",
    "replay",
    "run",
    "run_actors",
    "run_by",
    "run_bytes",
    "shutdown",
]
