"""The roll of a federation: its config after a party has joined or left. Pure."""

import numpy as np

from fedray import data, fusion, policy
from fedray.config import SIMILARITY, FederationConfig, PartySpec, changes, unknown
from fedray.errors import ConfigError
from fedray.messages import RoundReport


def grown(config: FederationConfig, party: PartySpec, round: int) -> FederationConfig:
    """The config with one more party, which may be chosen from a round on.

    Raises
    ------
    ConfigError
        If that round never comes, or its parties are fixed.
    """
    _see_that_they_may_change(config)
    if round > config.rounds:
        told = f"round {config.rounds}, the last one, has begun"
        raise ConfigError([f"party {party.name!r} cannot join any more: {told}"])
    parties = (*config.parties, party.with_changes(joined=round, left=None))
    return config.with_changes(parties=parties, num_parties=len(parties))


def without(config: FederationConfig, name: str, round: int) -> FederationConfig:
    """The config with a party that leaves in a round; the same if it has left.

    Raises
    ------
    ConfigError
        If there is no such party, or parties are fixed.
    """
    _see_that_they_may_change(config)
    names = [party.name for party in config.parties]
    if name not in names:
        raise ConfigError([unknown("party", name, names)])
    place = names.index(name)
    left = config.parties[place].left
    has_left = left is not None and left <= round
    return config if has_left else leaving(config, place, round)


def leaving(config: FederationConfig, place: int, round: int) -> FederationConfig:
    """The config with a party that takes part in no round from this one on."""
    parties = list(config.parties)
    left = max(round, parties[place].joined or 1)
    parties[place] = parties[place].with_changes(left=left)
    return config.with_changes(parties=tuple(parties))


def counted(
    config: FederationConfig, places: np.ndarray, report: RoundReport
) -> FederationConfig:
    """The config after a round: who left while it ran, and was counted, left after it.

    So the config that is kept gives the same run again.

    places : of the parties whose round it was.
    """
    if report.round in changes(config):
        for place in places.tolist():
            party = config.parties[place]
            if party.left == report.round and party.name not in report.left:
                config = leaving(config, place, report.round + 1)
    return config


def problems(after: FederationConfig, before: FederationConfig) -> list[str]:
    """Why a federation cannot go on with other parties than before."""
    is_grown = len(after.parties) > len(before.parties)
    if is_grown and after.groups and after.groups.by == SIMILARITY:
        return ["groups by similarity take in nobody later: it was not compared"]
    found = after.problems()
    if is_grown:
        found += data.problems(after.handler_of(-1), after.model_type)
    return found or fusion.misfits(after, policy.fewest_updates(after))


def _see_that_they_may_change(config: FederationConfig) -> None:
    if config.partition is not None:
        told = "parties of a partition neither join nor leave: one data set is cut up"
        raise ConfigError([f"{told} for as many as there are"])
