"""Placement of actors on cluster nodes: by node labels, CPUs and GPUs."""

from fedray.placement.actors import (
    AGGREGATOR,
    StoredObject,
    aggregator_name,
    locate_actor,
    node_affinity,
    party_actor,
    run_label,
    send_training_progress,
    wait_until_ready,
)
from fedray.placement.cluster import (
    Node,
    describe_labels,
    describe_nodes,
    nodes,
    user_labels,
)
from fedray.placement.memory_deaths import (
    MAX_DEATHS,
    MemoryDeaths,
    count_kernel_kills,
    describe_deaths,
    died_of_memory,
    ended_processes,
)
from fedray.placement.scheduling import (
    ActorPool,
    Placement,
    place_federation,
    place_new_party,
    place_parties,
    place_partition,
    wait_for_placement,
)

__all__ = [
    "AGGREGATOR",
    "MAX_DEATHS",
    "ActorPool",
    "MemoryDeaths",
    "Node",
    "Placement",
    "StoredObject",
    "aggregator_name",
    "count_kernel_kills",
    "describe_deaths",
    "describe_labels",
    "describe_nodes",
    "died_of_memory",
    "ended_processes",
    "locate_actor",
    "node_affinity",
    "nodes",
    "party_actor",
    "place_federation",
    "place_new_party",
    "place_parties",
    "place_partition",
    "run_label",
    "send_training_progress",
    "user_labels",
    "wait_for_placement",
    "wait_until_ready",
]
