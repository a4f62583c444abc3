"""Scheduling of parties onto nodes: which node, how many actors, what share of CPU/GPU.

Pure functions of config, node labels and node sizes, but for `wait_for_placement`.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedray.config import FederationConfig
from fedray.config.edges import MAX_EDGES, POPULATION, EdgesSpec
from fedray.errors import PlacementError
from fedray.placement.cluster import (
    Labels,
    Node,
    describe_labels,
    describe_nodes,
    nodes,
)

# told what is waited for, for how long so far, and how long at most
Poll = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Placement:
    """The node of an actor and the resources that it reserves there."""

    node_id: str
    labels: dict[str, str]
    n_cpus: float
    n_gpus: float

    def options(self) -> dict[str, Any]:
        """Ray actor options: this node, or if it is lost another with these labels.

        By labels alone Ray would pack parties onto any one of the nodes that have them.
        """
        affinity = NodeAffinitySchedulingStrategy(self.node_id, soft=True)
        return {
            "num_cpus": self.n_cpus,
            "num_gpus": self.n_gpus,
            "label_selector": self.labels,
            "scheduling_strategy": affinity,
        }


@dataclass(frozen=True)
class ActorPool:
    """Actors on one node, and the parties that any of them can train.

    A party that the config lists has a pool of its own, with one actor; parties that
    are cut from one data set (`partition`) may share a pool.

    kind : "edge": one outside the cluster, and one actor stands for all of these;
        "edges": a population of them; empty: parties within the cluster.
    """

    parties: range  # places in the config
    actors: tuple[str, ...]  # names
    placement: Placement  # of each actor
    kind: str = ""


def place_parties(
    wanted: Mapping[str, Labels],
    nodes: list[Node],
    party_cpus: float | None = None,
    occupied: Iterable[str] = (),
) -> dict[str, Placement]:
    """Assign each party to a node that has its labels, in proportion to CPUs.

    Parties without labels go to the first node, the driver's, where their data path
    was written down. The result never depends on free memory or timing.

    Parameters
    ----------
    wanted : mapping of str to Labels
        Labels that each party asks for, by party name.
    nodes : list of Node
        As `fedray.placement.nodes` sorts them.
    party_cpus : float, optional
        CPUs that each party reserves; None: an even share of its node.
    occupied : iterable of str
        The node id of each party that is already placed.

    Raises
    ------
    PlacementError
        For the first party whose labels no node has; lists the nodes and their labels.
    """
    chosen: dict[str, Node] = {}
    load = Counter(occupied)
    for name, labels in wanted.items():
        near = nodes if labels else nodes[:1]
        able = [node for node in near if node.has_labels(labels)]
        if not able:
            needed, available = describe_labels(labels), describe_nodes(nodes)
            raise PlacementError(f"party {name}", needed, available)
        able = [node for node in able if node.n_cpus] or able
        best = min(able, key=lambda n: (load[n.id] + 1) / max(n.n_cpus, 1e-9))
        chosen[name] = best
        load[best.id] += 1
    return {
        name: _place(node, load[node.id], wanted[name], party_cpus)
        for name, node in chosen.items()
    }


def place_partition(config: FederationConfig, nodes: list[Node]) -> list[ActorPool]:
    """Assign the parties of a partition to nodes by CPUs, the first ones to the first.

    While a node has a CPU for each of its parties, every party has an actor of its own.
    Past that they share actors: `parties_per_actor` parties each if that is set, else
    one actor per CPU, or per GPU on a node with GPUs.
    """
    able = [node for node in nodes if node.n_cpus] or nodes[:1]
    cpus = [node.n_cpus or 1 for node in able]
    pools: list[ActorPool] = []
    start = 0
    n_parties = config.num_parties or 0
    for i, node in enumerate(able):
        end = n_parties * sum(cpus[: i + 1]) / sum(cpus)
        parties = range(start, math.ceil(round(end, 6)))
        start = parties.stop
        if parties:
            pools += _pools_on_node(parties, node, config)
    return pools


def _pools_on_node(
    parties: range, node: Node, config: FederationConfig
) -> list[ActorPool]:
    n_actors = min(len(parties), _max_actors(node, config.party_cpus))
    if config.parties_per_actor is not None:
        n_actors = math.ceil(len(parties) / config.parties_per_actor)
    placement = _place(node, n_actors, {}, config.party_cpus)
    if n_actors == len(parties):
        return [
            ActorPool(range(place, place + 1), (config.party_name(place),), placement)
            for place in parties
        ]
    span = f"{config.party_name(parties.start)}-{parties.stop - 1}"
    actors = tuple(f"{span}.{i + 1}" for i in range(n_actors))
    return [ActorPool(parties, actors, placement)]


def _max_actors(node: Node, party_cpus: float | None) -> int:
    """How many actors the node has resources for, at least one."""
    if node.n_gpus >= 1:
        return int(node.n_gpus)
    return max(1, int(node.n_cpus / (party_cpus or 1)))


def _place(
    node: Node, n_actors: int, labels: Labels, party_cpus: float | None
) -> Placement:
    """Placement of each of `n_actors` that share a node evenly."""
    cpus = _cpu_share(node.n_cpus, n_actors) if party_cpus is None else party_cpus
    return Placement(node.id, dict(labels), cpus, _gpu_share(node.n_gpus, n_actors))


def _cpu_share(n_cpus: float, n_actors: int) -> float:
    """An even share of the CPUs, at most one; rounded down to Ray's resolution."""
    return math.floor(min(1, n_cpus / n_actors) * 10_000) / 10_000


