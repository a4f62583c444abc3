"""What an aggregator is told, and what each party trains by."""

from dataclasses import dataclass

from fedray import data
from fedray.config import FederationConfig
from fedray.models import Blueprint
from fedray.party import GroupPlan

Member = tuple[FederationConfig, Blueprint]  # what a party trains by


@dataclass(frozen=True)
class AggregatorPlan:
    """What an aggregator needs to know to start."""

    run: str
    config: FederationConfig
    blueprint: Blueprint
    handlers: dict[str, data.HandlerSource]  # by the name that the config gives
    folder: str
    members: tuple[Member, ...] = ()  # an ensemble's, in config order

    def of(self, place: int) -> Member:
        """What the party at this place in the config trains by."""
        return self.members[place] if self.members else self.member

    @property
    def member(self) -> Member:
        """What all parties train by, unless they are an ensemble's members."""
        return self.config, self.blueprint

    def moulds(self) -> dict[str | None, GroupPlan]:
        """For each lineage that is examined apart, what an examiner starts from."""
        names = [party.name for party in self.config.parties]
        members = dict(zip(names, self.members, strict=True)) if self.members else {}
        found = {}
        for place, (name, own) in enumerate((members or {None: self.member}).items()):
            handler = self.config.handler_of(place) if name else own[0].data_handler
            words = *own, self.handlers.get(handler)
            found[name] = GroupPlan("", range(0), *words)
        return found
