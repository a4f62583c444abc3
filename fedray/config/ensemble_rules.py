"""Rules of an ensemble's config keys, and of members' keys in other federations."""

from fedray.config.keys import FederationKeys
from fedray.config.specs import MEMBER_KEYS

REQUIRED = {  # values that keys must have, since each member trains alone
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


def ensemble_problems(config: FederationKeys) -> list[str]:
    """Mistakes in the keys of an ensemble, or in those keys without one; by party."""
    if not config.has_member_models:
        return _member_key_problems(config)
    problems = []
    for key, value in REQUIRED.items():
        if getattr(config, key) != value:
            problems.append(f"{key} does not go with ensemble: each party trains alone")
    if config.member_weights == "accuracy" and not config.test_data:
        problems.append(
            "member_weights: accuracy needs test_data: a party's own tests say "
            "little of how it does on the others' samples"
        )
    if (config.distill is None) != (config.distill_data is None):
        problems.append("distill (the student) and distill_data (what for) go together")
    for i, party in enumerate(config.parties):
        own = config.member(i)
        if own.model_file is None and own.architecture is None:
            message = "model_file is missing: give it, or an architecture"
            problems.append(f"party {party.name!r}: {message}")
        if own.takes_documents:
            problems.append(f"party {party.name!r}: doc2vec gives no probabilities")
    return problems


def _member_key_problems(config: FederationKeys) -> list[str]:
    problems = []
    for party in config.parties:
        own = [key for key in MEMBER_KEYS if getattr(party, key) is not None]
        if own:
            message = f"{own} of its own are for fusion_algorithm: ensemble, got "
            problems.append(f"party {party.name!r}: {message}{config.fusion_algorithm}")
    for key in ("distill", "distill_data"):
        if getattr(config, key) is not None:
            problems.append(f"{key} is for fusion_algorithm: ensemble")
    if config.member_weights != "equal":
        problems.append("member_weights is for fusion_algorithm: ensemble")
    return problems
