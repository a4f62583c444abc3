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
from fedray.placement import Site

NAMES_FREE_S = 20.0  # actors of a killed driver are gone by then


def start_party(plan: AggregatorPlan, site: Site, name: str) -> ActorHandle:
    """Start one of a site's actors; Ray starts it anew whenever it dies."""
    first = site.parties.start
    handler = plan.handlers[plan.config.handler_of(first)]
    group = GroupPlan(name, site.parties, *plan.of(first), handler, plan.run)
    options = dict(site.seat.options(), max_restarts=-1, max_task_retries=3)
    actor = ray.remote(PartyGroup).options(name=party_actor(plan.run, name), **options)
    return start_named(actor, group, placement.here, placement.tell)


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
