"""Training alone: what a party would have of its own data, without the federation.

Every round's passes are trained from the party's own weights, with the seeds of the
federation's rounds and without a fusion. Nothing is kept: asked again, it is trained
again, to the same bits.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fedray import models
from fedray.messages import PartyScores
from fedray.models import FreezableModel, Model
from fedray.party.loading import GroupPlan, LocalData, party_slices
from fedray.party.local_training import copy_rows
from fedray.party.personal import PersonalState, split_by_bytes
from fedray.party.progress import ProgressReporter
from fedray.policy import merge_parties
from fedray.weights import Weights, n_bytes, row

Rates = Mapping[int, float]  # by round
# keys that tie a party to the global model, or divide its training; and without
ALONE = {"proximal_mu": 0.0, "personal_epochs": 0}


class Compared(NamedTuple):
    """The parties of an actor: their data, what they keep, how far training is.

    rates : by round, where the aggregator decided on the learning rate.
    """

    plan: GroupPlan
    local_data: LocalData
    personal: PersonalState
    progress: ProgressReporter
    rates: Rates


def score_models(
    compared: Compared,
    weights: tuple[Weights, Weights, Weights],
    parties: np.ndarray,
    rounds: int,
) -> dict[str, PartyScores]:
    """Scores on each party's own tests: of the global model, its own, and one alone.

    Parameters
    ----------
    weights : before round 1, after all rounds, and those that travel once.
    parties : (K,) places in the config; who has no test samples is left out.
    rounds : whose passes each party trains alone.
    """
    plan, data, personal, progress, _ = compared
    first, final, frozen = weights
    frozen = {n: frozen[n] for n in frozen.keys() - {*first, *personal.names}}
    if plan.config.finetune_epochs:
        _train_on(compared, personal.complete(final), parties, rounds)
    parties = parties[data.has_tests(parties - plan.parties.start)]
    places, first = parties - plan.parties.start, personal.complete(first)
    final = personal.complete(final)
    by_model: dict[str, PartyScores | None] = {}
    if not personal.names:
        shared = data.score(final, parties=places, round=rounds)
        by_model["global"] = shared.by_party
    if plan.config.has_own_models:
        by_model["own"] = personal.score_last(data, final, places, rounds).by_party
    if plan.config.compare == "local":
        alone = data._replace(model=_make_alone(plan, data, frozen))
        progress.begin(len(parties) * rounds)
        alone.model.on_progress = progress.advance
        compared = compared._replace(local_data=alone)
        by_model["alone"] = _score_alone(compared, first, parties, rounds)
    return {
        name: scores._replace(parties=scores.parties + plan.parties.start)
        for name, scores in by_model.items()
        if scores is not None
    }


def _train_on(
    compared: Compared, weights: Weights, parties: np.ndarray, rounds: int
) -> None:
    """Train each party's own model on from the global weights, and keep it."""
    plan, data, personal, progress, _ = compared
    slices = party_slices(plan, data, rounds + 1, parties)
    progress.begin(len(slices))

    def finish(n_parties: int) -> None:
        progress.finish(n_parties)
        if isinstance(data.model, FreezableModel):
            data.model.fixed.restore()

    personal.finetune(data, weights, slices, finish)


def _make_alone(plan: GroupPlan, local_data: LocalData, frozen: Weights) -> Model:
    """A model that nothing ties to a global one."""
    changes = {key: off for key, off in ALONE.items() if getattr(plan.config, key)}
    config = local_data.config.with_changes(**changes)
    adapter = models.named(plan.blueprint.model_type)
    model = adapter.make(plan.blueprint, config, local_data.model.device)
    if frozen and isinstance(model, FreezableModel):
        model.fix(frozen)
    return model


def _score_alone(
    compared: Compared, weights: Weights, parties: np.ndarray, rounds: int
) -> PartyScores | None:
    """Train parties alone from `weights`, and score each on its own tests."""
    scores, first = [], compared.plan.parties.start
    for which in split_by_bytes(len(parties), n_bytes(weights)):
        chunk = parties[which]
        arrays = _train(compared, weights, chunk, rounds)
        for k in range(len(chunk)):
            own, place = row(arrays, k), chunk[k : k + 1] - first
            scores.append(compared.local_data.score(own, parties=place, round=rounds))
    return merge_parties(scores)


def _train(
    compared: Compared, weights: Weights, parties: np.ndarray, rounds: int
) -> Weights:
    """Each party's own weights (K, *shape) after all rounds from the same weights."""
    own: Weights = {}
    plan, data, _, progress, rates = compared
    for number in range(1, rounds + 1):
        slices, end = party_slices(plan, data, number, parties), 0
        slices = [s._replace(learning_rate=rates.get(number)) for s in slices]
        if own:
            slices = [s._replace(start=row(own, k)) for k, s in enumerate(slices)]
        for losses, stack in data.model.train_each(weights, slices, data.train):
            which = slice(end, end := end + len(losses))
            if isinstance(data.model, FreezableModel):
                data.model.fixed.restore()
            copy_rows(own, which, stack, len(parties))
            progress.finish(len(losses))
    return own
