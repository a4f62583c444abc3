"""What an aggregator is started with: the run's config, model and data handlers."""

import dataclasses
from dataclasses import dataclass

from fedray import data
from fedray.config import FederationConfig
from fedray.models import Blueprint
from fedray.party import GroupPlan

Member = tuple[FederationConfig, Blueprint]  # what a party trains by


@dataclass(frozen=True)
class AggregatorPlan:
    """What an aggregator needs to know to start.

    handlers : how parties read their data, by the name that the config gives.
    folder : of the run, on the aggregator's node.
    members : of an ensemble, in config order: what each party trains by.
    """

    run: str
    config: FederationConfig
    blueprint: Blueprint
    handlers: dict[str, data.HandlerSource]
    folder: str
    members: tuple[Member, ...] = ()

    def of(self, place: int) -> Member:
        """What the party at this place in the config trains by."""
        return self.members[place] if self.members else self.member

    @property
    def member(self) -> Member:
        """What all parties train by, unless they are an ensemble's members."""
        return self.config, self.blueprint

    def with_config(self, config: FederationConfig) -> "AggregatorPlan":
        """The plan for other parties, with the handlers that they need."""
        new = {name: self._handler(name) for name in config.handlers()}
        return dataclasses.replace(self, config=config, handlers=self.handlers | new)

    def evaluation_plans(self) -> dict[str | None, GroupPlan]:
        """What each global model is evaluated by: an ensemble's member by its own.

        None stands for all groups that have no entry.
        """
        if not self.members:
            handler = self._handler(self.config.data_handler)
            return {None: GroupPlan("", range(0), *self.member, handler)}
        plans: dict[str | None, GroupPlan] = {}
        for place, party in enumerate(self.config.parties):
            handler = self._handler(self.config.handler_of(place))
            plans[party.name] = GroupPlan("", range(0), *self.members[place], handler)
        return plans

    def _handler(self, name: str) -> data.HandlerSource:
        return self.handlers.get(name) or data.named(name)
