"""Party groups as plain objects, and an aggregator's rounds as plain calls. No Ray."""

import numpy as np
import torch
from torch import nn

from fedray import data, fusion, models, policy
from fedray.config import parse
from fedray.messages import ActorLocation, Update
from fedray.party import GroupPlan, PartyGroup
from fedray.weights import cast

HERE = ActorLocation("here")


def federation(settings: dict) -> tuple[dict, dict[str, PartyGroup], list]:
    """Initial weights, parties as plain objects, and the config."""
    config, found = parse(settings)
    assert found == []
    blueprint, weights = models.named(config.model_type).read(config)
    handler = data.named(config.data_handler)
    parties = {
        party.name: PartyGroup(
            GroupPlan(party.name, range(i, i + 1), config, blueprint, handler),
            lambda: HERE,
        )
        for i, party in enumerate(config.parties)
    }
    return weights, parties, config


def train(
    party: PartyGroup, round: int, weights: dict, state: dict | None = None
) -> Update:
    """One party's round on one thread, as in an actor of one core.

    On some processors a product's last bits depend on how many threads share it.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return party.train(round, np.array(party.plan.parties), weights, state)[1]
    finally:
        torch.set_num_threads(n_threads)


def fedray_rounds(settings: dict) -> dict[str, np.ndarray]:
    """The rounds as the aggregator runs them, with plain calls for actors."""
    return fedray_rounds_and_state(settings)[0]


def fedray_rounds_and_state(settings: dict) -> tuple[dict[str, np.ndarray], dict]:
    """The last weights, and the state of the fusion rule."""
    weights, parties, config = federation(settings)
    some = next(iter(parties.values()))
    rule = fusion.from_config(config, some.plan.blueprint.parameters)
    blueprint = some.plan.blueprint
    weights = {name: weights[name] for name in blueprint.round_schema(())}
    state, rule.n_parties = rule.init(weights), len(parties)
    for round in range(1, config.rounds + 1):
        fraction = config.party_fraction
        n_chosen = policy.count_chosen(len(parties), fraction)
        chosen = policy.select_random(
            np.arange(len(parties)), n_chosen, config.seed, round
        )
        names = (config.party_name(i) for i in chosen)
        trained = (train(parties[name], round, weights, state) for name in names)
        terms = (rule.to_additive(update, weights, state) for update in trained)
        context = fusion.RoundContext(round, weights, state)
        combined = fusion.combine(rule, terms, context)
        weights, state = rule.step(weights, combined, state)
        weights = cast(weights, blueprint.round_schema(()))
    return blueprint.complete(weights), state


def mlp_of(settings: dict) -> nn.Module:
    torch.manual_seed(settings.get("seed", 0))
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))


def group_of(settings: dict, parties: range) -> tuple[PartyGroup, dict]:
    config, found = parse(settings)
    assert found == []
    blueprint, weights = models.named(config.model_type).read(config)
    handler = data.named(config.data_handler)
    plan = GroupPlan("g", parties, config, blueprint, handler)
    return PartyGroup(plan, lambda: ActorLocation("n")), weights
