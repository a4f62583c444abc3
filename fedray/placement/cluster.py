"""The cluster's nodes, as placement sees them."""

from collections.abc import Mapping
from dataclasses import dataclass

import ray

Labels = Mapping[str, str]
RAYS_OWN = "ray.io/"  # labels that Ray gives by itself


@dataclass(frozen=True)
class Node:
    """One node of the cluster, as placement sees it."""

    id: str
    labels: dict[str, str]
    n_cpus: float
    n_gpus: float
    memory: float = 0  # bytes that Ray counts there
    store: float = 0  # bytes of its object store
    host: str = ""

    def carries(self, labels: Labels) -> bool:
        """Does this node have every one of these labels?"""
        return all(self.labels.get(key) == value for key, value in labels.items())


def nodes() -> list[Node]:
    """Every living node: the driver's, then the largest. No id decides the order."""
    here = ray.get_runtime_context().get_node_id()
    living = [
        Node(
            node["NodeID"],
            node["Labels"],
            node["Resources"].get("CPU", 0),
            node["Resources"].get("GPU", 0),
            node["Resources"].get("memory", 0),
            node["Resources"].get("object_store_memory", 0),
            node.get("NodeManagerHostname", ""),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(
        living,
        key=lambda node: (
            node.id != here,
            -node.n_cpus,
            -node.n_gpus,
            sorted(own(node.labels).items()),
        ),
    )


def own(labels: Labels) -> dict[str, str]:
    """Labels that somebody gave, without Ray's."""
    return {k: v for k, v in labels.items() if not k.startswith(RAYS_OWN)}


def shown(labels: Labels) -> str:
    """Labels as a line of an error."""
    return ", ".join(f"{k}: {v}" for k, v in sorted(labels.items())) or "no label"


def existing(nodes: list[Node]) -> str:
    """Nodes and their labels as a line of an error."""
    each = [f"{node.id[:8]} ({shown(own(node.labels))})" for node in nodes]
    return f"{len(nodes)} nodes: " + "; ".join(each)
