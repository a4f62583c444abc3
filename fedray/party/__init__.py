"""Parties: plain classes; `federation` makes actors of them."""

from fedray.party.group import PartyGroup
from fedray.party.loading import GroupPlan
from fedray.party.probe import examine
from fedray.party.text import count_documents, count_words, nearest

__all__ = [
    "GroupPlan",
    "PartyGroup",
    "count_documents",
    "count_words",
    "examine",
    "nearest",
]
