"""What privacy asks of a config: combinations that would break a guarantee.

A key that does not say that it may be used with a mechanism (`private` of `setting`)
may not have another value than its default.
"""

import math
from collections.abc import Collection, Iterator
from typing import Any

from pydantic import BaseModel

from fedray.config.declaration import keys_of, name_of, unmet_values, word_of
from fedray.config.keys import FederationKeys
from fedray.config.privacy import (
    ADAPTIVE_CLIP,
    LEAST_OF_PARTIES,
    MAX_CLIP,
    MIN_CLIP,
    PrivacySpec,
    describe_mechanisms,
)

LONGEST_SHOWN = 40  # characters of a value in a message
FEW_PARTIES = 2  # whose secure sum tells each what the other sent


def privacy_problems(config: FederationKeys, unread: Collection[str]) -> list[str]:
    """Mistakes in the keys of privacy, and other keys that do not go with them.

    unread : dotted names of keys that could not be read.
    """
    if config.privacy and "mechanism" not in config.privacy.model_fields_set:
        is_read = not {"privacy", "privacy.mechanism"} & set(unread)
        needed = "privacy.mechanism is missing: central, distributed or none"
        return [needed] if is_read else []
    if not config.privacy_mechanisms:
        return []
    problems = [
        *dict.fromkeys(_denied(config, config)),
        *_spec_problems(config),
        *_sampling_problems(config),
        *_masking_problems(config),
    ]
    outer = {name.partition(".")[0] for name in unread}
    return [p for p in problems if not _is_about(p, outer)]


def _is_about(problem: str, names: Collection[str]) -> bool:
    """Whether a message begins with one of these keys."""
    return any(problem.startswith((f"{n}:", f"{n}.", f"{n} ")) for n in names)


def _denied(
    config: FederationKeys, settings: BaseModel, place: str = ""
) -> Iterator[str]:
    """Keys given with another value than their default that a mechanism denies.

    settings : the config itself, or what stands in it at `place`.
    """
    is_root = settings is config
    for name, key in keys_of(FederationKeys if is_root else type(settings)).items():
        value = getattr(settings, name)
        if not key.is_required and value == key.default:
            continue
        where, private = f"{place}{name}", key.setting.private
        denied = [
            mechanism
            for mechanism in config.privacy_mechanisms
            if not private.allows(mechanism, value)
        ]
        if unmet_values(private.needs, config):
            denied = list(config.privacy_mechanisms)
        if denied:
            does_not = f"does not go with {describe_mechanisms(denied)}"
            yield f"{_shown(where, value)} {does_not}: {private.why}"
        elif key.nested:
            for own in value if key.is_list else [value]:
                yield from _denied(config, own, f"{where}.")


def _shown(where: str, value: Any) -> str:
    """A key and its value, as the start of a message."""
    if isinstance(value, str | int | float) and len(str(value)) <= LONGEST_SHOWN:
        return f"{where}: {word_of(name_of(value))}"
    return where


def _spec_problems(config: FederationKeys) -> list[str]:
    """What the noise needs, and has not been given."""
    problems, privacy = [], config.privacy
    specs: list[tuple[str, Any]] = [("dp_sgd", config.dp_sgd)]
    if privacy and config.noise_for_parties:
        specs.append(("privacy", privacy))
        problems += _noise_problems(config, privacy)
    for name, spec in specs:
        if spec and spec.epsilon is None and spec.noise_multiplier is None:
            problems.append(
                f"{name}.epsilon is missing, and so is {name}.noise_multiplier: give "
                "a limit, from which the noise follows, or the noise"
            )
    return problems


def _noise_problems(config: FederationKeys, privacy: PrivacySpec) -> list[str]:
    problems, n_parties = [], config.fewest_parties
    if privacy.delta is None:
        problems.append(
            "privacy.delta is missing: the chance that epsilon does not hold, well "
            "below 1 / number of parties"
        )
    elif n_parties and privacy.delta >= 1 / n_parties:
        problems.append(
            f"privacy.delta must be below 1 / {n_parties} parties = "
            f"{1 / n_parties:.3g}, got {privacy.delta:g}: with more, publishing a "
            "party's data outright would be allowed; give 1 / (10 parties) or less"
        )
    if privacy.clip_norm is None:
        problems.append(
            "privacy.clip_norm is missing: the longest step that a party may take in "
            "a round, or adaptive"
        )
    if privacy.clip_norm == ADAPTIVE_CLIP and privacy.mechanism == "distributed":
        problems.append(
            "privacy.clip_norm: adaptive does not go with privacy.mechanism: "
            "distributed: give a number"
        )
    if privacy.clip_norm == ADAPTIVE_CLIP and privacy.sampling == "cyclic":
        problems.append(
            "privacy.clip_norm: adaptive does not go with privacy.sampling: cyclic, "
            "whose noise of several rounds is one: give a number"
        )
    return problems


