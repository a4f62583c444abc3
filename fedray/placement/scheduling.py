"""Which node holds which parties."""

import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedray.config import FederationConfig
from fedray.errors import PlacementError
from fedray.placement.cluster import Labels, Node, existing, nodes, shown


@dataclass(frozen=True)
class Seat:
    """Where an actor sits, and its share of that node."""

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


@dataclass(frozen=True)
class Site:
    """Parties of one node, and the actors there, each of which can train them all.

    A real party has a site of its own, with one actor.
    """

    parties: range  # places in the config
    actors: tuple[str, ...]
    seat: Seat  # every actor's


def seat_all(
    wanted: dict[str, Labels],
    nodes: list[Node],
    party_cpus: float | None = None,
    taken: Iterable[str] = (),
) -> dict[str, Seat]:
    """Give every party a node that carries its labels, evenly by cores.

    `taken` : a node's id for each party that is there already.

    Parties without labels go to the first node, the driver's, where their data path
    was written down. A pure function of config, labels and cores: never of free
    memory or timing.

    Raises
    ------
    PlacementError
        For the first party whose labels no node carries; says which there are.
    """
    chosen: dict[str, Node] = {}
    load: Counter[str] = Counter(taken)
    for name, labels in wanted.items():
        near = nodes if labels else nodes[:1]
        able = [node for node in near if node.carries(labels)]
        if not able:
            raise PlacementError(f"party {name}", shown(labels), existing(nodes))
        able = [node for node in able if node.n_cpus] or able
        best = min(able, key=lambda n: (load[n.id] + 1) / max(n.n_cpus, 1e-9))
        chosen[name] = best
        load[best.id] += 1
    return {
        name: _seat(node, load[node.id], wanted[name], party_cpus)
        for name, node in chosen.items()
    }


def share_out(config: FederationConfig, nodes: list[Node]) -> list[Site]:
    """Give the parties of a partition to nodes by cores, the first ones to the first.

    As long as a node has a core for each, every party has an actor of its own. Past
    that they share actors, `parties_per_actor` each if that is given: else one actor
    for every core, or for every GPU where there are any.
    """
    able = [node for node in nodes if node.n_cpus] or nodes[:1]
    cores = [node.n_cpus or 1 for node in able]
    sites, start = [], 0
    for i, node in enumerate(able):
        part = config.num_parties * sum(cores[: i + 1]) / sum(cores)
        parties = range(start, math.ceil(round(part, 6)))
        start = parties.stop
        if parties:
            sites += _shared(parties, node, config)
    return sites


def _shared(parties: range, node: Node, config: FederationConfig) -> list[Site]:
    n_actors = min(len(parties), _room(node, config.party_cpus))
    if config.parties_per_actor is not None:
        n_actors = math.ceil(len(parties) / config.parties_per_actor)
    seat = _seat(node, n_actors, {}, config.party_cpus)
    if n_actors == len(parties):
        names = [config.party_name(party) for party in parties]
        ranges = [range(party, party + 1) for party in parties]
        return [Site(r, (n,), seat) for r, n in zip(ranges, names, strict=True)]
    span = f"{config.party_name(parties.start)}-{parties.stop - 1}"
    actors = tuple(f"{span}.{i + 1}" for i in range(n_actors))
    return [Site(parties, actors, seat)]


def _room(node: Node, party_cpus: float | None) -> int:
    if node.n_gpus >= 1:
        return int(node.n_gpus)
    return max(1, int(node.n_cpus / (party_cpus or 1)))


def _seat(node: Node, n_actors: int, labels: Labels, party_cpus: float | None) -> Seat:
    cpus = _part(node.n_cpus, n_actors) if party_cpus is None else party_cpus
    return Seat(node.id, dict(labels), cpus, _gpus(node.n_gpus, n_actors))


def _part(amount: float, n_parties: int) -> float:
    return math.floor(min(1, amount / n_parties) * 10_000) / 10_000


def _gpus(n_gpus: float, n_parties: int) -> float:
    """One GPU, or an even part of one: Ray never gives parts of two."""
    if not n_gpus:
        return 0
    return math.floor(10_000 / math.ceil(n_parties / n_gpus)) / 10_000


def sites(config: FederationConfig, nodes: list[Node], since: int = 1) -> list[Site]:
    """Where every party of a federation sits, in config order.

    `since` : the first round to come; who has left by then has no seat.

    Raises
    ------
    PlacementError
        For the first party whose labels no node carries; says which there are.
    """
    if config.partition is not None:
        return share_out(config, nodes)
    places = {
        party.name: place
        for place, party in enumerate(config.parties)
        if party.left is None or party.left > since
    }
    wanted = {name: config.parties[place].labels for name, place in places.items()}
    seats = seat_all(wanted, nodes, config.party_cpus).items()
    return [
        Site(range(places[name], places[name] + 1), (name,), seat)
        for name, seat in seats
    ]


def newcomer(
    config: FederationConfig, place: int, nodes: list[Node], taken: list[str]
) -> Site:
    """Where a party sits that joins a running federation.

    Others may hold all the cores and GPUs: it reserves no core unless `party_cpus` says
    so, and a GPU only on a node that has no party yet.

    Raises
    ------
    PlacementError
        If no node carries its labels; says which there are.
    """
    party = config.parties[place]
    wanted = {party.name: party.labels}
    seat = seat_all(wanted, nodes, config.party_cpus or 0, taken)[party.name]
    if seat.node in taken:
        seat = replace(seat, n_gpus=0)
    return Site(range(place, place + 1), (party.name,), seat)


def sites_within(
    timeout_s: float, config: FederationConfig, since: int = 1
) -> list[Site]:
    """`sites`, waiting up to `timeout_s` for nodes that are still joining."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            return sites(config, nodes(), since)
        except PlacementError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)
