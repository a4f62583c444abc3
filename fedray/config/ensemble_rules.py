"""Rules of an ensemble's config keys, and of members' keys in other federations."""

from fedray.config.keys import FederationKeys
from fedray.config.specs import MEMBER

PLAIN = {  # what each party's training alone goes with
    "aggregation": "always",
    "groups": None,
    "partition": None,
    "attack": None,
    "party_fraction": 1.0,
    "over_select": 1.0,
    "bucketing": 1,
    "late": "discard",
    "proximal_mu": 0.0,
}


def member_problems(config: FederationKeys) -> list[str]:
    """What is wrong with an ensemble; parties at fault are named."""
    if not config.has_member_models:
        return _not_for(config)
    found = []
    for key, value in PLAIN.items():
        if getattr(config, key) != value:
            found.append(f"{key} does not go with ensemble: each party trains alone")
    if config.member_weights == "accuracy" and not config.test_data:
        told = "member_weights: accuracy needs test_data: a party's own tests say "
        found.append(told + "little of how it does on the others' samples")
    if (config.distill is None) != (config.distill_data is None):
        found.append("distill (the student) and distill_data (what for) go together")
    for i, party in enumerate(config.parties):
        own = config.member(i)
        if own.model_file is None and own.architecture is None:
            told = "model_file is missing: give it, or an architecture"
            found.append(f"party {party.name!r}: {told}")
        if own.model_type == "doc2vec":
            found.append(f"party {party.name!r}: doc2vec gives no probabilities")
    return found


def _not_for(config: FederationKeys) -> list[str]:
    found = []
    for party in config.parties:
        own = [key for key in MEMBER if getattr(party, key) is not None]
        if own:
            told = f"{own} of its own are for fusion_algorithm: ensemble, got "
            found.append(f"party {party.name!r}: {told}{config.fusion_algorithm}")
    for key in ("distill", "distill_data"):
        if getattr(config, key) is not None:
            found.append(f"{key} is for fusion_algorithm: ensemble")
    if config.member_weights != "equal":
        found.append("member_weights is for fusion_algorithm: ensemble")
    return found
