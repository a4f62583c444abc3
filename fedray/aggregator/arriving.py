"""A party that joins while a federation runs: its actor, its code, what it is told."""

from dataclasses import dataclass
from pathlib import Path

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from fedray import data, placement
from fedray.aggregator.party_actors import reason
from fedray.config import NAME, FederationConfig, PartySpec
from fedray.errors import JoinFailed, RunFolderError
from fedray.messages import PartyInfo
from fedray.placement import ActorPool
from fedray.user_code import Source

HANDLERS = "handlers"  # folder within the run's: code that came with parties


@dataclass(frozen=True)
class JoinReply:
    """What a party is told that joins.

    Of a run that was not alive only the round is known: its data is looked at when the
    run goes on.
    """

    round: int  # the first that it may be chosen for
    node: str = ""  # Ray node id, hex
    device: str = ""  # cpu or cuda
    n_train: int = 0
    n_test: int = 0


@dataclass(frozen=True)
class Newcomer:
    """An actor that waits for the next round to begin."""

    pool: ActorPool
    actor: ActorHandle
    joined: PartyInfo


def kept(
    party: PartySpec, handler: data.HandlerSource | None, folder: str
) -> PartySpec:
    """Keep code that came with a party in the run's folder, which may be resumed.

    Raises
    ------
    RunFolderError
        If the disk refuses.
    """
    if not isinstance(handler, Source) or not NAME.fullmatch(party.name):
        return party  # a bad name is told with all other mistakes
    file = Path(folder) / HANDLERS / f"{party.name}.py"
    try:
        file.parent.mkdir(exist_ok=True)
        file.write_text(handler.text, encoding="utf-8")
    except OSError as error:
        told = f"cannot be written: {error.strerror}"
        raise RunFolderError(folder, told) from None
    return party.with_changes(data_handler=f"{file}:{handler.attribute}")


def heard(actor: ActorHandle, pool: ActorPool, config: FederationConfig) -> PartyInfo:
    """What a new actor says of its party's data, once it is up.

    Raises
    ------
    PlacementError, JoinFailed
        If it cannot start, or cannot take part.
    """
    name = pool.actors[0]
    placement.wait_until_ready({name: actor}, [pool], config.placement_timeout_s)
    try:
        return ray.get(actor.join.remote(), timeout=config.round_timeout_s)
    except RayError as error:
        raise JoinFailed({name: reason(error)}) from None


def welcome(joined: PartyInfo, party: PartySpec) -> JoinReply:
    """What a party is told."""
    n_train = int(joined.n_train.sum())
    words = joined.node, joined.device, n_train, joined.n_test
    return JoinReply(party.joined or 1, *words)