def _gpu_share(n_gpus: float, n_actors: int) -> float:
    """One GPU, or an even part of one: Ray never gives parts of two."""
    if not n_gpus:
        return 0
    return math.floor(10_000 / math.ceil(n_actors / n_gpus)) / 10_000


def place_federation(
    config: FederationConfig, nodes: list[Node], first_round: int = 1
) -> list[ActorPool]:
    """Assign every party of a federation to a node, in config order.

    Parties that have left by `first_round`, the next round to run, are not placed.

    Raises
    ------
    PlacementError
        For the first party whose labels no node has; lists the nodes and their labels.
    """
    if config.partition is not None:
        return place_partition(config, nodes)
    places = {
        party.name: place
        for place, party in enumerate(config.parties)
        if party.left is None or party.left > first_round
    }
    parties = config.parties
    wanted = {n: parties[i].labels for n, i in places.items() if not parties[i].edge}
    placements = place_parties(wanted, nodes, config.party_cpus)
    pools = [
        ActorPool(range(i, i + 1), (name,), placements[name])
        if name in placements
        else place_edge(name, i, nodes)
        for name, i in places.items()
    ]
    return [*pools, *_place_population(config, nodes)]


def _place_population(config: FederationConfig, nodes: list[Node]) -> list[ActorPool]:
    """Assign edges that the config does not list to actors on the driver's node."""
    if config.edges is None:
        return []
    placement = Placement(nodes[0].id, {}, 0, 0)
    places = range(POPULATION, POPULATION + MAX_EDGES)
    return [ActorPool(places, population_actors(config.edges), placement, "edges")]


def population_actors(edges: EdgesSpec) -> tuple[str, ...]:
    """Names of the actors that share a population; no party has such a name."""
    n_actors = math.ceil((edges.per_round or edges.min) / edges.per_group)
    return tuple(f"edges/{i + 1}" for i in range(n_actors))


def place_edge(name: str, place: int, nodes: list[Node]) -> ActorPool:
    """Assign an edge to the actor that stands for all of them, on the driver's node."""
    placement = Placement(nodes[0].id, {}, 0, 0)
    return ActorPool(range(place, place + 1), (name,), placement, "edge")


def place_new_party(
    config: FederationConfig, place: int, nodes: list[Node], occupied: list[str]
) -> ActorPool:
    """Assign a party that joins a running federation to a node.

    Other actors may hold all CPUs and GPUs: it reserves no CPU unless `party_cpus` is
    set, and a GPU only on a node that has no party yet.

    Raises
    ------
    PlacementError
        If no node has its labels; lists the nodes and their labels.
    """
    party = config.parties[place]
    if party.edge:
        return place_edge(party.name, place, nodes)
    wanted = {party.name: party.labels}
    placements = place_parties(wanted, nodes, config.party_cpus or 0, occupied)
    placement = placements[party.name]
    if placement.node_id in occupied:
        placement = replace(placement, n_gpus=0)
    return ActorPool(range(place, place + 1), (party.name,), placement)


def wait_for_placement(
    timeout_s: float,
    config: FederationConfig,
    first_round: int = 1,
    poll: Poll = lambda stage, waited_s, timeout_s: None,
) -> list[ActorPool]:
    """Run `place_federation`, waiting up to `timeout_s` for nodes that are joining.

    `poll` is called meanwhile, with what is waited for.
    """
    started = time.monotonic()
    while True:
        try:
            return place_federation(config, nodes(), first_round)
        except PlacementError as error:
            waited_s = time.monotonic() - started
            if waited_s > timeout_s:
                raise
            stage = f"{error.who} waits for a node with {error.wanted}"
            poll(stage, waited_s, timeout_s)
            time.sleep(0.5)
