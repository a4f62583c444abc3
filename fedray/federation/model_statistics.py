"""Statistics of all parties' samples, of which a model is made before round 1.

A pipeline's steps are fitted one behind the other, so parties may be asked several
times. What they counted is saved in the run's folder, from where a resumed run takes
it.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedray import models, placement
from fedray.aggregator import AggregatorPlan
from fedray.checkpoint import RunFolder, read_with_digest, write_with_digest
from fedray.ensemble import InitialModels
from fedray.errors import JoinFailed, RunFolderError, Stopped
from fedray.federation.actors import Watch, placement_poll, startup_progress
from fedray.federation.node_tasks import party_tasks, run_on_nodes
from fedray.federation.survey import models_of
from fedray.models import Blueprint
from fedray.party import count_statistics
from fedray.placement import ActorPool
from fedray.survey import SINGLE, DataCodes, DataSurvey, ValueCounts, differences
from fedray.weights import Weights

FILE = "statistics.json"

Counts = dict[str | None, DataSurvey]  # by model: under None the one that all share


def complete_by_statistics(
    plan: AggregatorPlan,
    weights: dict[str | None, Weights],
    watch: Watch,
    may_join: bool,
) -> tuple[AggregatorPlan, dict[str | None, Weights]]:
    """Complete the models that are made of what parties count of their samples.

    Raises
    ------
    JoinFailed
        Naming every party that could not count, or has other columns than most.
    ConfigError
        If there is no such model.
    RunFolderError
        If rounds are done and what was counted is lost or altered.
    """
    initial = models_of(plan, weights)
    plan = dataclasses.replace(plan, codes=codes_with_gaps(initial, plan.codes))
    if not any(map(_is_incomplete, initial.blueprints.values())):
        return plan, weights
    folder, codes = Path(plan.folder), plan.codes
    if RunFolder(folder).is_started():
        saved = iter(_load(folder))
        initial, _ = complete_by_counts(initial, codes, lambda _: next(saved))
    else:
        ask = _ask_from_run(plan, watch, may_join)
        initial, stages = complete_by_counts(initial, codes, ask)
        _save(folder, stages)
    blueprint = next(iter(initial.blueprints.values()))
    plan = dataclasses.replace(plan, blueprint=blueprint, members=initial.members)
    return plan, initial.weights


def _is_incomplete(blueprint: Blueprint) -> bool:
    """Whether its parties have to count something before it has any weights."""
    step = models.named(blueprint.model_type).statistics
    return step is not None and not blueprint.schema


def codes_with_gaps(
    initial: InitialModels, codes: DataCodes | None
) -> DataCodes | None:
    """The codes, by which samples may have missing values if a model fills them in."""
    for blueprint in initial.blueprints.values():
        codes = models.codes_for(blueprint, codes)
    return codes


def complete_by_counts(
    initial: InitialModels,
    codes: DataCodes | None,
    ask: Callable[[InitialModels], Counts],
) -> tuple[InitialModels, list[Counts]]:
    """Complete models by what parties count, asked as often as it takes.

    Returns
    -------
    The models, and what was counted each time.
    """
    stages: list[Counts] = []
    blueprints, weights = dict(initial.blueprints), dict(initial.weights)
    members = list(initial.members)
    while any(map(_is_incomplete, blueprints.values())):
        stages.append(ask(initial))
        for place, (name, blueprint) in enumerate(initial.blueprints.items()):
            step = models.named(blueprint.model_type).statistics
            if step is None or not _is_incomplete(blueprint):
                continue
            config = members[place][0] if members else initial.config
            new, own = step.complete(config, blueprint, stages[-1][name], codes)
            new = dataclasses.replace(new, metrics=blueprint.metrics)
            blueprints[name], weights[name] = new, own
            if members:
                members[place] = config, new
        initial = InitialModels(initial.config, blueprints, weights, tuple(members))
    return initial, stages


def ask_parties(
    initial: InitialModels,
    pools: list[ActorPool],
    codes: DataCodes | None,
    poll: Callable[[], None] = lambda: None,
) -> Counts:
    """Ask the parties of some pools to count what their models need next.

    Raises
    ------
    JoinFailed
        Naming every party that could not, or has other columns than most.
    """
    tasks, model_of = [], dict[str, str | None]()
    for name, own_pools in _pools_by_model(initial, pools).items():
        place = own_pools[0].parties.start
        config = initial.members[place][0] if initial.members else initial.config
        blueprint = initial.blueprints[name]
        if _is_incomplete(blueprint):
            own = party_tasks(config, blueprint, own_pools, count_statistics, (codes,))
            model_of |= {task.name: name for task in own}
            tasks += own
    counts, failures = run_on_nodes(tasks, initial.config.round_timeout_s, poll=poll)
    inputs = {name: _of_inputs(one) for name, one in counts.items()}
    failures = failures or differences(inputs)
    if failures:
        raise JoinFailed(failures, initial.config.errors_log)
    if not initial.members:
        return {None: DataSurvey.merge(list(counts.values()))}
    return _with_all_labels({model_of[name]: one for name, one in counts.items()})


def _pools_by_model(
    initial: InitialModels, pools: list[ActorPool]
) -> dict[str | None, list[ActorPool]]:
    by_model: dict[str | None, list[ActorPool]] = {}
    for pool in pools:
        place = pool.parties.start
        name = initial.config.party_name(place) if initial.members else None
        by_model.setdefault(name, []).append(pool)
    return by_model


def _of_inputs(counts: DataSurvey) -> DataSurvey:
    """What was counted of samples as they are, without a model's steps."""
    own = {key: part for key, part in counts.moments.items() if key == SINGLE}
    return dataclasses.replace(counts, moments=own)


def _with_all_labels(counts: Counts) -> Counts:
    """Members tell apart the classes that any of them has."""
    parts = [one.labels for one in counts.values() if one.labels]
    labels = ValueCounts.merge(parts) if parts else None
    return {k: dataclasses.replace(one, labels=labels) for k, one in counts.items()}


def _ask_from_run(
    plan: AggregatorPlan, watch: Watch, may_join: bool
) -> Callable[[InitialModels], Counts]:
    """How a run asks its parties, once they are placed."""
    wait_s = plan.config.placement_timeout_s if may_join else 0
    progress = startup_progress("counting statistics", plan)
    poll_placement = placement_poll(plan, watch)

    def ask(initial: InitialModels) -> Counts:
        try:
            pools = placement.wait_for_placement(
                wait_s, plan.config, poll=poll_placement
            )
            return ask_parties(initial, pools, plan.codes, lambda: watch(progress))
        except KeyboardInterrupt:
            raise Stopped(0, plan.config.rounds, plan.folder) from None

    return ask


def _save(folder: Path, stages: list[Counts]) -> None:
    plain = [
        [[name, survey.to_json()] for name, survey in stage.items()] for stage in stages
    ]
    text = json.dumps(plain)
    write_with_digest(folder, FILE, text)


def _load(folder: Path) -> list[Counts]:
    try:
        plain: list[list[Any]] = json.loads(read_with_digest(folder, FILE))
        return [
            {name: DataSurvey.from_json(survey) for name, survey in stage}
            for stage in plain
        ]
    except (OSError, ValueError, KeyError, TypeError):
        reason = f"its {FILE} is lost or altered: the model would be another one"
        raise RunFolderError(str(folder), f"cannot go on, {reason}") from None
