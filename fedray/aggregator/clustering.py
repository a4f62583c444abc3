"""Who shares a global model: by config, by the run's folder, or by comparing."""

import json
import os
import time
from pathlib import Path

import numpy as np

from fedray import policy
from fedray.aggregator.party_actors import Broadcast, Crew, answers, reason
from fedray.config import SIMILARITY, FederationConfig
from fedray.errors import JoinFailed
from fedray.messages import UpdateSketches

FILE = "groups.json"
Groups = dict[str | None, np.ndarray]  # name -> places of parties; None: everyone


def known(config: FederationConfig, folder: Path) -> Groups | None:
    """Places of each group's parties, unless they must be compared first."""
    everyone = np.arange(config.num_parties)
    if config.fusion_algorithm == "ensemble":
        return {
            party.name: everyone[i : i + 1] for i, party in enumerate(config.parties)
        }
    if config.groups is None:
        return {None: everyone}
    if config.groups.by != SIMILARITY:
        return policy.by_field(config)
    try:
        written = json.loads((folder / FILE).read_text("utf-8"))
        found = {str(name): np.array(places) for name, places in written.items()}
        if (np.sort(np.concatenate([*found.values()])) == everyone).all():
            return found
    except (OSError, ValueError, AttributeError):
        pass  # not yet compared, or cut by a crash: comparing again finds the same
    return None


def write(groups: Groups, folder: Path) -> None:
    """Keep what comparing found: a resumed run goes on with the same groups."""
    aside = folder / f"{FILE}.part"
    plain = {name: places.tolist() for name, places in groups.items()}
    aside.write_text(json.dumps(plain) + "\n", encoding="utf-8")
    os.replace(aside, folder / FILE)


def compare(
    crew: Crew, broadcast: Broadcast, config: FederationConfig
) -> tuple[Groups, int]:
    """Groups of parties whose first round goes the same way, and the bytes it took.

    Every party trains once from the first weights and sends a sketch; no model moves.

    Raises
    ------
    JoinFailed
        Naming every party that could not be compared: it would belong nowhere.
    """
    until = time.monotonic() + config.round_timeout_s
    everyone = np.arange(config.num_parties)
    sketches, n_moved, failed = {}, 0, {}
    parts = crew.deal(everyone)
    calls = {
        crew.actors[part.actor].directions.remote(part.parties, broadcast.ref): part
        for part in parts
    }
    for part, answer in answers(calls, until, crew.stop):
        if isinstance(answer, UpdateSketches):
            sketches |= zip(part.parties.tolist(), answer.sketches, strict=True)
            n_moved += answer.sketches.nbytes
            n_moved += broadcast.arrived(answer.node, answer.n_bytes)
        else:
            failed[part.actor] = reason(answer)
    why = "was not compared in round_timeout_s"
    late = {part.actor: why for part in calls.values()}
    if failed | late and not crew.stop.is_set():
        raise JoinFailed(failed | late)
    ordered = [sketches[place] for place in everyone.tolist() if place in sketches]
    if len(ordered) < len(everyone):
        return {}, n_moved  # stopped
    return policy.alike(np.array(ordered), config.groups.k), n_moved
