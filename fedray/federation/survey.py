"""Survey of the parties' data before round 1, where a run needs it.

Label names and categories get codes that all parties share, `normalize` its means and
deviations, and a model whose shape depends on the data its words or columns. What was
found is saved in the run's folder, from where a resumed run and predictions take it.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from fedray import data, models, placement
from fedray.aggregator import AggregatorPlan
from fedray.checkpoint import (
    RunFolder,
    read_with_digest,
    write_remedy,
    write_with_digest,
)
from fedray.config import FederationConfig, describe_mechanisms
from fedray.ensemble import InitialModels
from fedray.errors import (
    ConfigError,
    JoinFailed,
    OutOfMemory,
    RunFolderError,
    Stopped,
    format_count,
)
from fedray.federation.actors import Watch, placement_poll, startup_progress
from fedray.federation.memory_estimate import ModelBytes, run_bytes
from fedray.federation.node_tasks import party_tasks, run_on_nodes
from fedray.models import Blueprint, SurveyStep
from fedray.party import survey_parties
from fedray.placement import ActorPool
from fedray.report import format_bytes
from fedray.survey import (
    NORMALIZATION,
    DataCodes,
    DataSurvey,
    SavedSurvey,
    SurveyRequest,
    ValueCounts,
    differences,
    read_codes,
    read_survey,
)
from fedray.weights import Weights

WORDS = "vocabulary.json"
LOG = logging.getLogger("fedray")


def complete_plan(
    plan: AggregatorPlan,
    weights: dict[str | None, Weights],
    watch: Watch,
    may_join: bool,
) -> tuple[AggregatorPlan, dict[str | None, Weights]]:
    """Add to a plan what follows from the parties' data; plan, weights by group.

    Parties are surveyed if the model, the data handlers or the config need it.

    Raises
    ------
    JoinFailed
        Naming every party that could not be surveyed, or has other columns than most.
    RunFolderError
        If rounds are done and what they went by is lost or altered.
    """
    request = survey_request(plan.config, plan.handlers)
    if not request:
        _warn_of_start_model(plan.config, DataCodes())
        return plan, weights
    folder = Path(plan.folder)
    is_new = not RunFolder(folder).is_started()
    if is_new:
        survey = _survey_run(plan, request, watch, may_join)
        run = plan.run_id  # names the parties' folders
    else:
        survey, run = load_survey(folder, request)
    survey = without_private_data(plan.config, survey)
    _require_memory(plan, survey)
    plan, weights = _with_models(plan, weights, survey, run)
    if is_new:
        _save(plan, survey, run)
    codes = codes_of(plan.config, request, survey)
    _warn_of_start_model(plan.config, codes)
    return dataclasses.replace(plan, codes=codes), weights


def _require_no_edges(config: FederationConfig) -> None:
    """Refuse to survey parties that are outside the cluster.

    Raises
    ------
    ConfigError
    """
    if config.has_edges:
        what = f"data_handler {config.data_handler} does not go with edges"
        why = "it reads classes and columns by what all parties have, asked before"
        advice = "round 1: take one of numbers, such as npz, or a handler of your own"
        raise ConfigError([f"{what}: {why} {advice}"])


def without_private_data(config: FederationConfig, survey: DataSurvey) -> DataSurvey:
    """A survey as a run with a privacy mechanism may keep it: names of columns alone.

    No noise covers what a survey counts.

    Raises
    ------
    ConfigError
        If the parties' data can only be read by what they all hold.
    """
    if not config.privacy_mechanisms:
        return survey
    if survey.labels or survey.categories or survey.values or survey.words:
        mechanisms = describe_mechanisms(config.privacy_mechanisms)
        what = "names of classes or categories in the parties' data"
        why = "would leave them without noise: give their numbers instead"
        raise ConfigError([f"{what} do not go with {mechanisms}: they {why}"])
    return dataclasses.replace(survey, moments={}, n_samples=0)


def _require_memory(plan: AggregatorPlan, survey: DataSurvey) -> None:
    """Refuse a model of the parties' words that is too large for the run.

    Raises
    ------
    OutOfMemory
    """
    config, step = plan.config, models.named(plan.config.model_type).survey
    if config.max_memory is None or step is None:
        return
    size, parties = step.size(config, survey), config.num_parties or 1
    model = ModelBytes(size.n_bytes, size.n_bytes)
    needed = run_bytes(config.model_type, model, [0] * parties)
    if needed > config.max_memory:
        at = format_count(parties, "party", "parties")
        why = (
            f"needs about {format_bytes(needed)} for {size.of} at {at}, and may take "
            f"{format_bytes(config.max_memory)}"
        )
        raise OutOfMemory("the training", why, size.advice)


def codes_of(
    config: FederationConfig, request: SurveyRequest, survey: DataSurvey
) -> DataCodes:
    """What parties read their data by after a survey."""
    return survey.codes(config.normalize == "federated", request.missing)


def survey_request(
    config: FederationConfig, handlers: Mapping[str, data.HandlerSource]
) -> SurveyRequest:
    """What the parties of a run are asked for before round 1; False for nothing.

    Raises
    ------
    ConfigError
        If some are edges, of whom nobody knows when they come.
    """
    members = {config.model_type: config} | {
        own.model_type: own
        for place in range(len(config.parties) if config.has_member_models else 0)
        if (own := config.member(place))
    }
    request = SurveyRequest(
        codes=any(map(data.needs_codes, handlers.values())),
        moments=config.normalize == "federated",
        missing=config.normalize == "federated",
        channels_first=config.model_type == "pytorch",
    )
    for model_type, own in members.items():
        step = models.named(model_type).survey
        request |= step.request(own) if step else SurveyRequest()
    if request:
        _require_no_edges(config)
    return request


def survey_pools(
    config: FederationConfig,
    blueprint: Blueprint,
    pools: list[ActorPool],
    request: SurveyRequest,
    poll: Callable[[], None] = lambda: None,
) -> tuple[DataSurvey | None, dict[str, str]]:
    """Survey the parties of some pools, where their data is.

    Who joins in a later round goes by what the others had before round 1.

    Returns
    -------
    All their surveys merged, in no order; None if a party failed, or has other columns.
    And for each such party the reason.
    """
    if not request.words:
        pools = [pool for pool in pools if not _joins_later(config, pool)]
    tasks = party_tasks(config, blueprint, pools, survey_parties, (request,))
    surveys, failures = run_on_nodes(tasks, config.round_timeout_s, poll=poll)
    failures = failures or differences(surveys)
    if failures:
        return None, failures
    return DataSurvey.merge(list(surveys.values())), {}


def _warn_of_start_model(config: FederationConfig, codes: DataCodes) -> None:
    """Say where a model was trained on other numbers than it gets now."""
    if not config.model_file:
        return
    path = Path(config.model_file)
    before = read_codes(path if path.is_dir() else path.parent)
    if before is None:
        return
    where = f"model_file {path} was trained by the {NORMALIZATION} beside it"
    if before.normalize != codes.normalize:
        was = "standardised" if before.normalize else "not standardised"
        LOG.warning("%s: its inputs were %s, this run's are not so", where, was)
    old, new = before.labels, codes.labels
    moved = [label for k, label in enumerate(old) if label not in new[k : k + 1]]
    if codes.labels and moved:
        n_moved = format_count(len(moved), "label")
        LOG.warning("%s: %s had other class numbers there", where, n_moved)


def _joins_later(config: FederationConfig, pool: ActorPool) -> bool:
    parties = [config.parties[place] for place in pool.parties if config.parties]
    return any(party.joined is not None and party.joined > 1 for party in parties)


def complete_models(
    initial: InitialModels, survey: DataSurvey, run: str
) -> InitialModels:
    """The models that a run starts from, completed where their shape needs the data.

    Raises
    ------
    ConfigError
        If there is no such model.
    """
    blueprints, weights = dict(initial.blueprints), dict(initial.weights)
    members = list(initial.members)
    for place, (name, blueprint) in enumerate(initial.blueprints.items()):
        config = members[place][0] if members else initial.config
        step = models.named(config.model_type).survey
        if blueprint.schema or step is None:
            continue
        blueprints[name], weights[name] = step.complete(config, survey, run)
        if members:
            members[place] = config, blueprints[name]
    return InitialModels(initial.config, blueprints, weights, tuple(members))


def load_blueprint(folder: Path, config: FederationConfig) -> Blueprint:
    """Load the complete blueprint of a run that has begun.

    Raises
    ------
    RunFolderError
        If what it was made of is lost or altered.
    """
    blueprint, _ = models.named(config.model_type).read(config)
    if not blueprint.schema:
        request = _survey_step(config).request(config)
        saved = load_survey(folder, request)
        blueprint, _ = _survey_step(config).complete(config, *saved)
    return blueprint


def load_survey(folder: Path, request: SurveyRequest) -> tuple[DataSurvey, str]:
    """Load what the parties of a run told before round 1, and the run's id.

    Raises
    ------
    RunFolderError
        If it is lost or altered.
    """
    if request.words:
        return _load_words(folder)
    saved = read_survey(folder)
    return saved.survey, saved.run


def _survey_step(config: FederationConfig) -> SurveyStep:
    step = models.named(config.model_type).survey
    if step is None:
        raise TypeError(f"model_type {config.model_type} reads no complete blueprint")
    return step


def _survey_run(
    plan: AggregatorPlan, request: SurveyRequest, watch: Watch, may_join: bool
) -> DataSurvey:
    config = plan.config
    wait_s = config.placement_timeout_s if may_join else 0
    poll = placement_poll(plan, watch)
    stage = "counting words" if request.words else "surveying the parties' data"
    progress = startup_progress(stage, plan)
    try:
        pools = placement.wait_for_placement(wait_s, config, poll=poll)
        survey, failures = survey_pools(
            config, plan.blueprint, pools, request, lambda: watch(progress)
        )
    except KeyboardInterrupt:
        raise Stopped(0, config.rounds, plan.folder) from None
    if survey is None:
        raise JoinFailed(failures, config.errors_log)
    return survey


def models_of(
    plan: AggregatorPlan, weights: Mapping[str | None, Weights]
) -> InitialModels:
    """The models of a plan, with their weights."""
    blueprints: dict[str | None, Blueprint] = {
        plan.config.party_name(place): blueprint
        for place, (_, blueprint) in enumerate(plan.members)
    }
    blueprints = blueprints or {None: plan.blueprint}
    return InitialModels(plan.config, blueprints, dict(weights), plan.members)


def _with_models(
    plan: AggregatorPlan,
    weights: dict[str | None, Weights],
    survey: DataSurvey,
    run: str,
) -> tuple[AggregatorPlan, dict[str | None, Weights]]:
    """The plan and weights with models that are complete."""
    initial = complete_models(models_of(plan, weights), survey, run)
    first = next(iter(initial.blueprints.values()))
    plan = dataclasses.replace(plan, blueprint=first, members=initial.members)
    return plan, initial.weights


def _save(plan: AggregatorPlan, survey: DataSurvey, run: str) -> None:
    """Save what a resumed run and predictions go by.

    Of words those of the model only: rare words stay at the parties.
    """
    folder = Path(plan.folder)
    if survey.words is None:
        saved = SavedSurvey(survey, run, plan.config.normalize == "federated")
        try:
            saved.write(folder)
        except OSError as error:
            reason = f"cannot write {NORMALIZATION}: {error.strerror}"
            raise RunFolderError(str(folder), reason, write_remedy(error)) from None
        return
    counts, words = survey.words, plan.blueprint.plan.words
    own = {word: [counts.counts[word], counts.parties[word]] for word in words}
    text = json.dumps({"run": run, "words": own}, ensure_ascii=False)
    write_with_digest(folder, WORDS, text)


def _load_words(folder: Path) -> tuple[DataSurvey, str]:
    try:
        saved = json.loads(read_with_digest(folder, WORDS))
    except (OSError, ValueError):
        reason = f"its {WORDS} is lost or altered: rows would get other words"
        raise RunFolderError(str(folder), f"cannot go on, {reason}") from None
    counts = {word: count for word, (count, _) in saved["words"].items()}
    parties = {word: n_parties for word, (_, n_parties) in saved["words"].items()}
    return DataSurvey(words=ValueCounts(counts, parties)), saved["run"]
