"""Rules that tie config keys to each other: parties, groups, attacks, documents."""

from fedray.config.keys import FederationKeys
from fedray.config.specs import (
    LABEL,
    MAX_ALIKE,
    NAME,
    SIMILARITY,
    AttackSpec,
    Doc2VecSpec,
    GroupsSpec,
)

PLAIN = ("additive", "fourth", 0.0, Doc2VecSpec())  # share, cap, row_momentum


def party_problems(config: FederationKeys) -> list[str]:
    """What is wrong with the parties, or with the partition they are cut from."""
    found = []
    if bool(config.parties) == (config.partition is not None):
        found.append("give either parties or a partition to cut them from")
    if config.partition is not None:
        if config.num_parties is None:
            found.append("num_parties is missing: a partition does not tell it")
    elif config.parties_per_actor not in (None, 1):
        found.append(
            "parties_per_actor is for a partition: each of `parties` has "
            "an actor of its own"
        )
    if config.parties and config.num_parties != len(config.parties):
        listed = f"num_parties is {config.num_parties}, but parties lists "
        found.append(listed + str(len(config.parties)))
    names = [party.name for party in config.parties]
    for name in names:
        if not NAME.fullmatch(name):
            found.append(f"party name {name!r} must match {NAME.pattern}")
    for party in config.parties:
        for text in (*party.labels, *party.labels.values()):
            if not LABEL.fullmatch(text):
                wrong = f"party {party.name!r}: label {text!r} must match "
                found.append(wrong + LABEL.pattern)
    for name in sorted({name for name in names if names.count(name) > 1}):
        found.append(f"party name {name!r} is given more than once")
    return found


def group_problems(config: FederationKeys) -> list[str]:
    """What is wrong with groups; parties at fault are named."""
    if config.groups is None:
        return []
    if config.groups.by == SIMILARITY:
        return _similarity_problems(config.groups, config.num_parties or 0)
    return _field_problems(config.groups, config)


def _similarity_problems(groups: GroupsSpec, n_parties: int) -> list[str]:
    found = []
    if not 2 <= n_parties <= MAX_ALIKE:
        compared = f"groups by similarity compare 2 to {MAX_ALIKE} parties, each "
        found.append(f"{compared}with each other; there are {n_parties}")
    if groups.k is not None and not 1 <= groups.k <= n_parties:
        found.append(f"groups k must be 1 to {n_parties} parties, got {groups.k}")
    return found


def _field_problems(groups: GroupsSpec, config: FederationKeys) -> list[str]:
    found, by, parties = [], groups.by, config.parties
    if groups.k is not None:
        found.append(f"groups k is for by: similarity; {by!r} has as many as differ")
    if not parties:
        found.append(f"groups by {by!r} needs `parties` with fields, or by: similarity")
    for party in parties:
        if by not in party.fields:
            there = sorted(party.fields) or "none"
            lacks = f"party {party.name!r} has no field {by!r} to go by, it has {there}"
            found.append(f"{lacks}; give it fields: {{{by}: ...}}")
        elif not NAME.fullmatch(party.fields[by]):
            wrong = f"party {party.name!r}: field {by} {party.fields[by]!r} must match "
            found.append(wrong + NAME.pattern)
    return found


def apart_problems(config: FederationKeys) -> list[str]:
    """What does not go with parties that keep their weights for a while."""
    found, is_apart = [], config.aggregation == "adaptive"
    for key in ("drift_threshold", "max_rounds_apart"):
        if not is_apart and getattr(config, key) is not None:
            found.append(f"{key} is for aggregation: adaptive")
    is_best = config.fusion_algorithm == "best_model"
    if config.late == "next_round" and (is_apart or is_best):
        what = "aggregation: adaptive" if is_apart else "best_model"
        found.append(f"late: next_round does not go with {what}: who is late keeps it")
    if config.attack is not None and (is_apart or is_best):
        found.append("attack goes with aggregation: always and a rule that fuses")
    return found


def hostile_problems(config: FederationKeys) -> list[str]:
    """What is wrong with an attack on this federation."""
    if config.attack is None:
        return []
    found = _attack_problems(config.attack)
    for name in config.attack.parties:
        if config.party_place(name) is None:
            found.append(f"attack.parties: there is no party {name!r}")
    if config.max_update_norm is not None:
        found.append(
            "max_update_norm does not go with attack: updates are checked before "
            "the attack is laid over them"
        )
    return found


def text_problems(config: FederationKeys) -> list[str]:
    """What is wrong with the settings that are for text."""
    found = []
    is_text = config.model_type == "doc2vec"
    if is_text != (config.fusion_algorithm == "doc2vec"):
        found.append(
            "model_type: doc2vec and fusion_algorithm: doc2vec go together, got "
            f"{config.model_type} and {config.fusion_algorithm}"
        )
    share, *folding = config.share, config.cap, config.row_momentum
    if not is_text and (share, *folding, config.doc2vec) != PLAIN:
        told = "doc2vec, share, cap and row_momentum are for model_type: doc2vec"
        found.append(told)
    elif share != "additive" and tuple(folding) != PLAIN[1:3]:
        found.append("cap and row_momentum are for share: additive")
    if config.party_dir is not None and not config.party_dir.startswith(("/", "~")):
        wrong = f"party_dir must start with / or ~, got {config.party_dir!r}: "
        found.append(wrong + "it is a folder on every party's own node")
    return found


def _attack_problems(attack: AttackSpec) -> list[str]:
    found = []
    if not attack.parties:
        found.append("attack.parties is empty: name those that are hostile")
    if len(set(attack.parties)) < len(attack.parties):
        found.append("attack.parties names a party more than once")
    if attack.kind in ("alie", "label_flip") and attack.scale is not None:
        found.append(f"attack.scale does not apply to {attack.kind}")
    return found
