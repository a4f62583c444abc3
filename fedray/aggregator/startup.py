"""Starting party actors, and asking them for their sample counts before round 1."""

import time
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayTaskError

from fedray import placement
from fedray.aggregator.party_actors import (
    PartyActors,
    party_actor,
    reason,
    wait_for_answers,
)
from fedray.aggregator.plan import AggregatorPlan
from fedray.ensemble import workflow_of
from fedray.errors import JoinFailed, PlacementError
from fedray.messages import PartyInfo
from fedray.party import GroupPlan, PartyGroup
from fedray.placement import ActorPool

NAMES_FREE_S = 20.0  # actors of a killed driver are gone by then


def start_party(plan: AggregatorPlan, pool: ActorPool, name: str) -> ActorHandle:
    """Start one of a pool's actors; Ray restarts it whenever it dies."""
    first = pool.parties.start
    handler = plan.handlers[plan.config.handler_of(first)]
    group = GroupPlan(name, pool.parties, *plan.of(first), handler, plan.run)
    options = dict(pool.placement.options(), max_restarts=-1, max_task_retries=3)
    actor = ray.remote(PartyGroup).options(name=party_actor(plan.run, name), **options)
    return start_named(
        actor, group, placement.locate_actor, placement.send_training_progress
    )


def start_named(actor: Any, *arguments: Any) -> ActorHandle:
    """Start a named actor, waiting until a killed one of that name is gone.

    Raises
    ------
    PlacementError
        If the name is still taken: a run of this name is alive.
    """
    until = time.monotonic() + NAMES_FREE_S
    while True:
        try:
            return actor.remote(*arguments)
        except ValueError as error:
            if "already taken" not in str(error) or time.monotonic() > until:
                wanted = "an actor name of its own"
                raise PlacementError("this run", wanted, str(error)) from None
            time.sleep(0.5)


def gather(actors: PartyActors, plan: AggregatorPlan) -> list[str]:
    """Ask every actor how many samples its parties have; notes about who is silent.

    An actor whose node is gone now may come back later. A party that cannot take part
    (bad data, another model) is a mistake to be mended first.

    Raises
    ------
    JoinFailed
        Naming every party that cannot take part, or all if none answered.
    """
    until = time.monotonic() + plan.config.round_timeout_s
    notes: list[str] = []
    refused: dict[str, str] = {}
    infos: dict[str, PartyInfo] = {}
    calls: dict[ObjectRef, str] = {}
    for name, actor in actors.actors.items():
        calls[actor.join.remote()] = name
    for name, answer in wait_for_answers(calls, until, actors.stop):
        if isinstance(answer, PartyInfo):
            actors.record_contact(name, answer)
            infos[name] = answer
        elif isinstance(answer, RayTaskError):
            refused[name] = reason(answer)
        else:
            notes.append(f"party {name} has not joined: {reason(answer)}")
    if not refused:
        # in config order: which members differ is no matter of who answered first
        in_order = {name: infos[name] for name in actors.actors if name in infos}
        refused = workflow_of(plan.config).check_joined(in_order, Path(plan.folder))
    if (refused or not infos) and not actors.stop.is_set():
        late = dict.fromkeys(calls.values(), "did not answer in round_timeout_s")
        raise JoinFailed(refused | late)
    return notes
