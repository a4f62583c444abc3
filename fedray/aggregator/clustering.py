"""Clustered training: which parties share a global model, by field or by updates."""

import json
import time
from pathlib import Path

import numpy as np

from fedray import policy
from fedray.aggregator.global_model import Broadcast
from fedray.aggregator.party_actors import (
    ActorCall,
    PartyActors,
    WorkItem,
    reason,
    wait_for_answers,
)
from fedray.aggregator.startup import AggregatorPlan
from fedray.checkpoint import write_file
from fedray.config import SIMILARITY, FederationConfig
from fedray.ensemble import workflow_of
from fedray.errors import JoinFailed
from fedray.messages import UpdateSketches

FILE = "groups.json"
Groups = dict[str | None, np.ndarray]  # name -> places of parties; None: everyone


def known_groups(plan: AggregatorPlan) -> Groups | None:
    """Places of each group's parties, unless parties must be compared first."""
    config = plan.config
    everyone = np.arange(config.num_parties or 0)
    if fixed := workflow_of(config).groups():
        return fixed
    if config.groups is None:
        return {None: everyone}
    if config.groups.by != SIMILARITY:
        return policy.by_field(config)
    return _read_groups(Path(plan.folder), everyone)


def _read_groups(folder: Path, everyone: np.ndarray) -> Groups | None:
    """What an earlier comparison wrote; None if nothing, or not all of it, is there."""
    try:
        written = json.loads((folder / FILE).read_text("utf-8"))
        groups: Groups = {
            str(name): np.array(places) for name, places in written.items()
        }
        if (np.sort(np.concatenate([*groups.values()])) == everyone).all():
            return groups
    except (OSError, ValueError, AttributeError):
        pass  # not yet compared, or cut by a crash: comparing again gives the same
    return None


def write_groups(groups: Groups, folder: Path) -> None:
    """Write groups down: a resumed run goes on with the same ones."""
    plain = {name: places.tolist() for name, places in groups.items()}
    write_file(folder, FILE, json.dumps(plain) + "\n")


def compare_parties(
    actors: PartyActors, broadcast: Broadcast, config: FederationConfig
) -> tuple[Groups, int]:
    """Groups of parties whose first round goes the same way, and the bytes it took.

    Every party trains once from the first weights and sends a sketch; no model moves.
    No groups if the run is to stop.

    Raises
    ------
    JoinFailed
        Naming every party that could not be compared: it would belong nowhere.
    """
    until = time.monotonic() + config.round_timeout_s
    everyone = np.arange(config.num_parties or 0)
    sketches: dict[int, np.ndarray] = {}
    n_moved, failed = 0, {}
    calls: dict[ActorCall, WorkItem] = {}
    for item in actors.assign(everyone):
        call = actors.call(item.actor, "sketch_updates", item.parties, broadcast.ref)
        calls[call] = item
    for item, answer in wait_for_answers(calls, until, actors.stop):
        if isinstance(answer, UpdateSketches):
            sketches |= zip(item.parties.tolist(), answer.sketches, strict=True)
            n_moved += answer.sketches.nbytes
            n_moved += broadcast.count_bytes(answer.node, answer.n_bytes)
        else:
            failed[item.actor] = reason(answer)
    late = {item.actor: config.late_text for item in calls.values()}
    if failed | late and not actors.stop.is_set():
        raise JoinFailed(failed | late, config.errors_log if failed else "")
    if len(sketches) < len(everyone):
        return {}, n_moved  # stopped
    ordered = np.array([sketches[place] for place in everyone.tolist()])
    n_groups = config.groups.k if config.groups else None
    return policy.group_by_similarity(ordered, n_groups), n_moved
