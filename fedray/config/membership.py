"""Which parties are there in which round: some may join later, some may leave."""

import numpy as np

from fedray.config.declaration import MAX_COUNT
from fedray.config.keys import FederationKeys
from fedray.config.specs import PartySpec


def is_there(party: PartySpec, round: int) -> bool:
    """May this party be chosen in a round?"""
    joined, left = party.joined or 1, party.left
    return joined <= round and (left is None or round < left)


def present(config: FederationKeys, places: np.ndarray, round: int) -> np.ndarray:
    """Those of some places in the config whose parties are there in a round."""
    if not changes(config):
        return places
    there = [is_there(config.parties[place], round) for place in places.tolist()]
    return places[np.array(there, bool)]


def changes(config: FederationKeys) -> list[int]:
    """Rounds from which on other parties are there than before, ascending."""
    joined = {party.joined or 1 for party in config.parties} - {1}
    left = {party.left for party in config.parties if party.left is not None}
    return sorted(joined | left)


def presence_problems(config: FederationKeys) -> list[str]:
    """What is wrong with when parties join and leave; parties at fault are named."""
    found = []
    for party in config.parties:
        joined = 1 if party.joined is None else party.joined
        if not 1 <= joined <= MAX_COUNT:
            told = f"joined must be a round from 1 on, got {joined}"
            found.append(f"party {party.name!r}: {told}")
        elif party.left is not None and party.left < joined:
            told = f"left (in round {party.left}) before it joined (in round {joined})"
            found.append(f"party {party.name!r}: {told}")
    rounds = [round for round in changes(config) if round <= config.rounds]
    if not found and rounds and config.has_member_models:
        found.append("joined and left do not go with ensemble: its members are fixed")
    return found + [
        f"no party{of} is there in round {round}"
        for round in ([1, *rounds] if rounds and not found else [])
        for of in _deserted(config, round)
    ]


def _deserted(config: FederationKeys, round: int) -> list[str]:
    """Groups that have nobody in a round; one empty name where all are one group."""
    by = config.groups and config.groups.by
    found: dict[str, bool] = {}
    for party in config.parties:
        group = f" of {by} {party.fields[by]!r}" if by in party.fields else ""
        found[group] = found.get(group, False) or is_there(party, round)
    return [group for group, is_met in found.items() if not is_met]
