"""Parties: plain classes; `federation` makes actors of them."""

from fedray.party.checking import examine
from fedray.party.group import PartyGroup
from fedray.party.loading import GroupPlan

__all__ = ["GroupPlan", "PartyGroup", "examine"]
