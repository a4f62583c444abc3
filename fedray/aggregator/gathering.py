"""Who is there before the first round, and with how many samples."""

import time
from pathlib import Path

import numpy as np
import ray

from fedray import ensemble
from fedray.aggregator.party_actors import Crew, answers, reason
from fedray.config import FederationConfig
from fedray.ensemble import Form
from fedray.errors import JoinFailed
from fedray.messages import PartyInfo


def gather(crew: Crew, config: FederationConfig, folder: str) -> list[str]:
    """Hear from every actor how many samples its parties have; say who is silent.

    One whose node is gone now may come back; one that says it cannot take part is
    a mistake to be mended first.

    Raises
    ------
    JoinFailed
        Naming every party that cannot take part, or all if none is there.
    """
    until, notes, refused = time.monotonic() + config.round_timeout_s, [], {}
    members: dict[str, Form] = {}
    crew.n_train = np.zeros(config.num_parties, np.int64)
    parties = {name: pool.parties for pool in crew.pools for name in pool.actors}
    calls = {actor.join.remote(): n for n, actor in crew.actors.items()}
    for name, answer in answers(calls, until, crew.stop):
        if isinstance(answer, PartyInfo):
            crew.heard(name, answer)
            members[name] = Form(answer.sample, answer.n_classes)
            crew.n_train[parties[name]] = answer.n_train
        elif isinstance(answer, ray.exceptions.RayTaskError):
            refused[name] = reason(answer)
        else:
            notes.append(f"party {name} has not joined: {reason(answer)}")
    if config.fusion_algorithm == "ensemble" and not refused:
        # in config order: who is told to differ is no matter of who answered first
        members = {name: members[name] for name in crew.actors if name in members}
        refused = ensemble.disagreeing(members, config)
        ensemble.keep_forms(Path(folder), members)
    if (refused or not crew.nodes) and not crew.stop.is_set():
        late = dict.fromkeys(calls.values(), "did not answer in round_timeout_s")
        raise JoinFailed(refused | late)
    return notes
