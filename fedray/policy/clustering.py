"""Clustered federated learning: groups by a field, or by similarity of updates."""

import numpy as np

from fedray.config import (
    SIMILARITY,
    FederationConfig,
    change_rounds,
    members_in_round,
)
from fedray.policy.selection import count_chosen, needed

GAP = 0.3  # of cosine similarity: a smaller step is no border between groups


def by_field(config: FederationConfig) -> dict[str | None, np.ndarray]:
    """Places in the config of each group's parties; groups as they first come."""
    if config.groups is None:
        return {}
    groups: dict[str, list[int]] = {}
    for place, party in enumerate(config.parties):
        groups.setdefault(party.fields[config.groups.by], []).append(place)
    return {name: np.array(places) for name, places in groups.items()}


def count_fewest(config: FederationConfig) -> int | None:
    """Parties that the smallest group may have in a round; None: it is not known.

    One, where groups are made by similarity: a party may be like no other.
    """
    if config.has_member_models:
        return 1
    if config.groups is not None and config.groups.by == SIMILARITY:
        return config.num_parties if config.groups.k == 1 else 1
    if config.groups is None and not change_rounds(config):
        return config.num_parties
    groups: dict[str | None, np.ndarray] = {None: np.arange(config.num_parties or 0)}
    if config.groups is not None:
        if not all(config.groups.by in party.fields for party in config.parties):
            return None
        groups = by_field(config)
    counts = (
        len(members_in_round(config, places, round))
        for places in groups.values()
        for round in [1, *change_rounds(config)]
        if round <= config.rounds
    )
    return min(counts, default=None)


def fewest_updates(config: FederationConfig) -> int | None:
    """The fewest updates that a round can go on with; None: it is not known."""
    n_parties = count_fewest(config) if (config.num_parties or 0) > 0 else None
    if not n_parties:
        return None
    n_chosen = count_chosen(n_parties, config.party_fraction)
    return needed(config.quorum, n_chosen)


def group_by_similarity(
    sketches: np.ndarray, k: int | None
) -> dict[str | None, np.ndarray]:
    """Cut parties into groups whose updates point the same way.

    The k groups for which the greatest similarity between parties of two groups is
    least. Without k, as many groups as there is a border for: links that join parties,
    from the most alike to the least, are kept until the widest step down in cosine
    similarity; if no step is wider than 0.3, all are one group.

    Parameters
    ----------
    sketches : (K, 2048) of the parties' updates from common weights

    Returns
    -------
    Places of each group's parties: group-1 has the first party, and so on.

    Source: clustered federated learning, Sattler et al. 2019, arXiv:1910.01991. Its
    optimal cut in two is what a tree of greatest similarities falls into without its
    weakest link.
    """
    links = _tree(_cosines(sketches))
    links.sort(key=lambda link: -link[0])
    n_kept = _count_links_within(links) if k is None else len(sketches) - k
    roots = np.arange(len(sketches))
    for _, a, b in links[:n_kept]:
        roots[roots == roots[b]] = roots[a]
    firsts = sorted({int(np.flatnonzero(roots == root)[0]) for root in set(roots)})
    return {
        f"group-{i + 1}": np.flatnonzero(roots == roots[first])
        for i, first in enumerate(firsts)
    }


def _cosines(sketches: np.ndarray) -> np.ndarray:
    wide = sketches.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    unit = wide / np.where(lengths > 0, lengths, 1)
    return unit @ unit.T


def _tree(similar: np.ndarray) -> list[tuple[float, int, int]]:
    """Links of a tree of greatest similarities (Prim): (similarity, party, party)."""
    best, near = similar[0].copy(), np.zeros(len(similar), np.int64)
    outside, links = np.arange(1, len(similar)), []
    while len(outside):
        party = int(outside[np.argmax(best[outside])])
        links.append((float(best[party]), int(near[party]), party))
        outside = outside[outside != party]
        closer = similar[party] > best
        best, near = np.maximum(best, similar[party]), np.where(closer, party, near)
    return links


def _count_links_within(links: list[tuple[float, int, int]]) -> int:
    """Number of links, the strongest first, that lie within groups."""
    strengths = np.array([strength for strength, _, _ in links])
    steps = -np.diff(strengths)
    if not len(steps) or steps.max() <= GAP:
        return len(links)
    return int(np.argmax(steps)) + 1
