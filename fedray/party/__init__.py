"""Parties: plain classes; `federation` makes actors of them."""

from fedray.party.group import PartyGroup
from fedray.party.loading import GroupPlan

__all__ = ["GroupPlan", "PartyGroup"]
