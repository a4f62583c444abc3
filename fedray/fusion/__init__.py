"""Fusion rules by name."""

from collections.abc import Collection
from typing import Any

from fedray.config import FederationConfig, describe_unknown
from fedray.errors import ConfigError
from fedray.fusion import attacks, robust
from fedray.fusion.base import (
    Accumulator,
    FusionRule,
    RoundContext,
    State,
    combine,
)
from fedray.fusion.best_model import BestModel
from fedray.fusion.doc2vec import Doc2Vec
from fedray.fusion.mean import FedAvg, IterAvg
from fedray.fusion.no_fusion import NoFusion
from fedray.fusion.server_optimizers import FedAvgM, FedOpt
from fedray.fusion.update_checks import (
    ExpectedUpdate,
    exceeds_norm,
    non_finite_reason,
    rejection_reason,
)

FUSIONS = {
    "fedavg": FedAvg,
    "iter_avg": IterAvg,
    "fedavgm": FedAvgM,
    "fedadagrad": FedOpt,
    "fedadam": FedOpt,
    "fedyogi": FedOpt,
    "best_model": BestModel,
    "ensemble": NoFusion,
    **robust.ROBUST,
    "doc2vec": Doc2Vec,
}

__all__ = [
    "FUSIONS",
    "Accumulator",
    "ExpectedUpdate",
    "FusionRule",
    "RoundContext",
    "State",
    "adaptive_problems",
    "combine",
    "configured",
    "exceeds_norm",
    "misfits",
    "named",
    "non_finite_reason",
    "notes",
    "problems",
    "rejection_reason",
]


def problems(name: str) -> list[str]:
    """What is wrong with a rule's name."""
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


def misfits(config: FederationConfig, n_updates: int | None) -> list[str]:
    """What is wrong with the rule that a config asks for, and its settings.

    n_updates : the fewest that a round can go on with; None: not known.
    """
    found = problems(config.fusion_algorithm)
    return found or robust.problems(config, n_updates)


def named(name: str, **settings: Any) -> FusionRule:
    """Make a rule: ``named("fedavgm", momentum=0.5)``.

    Raises
    ------
    ConfigError
        If there is no such rule.
    """
    found = problems(name)
    if found:
        raise ConfigError(found)
    rule = FUSIONS[name]
    if name in robust.ROBUST:
        return robust.made(name, **settings)
    return rule(name, **settings) if rule is FedOpt else rule(**settings)


def notes(config: FederationConfig) -> list[str]:
    """What whoever follows a run must know of how it fuses."""
    attack = config.attack
    return [attacks.told(attack, config.num_parties)] if attack else []


def configured(config: FederationConfig, parameters: Collection[str]) -> FusionRule:
    """Make the rule that a config asks for; `parameters` are what a step may move."""
    rule = _rule(config, parameters)
    if config.attack is None or config.attack.kind not in attacks.ON_UPDATES:
        return rule
    places = frozenset(config.party_place(name) for name in config.attack.parties)
    return attacks.Attacked(rule, config.attack, places, config.seed)


def _rule(config: FederationConfig, parameters: Collection[str]) -> FusionRule:
    name, settings = config.fusion_algorithm, {}
    if name in robust.ROBUST:
        return robust.made(name, **robust.settings(config))
    if FUSIONS.get(name) in (FedAvgM, FedOpt):
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