def _sampling_problems(config: FederationKeys) -> list[str]:
    """Who takes part in a round of central noise."""
    if not config.privacy or config.noise_for_parties != "central":
        return []
    sampling, fraction = config.privacy.sampling, config.party_fraction
    problems = []
    if sampling == "all" and fraction < 1:
        problems.append(
            f"party_fraction: {fraction:g} does not go with privacy.sampling: all: a "
            "fixed number of parties chosen by chance makes epsilon no smaller, it "
            "makes it larger; take privacy.sampling: cyclic (or poisson, where nobody "
            "sees who was chosen), or leave party_fraction out"
        )
    if sampling != "all" and fraction == 1:
        problems.append(
            f"privacy.sampling: {sampling} needs party_fraction below 1: the share of "
            "the parties that train in a round"
        )
    if sampling == "cyclic" and fraction < 1 and round(1 / fraction) < FEW_PARTIES:
        problems.append(
            f"party_fraction: {fraction:g} makes one group of privacy.sampling: "
            "cyclic: give 0.5 or less, or privacy.sampling: all"
        )
    if sampling != "all" and config.late == "next_round":
        problems.append(
            f"late: next_round does not go with privacy.sampling: {sampling}: a late "
            "update would count in a round that did not choose its party: leave it out"
        )
    return problems


def _distributed_problems(config: FederationKeys) -> list[str]:
    """What noise by the parties needs."""
    problems: list[str] = []
    if not config.privacy or config.noise_for_parties != "distributed":
        return problems
    noise = config.privacy.noise_multiplier
    if noise and noise < LEAST_OF_PARTIES:
        problems.append(
            f"privacy.noise_multiplier: {noise:g} is too little for privacy.mechanism: "
            f"distributed, of which no epsilon is proven below {LEAST_OF_PARTIES:g}"
        )
    if not config.secure_aggregation:
        problems.append(
            "privacy.mechanism: distributed needs secure_aggregation: true: what one "
            "party adds hides it only within the sum"
        )
    return problems


def _masking_problems(config: FederationKeys) -> list[str]:
    """What masked sums need."""
    problems, mechanism = _distributed_problems(config), config.noise_for_parties
    if not config.secure_aggregation:
        return problems
    if mechanism == "central":
        problems.append(
            "privacy.mechanism: central does not go with secure_aggregation: true: "
            "take privacy.mechanism: distributed, with which nobody sees a sum "
            "without noise"
        )
    if mechanism is None and config.clip_norm is None:
        problems.append(
            "clip_norm is missing: secure_aggregation sums whole numbers, whose range "
            "it sets: the longest step that a party may take in a round"
        )
    if mechanism is None and not MIN_CLIP <= (config.clip_norm or 1.0) <= MAX_CLIP:
        problems.append(
            f"clip_norm: {config.clip_norm:g} is no length that steps can be scaled to "
            f"in secure_aggregation: give one from {MIN_CLIP:g} to {MAX_CLIP:g}"
        )
    return problems + _min_sum_problems(config)


def _min_sum_problems(config: FederationKeys) -> list[str]:
    """A sum of so few parties that it tells what one of them sent."""
    n_parties = config.fewest_parties
    if n_parties is None:
        return []
    n_asked = max(1, math.floor(n_parties * config.party_fraction + 0.5))
    if n_asked < FEW_PARTIES:
        return [
            f"secure_aggregation needs 2 parties or more in a round, got {n_asked}: "
            "the sum of one is its update"
        ]
    if config.min_sum is None:
        return []
    if config.min_sum > n_asked:
        return [f"min_sum is {config.min_sum}, but a round asks {n_asked} parties"]
    if config.min_sum == FEW_PARTIES < n_asked:
        return [
            "min_sum: 2 is for two parties: from a sum of two each knows what the "
            f"other sent; give 3 to {n_asked}"
        ]
    return []
