"""Parties: load data, train, report, send updates. Plain classes without Ray."""

from fedray.party.group import PartyGroup
from fedray.party.host import PartyHost
from fedray.party.loading import GroupPlan
from fedray.party.personal import bytes_kept, own_model_folder
from fedray.party.probe import probe_party
from fedray.party.secure import SecureAnswers, SecurePartyGroup
from fedray.party.state import FINETUNED, STATE, PartyStateStore
from fedray.party.statistics import count_statistics
from fedray.party.survey import survey_parties
from fedray.party.text import count_documents, count_words, search_documents

__all__ = [
    "FINETUNED",
    "STATE",
    "GroupPlan",
    "PartyGroup",
    "PartyHost",
    "PartyStateStore",
    "SecureAnswers",
    "SecurePartyGroup",
    "bytes_kept",
    "count_documents",
    "count_statistics",
    "count_words",
    "own_model_folder",
    "probe_party",
    "search_documents",
    "survey_parties",
]
