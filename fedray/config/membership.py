"""Membership over rounds: parties that join late or leave early, by the config."""

import numpy as np

from fedray.config.declaration import MAX_COUNT
from fedray.config.keys import FederationKeys
from fedray.config.specs import PartySpec


def is_member(party: PartySpec, round: int) -> bool:
    """Whether a party belongs to the federation in a round."""
    joined, left = party.joined or 1, party.left
    return joined <= round and (left is None or round < left)


def members_in_round(
    config: FederationKeys, places: np.ndarray, round: int
) -> np.ndarray:
    """Those of some places in the config whose parties are members in a round."""
    if not change_rounds(config):
        return places
    listed = len(config.parties)  # who is not is there as long as it is enrolled
    is_chosen = [
        place >= listed or is_member(config.parties[place], round)
        for place in places.tolist()
    ]
    return places[np.array(is_chosen, bool)]


def change_rounds(config: FederationKeys) -> list[int]:
    """Rounds with other members than the round before, ascending."""
    joined = {party.joined or 1 for party in config.parties} - {1}
    left = {party.left for party in config.parties if party.left is not None}
    return sorted(joined | left)


def membership_problems(config: FederationKeys) -> list[str]:
    """Mistakes in `joined` and `left`, by party."""
    problems = []
    for party in config.parties:
        joined = 1 if party.joined is None else party.joined
        if not 1 <= joined <= MAX_COUNT:
            message = f"joined must be a round from 1 on, got {joined}"
            problems.append(f"party {party.name!r}: {message}")
        elif party.left is not None and party.left < joined:
            message = (
                f"left (in round {party.left}) before it joined (in round {joined})"
            )
            problems.append(f"party {party.name!r}: {message}")
    rounds = [round for round in change_rounds(config) if round <= config.rounds]
    if not problems and rounds and config.has_member_models:
        problems.append(
            "joined and left do not go with ensemble: its members are fixed"
        )
    return problems + [
        f"no party{of} is there in round {round}"
        for round in ([1, *rounds] if rounds and not problems else [])
        for of in _empty_groups(config, round)
    ]


def _empty_groups(config: FederationKeys, round: int) -> list[str]:
    """Groups without a member in a round; one empty name where all are one group."""
    by = config.groups and config.groups.by
    has_member: dict[str, bool] = {}
    for party in config.parties:
        group = f" of {by} {party.fields[by]!r}" if by in party.fields else ""
        has_member[group] = has_member.get(group, False) or is_member(party, round)
    return [group for group, is_present in has_member.items() if not is_present]
