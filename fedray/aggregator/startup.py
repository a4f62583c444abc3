"""Starting the actors of parties: by the driver, and for those that join later."""

import time
from typing import Any

import ray
from ray.actor import ActorHandle

from fedray import placement
from fedray.aggregator.party_actors import party_actor
from fedray.aggregator.plan import AggregatorPlan
from fedray.errors import PlacementError
from fedray.party import GroupPlan, PartyGroup
from fedray.placement import ActorPool

NAMES_FREE_S = 20.0  # actors of a killed driver are gone by then


def start_party(plan: AggregatorPlan, pool: ActorPool, name: str) -> ActorHandle:
    """Start one of a pool's actors; Ray starts it anew whenever it dies."""
    first = pool.parties.start
    handler = plan.handlers[plan.config.handler_of(first)]
    group = GroupPlan(name, pool.parties, *plan.of(first), handler, plan.run)
    options = dict(pool.placement.options(), max_restarts=-1, max_task_retries=3)
    actor = ray.remote(PartyGroup).options(name=party_actor(plan.run, name), **options)
    send = placement.send_training_progress
    return start_named(actor, group, placement.locate_actor, send)


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
