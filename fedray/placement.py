"""Which node holds which party, and what an actor finds where it runs."""

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedray.errors import PlacementError
from fedray.messages import Here

Labels = Mapping[str, str]
RAYS_OWN = "ray.io/"  # labels that Ray gives by itself


@dataclass(frozen=True)
class Node:
    """One node of the cluster, as placement sees it."""

    id: str
    labels: dict[str, str]
    n_cpus: float
    n_gpus: float

    def carries(self, labels: Labels) -> bool:
        """Does this node have every one of these labels?"""
        return all(self.labels.get(key) == value for key, value in labels.items())


@dataclass(frozen=True)
class Seat:
    """Where a party sits, and its share of that node."""

    node: str
    labels: dict[str, str]
    n_cpus: float
    n_gpus: float

    def options(self) -> dict[str, Any]:
        """Ray actor options: this node, or if it is lost another with these labels.

        By labels alone Ray would pack parties onto any one of the nodes that have them.
        """
        return {
            "num_cpus": self.n_cpus,
            "num_gpus": self.n_gpus,
            "label_selector": self.labels,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(self.node, soft=True),
        }


def nodes() -> list[Node]:
    """Every living node: the driver's, then the largest. No id decides the order."""
    here = ray.get_runtime_context().get_node_id()
    living = [
        Node(
            node["NodeID"],
            node["Labels"],
            node["Resources"].get("CPU", 0),
            node["Resources"].get("GPU", 0),
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
            sorted(_own(node.labels).items()),
        ),
    )


def seat_all(
    wanted: dict[str, Labels],
    nodes: list[Node],
    party_cpus: float | None = None,
    spread: bool = False,
) -> dict[str, Seat]:
    """Give every party a node that carries its labels, evenly by cores.

    Parties without labels go to the first node, the driver's, where their data path
    was written down; to all nodes if `spread`. A pure function of config, labels and
    cores: never of free memory or timing.

    Raises
    ------
    PlacementError
        For the first party whose labels no node carries; says which there are.
    """
    chosen: dict[str, Node] = {}
    load: Counter[str] = Counter()
    for name, labels in wanted.items():
        near = nodes if labels or spread else nodes[:1]
        able = [node for node in near if node.carries(labels)]
        if not able:
            raise PlacementError(f"party {name}", _shown(labels), _existing(nodes))
        able = [node for node in able if node.n_cpus] or able
        best = min(able, key=lambda n: (load[n.id] + 1) / max(n.n_cpus, 1e-9))
        chosen[name] = best
        load[best.id] += 1
    seats = {}
    for name, node in chosen.items():
        cpus = party_cpus
        if cpus is None:
            cpus = _part(node.n_cpus, load[node.id])
        gpus = _gpus(node.n_gpus, load[node.id])
        seats[name] = Seat(node.id, dict(wanted[name]), cpus, gpus)
    return seats


def _part(amount: float, n_parties: int) -> float:
    return math.floor(min(1, amount / n_parties) * 10_000) / 10_000


def _gpus(n_gpus: float, n_parties: int) -> float:
    """One GPU, or an even part of one: Ray never gives parts of two."""
    if not n_gpus:
        return 0
    return math.floor(10_000 / math.ceil(n_parties / n_gpus)) / 10_000


def seats_within(
    timeout_s: float,
    wanted: dict[str, Labels],
    party_cpus: float | None = None,
    spread: bool = False,
) -> dict[str, Seat]:
    """`seat_all`, waiting up to `timeout_s` for nodes that are still joining."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            return seat_all(wanted, nodes(), party_cpus, spread)
        except PlacementError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def wait_until_up(
    actors: dict[str, ActorHandle], seats: dict[str, Seat], timeout_s: float
) -> None:
    """Wait until every actor answers.

    Raises
    ------
    PlacementError
        Naming the first that cannot start, or is not up in time, what it asked for
        and what there is.
    """
    waiting = {actor.__ray_ready__.remote(): name for name, actor in actors.items()}
    up, late = ray.wait(list(waiting), num_returns=len(waiting), timeout=timeout_s)
    for ref in up:
        try:
            ray.get(ref)
        except RayActorError as error:
            name = waiting[ref]
            wanted = f"an actor that starts on node {seats[name].node[:8]}"
            why = " ".join(str(error).split())[:500]
            found = f"{why} Is the same fedray installed there as here?"
            raise PlacementError(f"party {name}", wanted, found) from None
    if late:
        name = waiting[late[0]]
        seat = seats[name]
        wanted = (
            f"{seat.n_cpus:g} CPUs, {seat.n_gpus:g} GPUs and {_shown(seat.labels)} "
            f"within placement_timeout_s={timeout_s:g} ({len(late)} parties waiting)"
        )
        free = ", ".join(f"{k} {v:g}" for k, v in ray.available_resources().items())
        found = f"{_existing(nodes())}; free now: {free}"
        raise PlacementError(f"party {name}", wanted, found)


def on_node(node: str, soft: bool = False) -> dict[str, Any]:
    """Options of an actor or task that belongs to one node and holds no core."""
    return {
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=soft),
    }


def here() -> Here:
    """Node and device of the actor that calls; a GPU only where Ray assigned one."""
    device = "cuda" if ray.get_gpu_ids() else "cpu"
    return Here(ray.get_runtime_context().get_node_id(), device)


def _own(labels: Labels) -> dict[str, str]:
    return {k: v for k, v in labels.items() if not k.startswith(RAYS_OWN)}


def _shown(labels: Labels) -> str:
    return ", ".join(f"{k}: {v}" for k, v in sorted(labels.items())) or "no label"


def _existing(nodes: list[Node]) -> str:
    shown = []
    for node in nodes:
        shown.append(f"{node.id[:8]} ({_shown(_own(node.labels))})")
    return f"{len(nodes)} nodes: " + "; ".join(shown)
