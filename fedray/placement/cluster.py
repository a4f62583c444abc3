"""Nodes of the Ray cluster: their labels, CPUs, GPUs and memory."""

from collections.abc import Mapping
from dataclasses import dataclass

import ray

from fedray.errors import format_count

Labels = Mapping[str, str]
RAY_PREFIX = "ray.io/"  # of labels that Ray sets by itself


@dataclass(frozen=True)
class Node:
    """One alive node of the cluster."""

    id: str
    labels: dict[str, str]
    n_cpus: float
    n_gpus: float
    memory_bytes: float = 0  # that Ray counts as available to actors
    host: str = ""

    def has_labels(self, labels: Labels) -> bool:
        """Whether the node has every one of these labels."""
        return all(self.labels.get(key) == value for key, value in labels.items())


def nodes() -> list[Node]:
    """List alive nodes: the driver's, then the largest; ids do not affect the order."""
    driver_node = ray.get_runtime_context().get_node_id()
    alive = [
        Node(
            node["NodeID"],
            node["Labels"],
            node["Resources"].get("CPU", 0),
            node["Resources"].get("GPU", 0),
            node["Resources"].get("memory", 0),
            node.get("NodeManagerHostname", ""),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(
        alive,
        key=lambda node: (
            node.id != driver_node,
            -node.n_cpus,
            -node.n_gpus,
            sorted(user_labels(node.labels).items()),
        ),
    )


def user_labels(labels: Labels) -> dict[str, str]:
    """Labels that the cluster's owner set, without those of Ray."""
    return {k: v for k, v in labels.items() if not k.startswith(RAY_PREFIX)}


def describe_labels(labels: Labels) -> str:
    """Labels as part of an error message."""
    return ", ".join(f"{k}: {v}" for k, v in sorted(labels.items())) or "no label"


def describe_nodes(nodes: list[Node]) -> str:
    """Nodes and their labels as part of an error message."""
    each = [f"{n.id[:8]} ({describe_labels(user_labels(n.labels))})" for n in nodes]
    return f"{format_count(len(nodes), 'node')}: " + "; ".join(each)
