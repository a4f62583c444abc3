"""Fusion rules by name, from a config, and the checks of updates.

`combine` fuses updates by a rule; `named` and `from_config` make rules.
"""

from collections.abc import Callable, Collection
from typing import Any

from fedray.config import FederationConfig, describe_unknown
from fedray.errors import ConfigError
from fedray.fusion import attacks, robust
from fedray.fusion.base import (
    RATE_SUM,
    Accumulator,
    FusionRule,
    RoundContext,
    State,
    combine,
)
from fedray.fusion.doc2vec import Doc2Vec
from fedray.fusion.fedavg import FedAvg, FedAvgM, FedOpt, IterAvg
from fedray.fusion.fednova import FedNova
from fedray.fusion.masked_sum import MaskedSum
from fedray.fusion.private_mean import SUM, PrivateMean, sum_rejection
from fedray.fusion.scaffold import Scaffold
from fedray.fusion.single_update import BestModel, NoFusion
from fedray.fusion.staleness import StalenessWeights, move_base, staleness_weight
from fedray.fusion.update_checks import (
    ExpectedUpdate,
    exceeds_norm,
    non_finite_reason,
    rejection_reason,
)

RULES: dict[str, Callable[..., FusionRule]] = {
    "fedavg": FedAvg,
    "iter_avg": IterAvg,
    "fedavgm": FedAvgM,
    "fedadagrad": FedOpt,
    "fedadam": FedOpt,
    "fedyogi": FedOpt,
    "fednova": FedNova,
    "scaffold": Scaffold,
    "best_model": BestModel,
    "ensemble": NoFusion,
    "doc2vec": Doc2Vec,
}
FUSIONS = {**RULES, **robust.ROBUST}

__all__ = [
    "FUSIONS",
    "RATE_SUM",
    "SUM",
    "Accumulator",
    "ExpectedUpdate",
    "FusionRule",
    "MaskedSum",
    "PrivateMean",
    "RoundContext",
    "StalenessWeights",
    "State",
    "adaptive_problems",
    "combine",
    "exceeds_norm",
    "from_config",
    "move_base",
    "named",
    "non_finite_reason",
    "notes",
    "problems",
    "rejection_reason",
    "rule_problems",
    "staleness_weight",
    "sum_rejection",
]


def problems(name: str) -> list[str]:
    """Describe an unknown rule's name; empty if it is known."""
    return (
        [] if name in FUSIONS else [describe_unknown("fusion_algorithm", name, FUSIONS)]
    )


def adaptive_problems(config: FederationConfig) -> list[str]:
    """Whether a rule can do without the parties' weights until they disagree."""
    name = config.fusion_algorithm
    means = sorted(n for n, rule in FUSIONS.items() if getattr(rule, "weight_by", None))
    if config.aggregation != "adaptive" or name in means or name not in FUSIONS:
        return []
    return [
        f"aggregation: adaptive measures how far parties are from their mean, and "
        f"{name} takes none; choose from {means}"
    ]


def rule_problems(config: FederationConfig, n_updates: int | None) -> list[str]:
    """What is wrong with the rule that a config asks for, and its settings.

    n_updates : the fewest that a round can go on with; None: not known.
    """
    mistakes = problems(config.fusion_algorithm)
    return mistakes or robust.find_problems(config, n_updates)


def named(name: str, **settings: Any) -> FusionRule:
    """Make a rule: ``named("fedavgm", momentum=0.5)``.

    Raises
    ------
    ConfigError
        If there is no such rule.
    """
    mistakes = problems(name)
    if mistakes:
        raise ConfigError(mistakes)
    if name in robust.ROBUST:
        return robust.make(name, **settings)
    rule = RULES[name]
    return rule(name, **settings) if rule is FedOpt else rule(**settings)


def notes(config: FederationConfig) -> list[str]:
    """Warnings about how a run fuses, for its log and report."""
    attack = config.attack
    return [attacks.warning(attack, config.num_parties or 0)] if attack else []


def from_config(config: FederationConfig, parameters: Collection[str]) -> FusionRule:
    """Make the rule of a config; `parameters` are what a step may move."""
    rule = _rule(config, parameters)
    if config.privacy and config.noise_for_parties:
        clip_norm = config.privacy.clip_norm
        fixed = clip_norm if isinstance(clip_norm, float) else None
        rule = PrivateMean(rule, fixed, config.privacy.clip_start)
    if config.attack is None or config.attack.kind not in attacks.ON_UPDATES:
        return rule
    places = (config.party_place(name) for name in config.attack.parties)
    hostile = frozenset(place for place in places if place is not None)
    return attacks.RuleUnderAttack(rule, config.attack, hostile, config.seed)


def _rule(config: FederationConfig, parameters: Collection[str]) -> FusionRule:
    name = config.fusion_algorithm
    settings: dict[str, Any] = {}
    if name in robust.ROBUST:
        return robust.make(name, **robust.settings(config))
    if FUSIONS.get(name) in (FedAvgM, FedOpt, FedNova, Scaffold):
        settings["parameters"] = frozenset(parameters)
        if config.server_learning_rate is not None:
            settings["learning_rate"] = config.server_learning_rate
    if FUSIONS.get(name) is FedAvgM:
        settings["momentum"] = config.server_momentum
    if FUSIONS.get(name) is FedOpt:
        settings["betas"] = (config.server_momentum, config.server_beta2)
        settings["tau"] = config.server_tau
    if FUSIONS.get(name) is BestModel:
        settings["adopt"] = config.adopt
    if FUSIONS.get(name) is Doc2Vec:
        settings = {"share": config.share, "cap": config.cap}
        settings["momentum"] = config.row_momentum
    return named(name, **settings)
