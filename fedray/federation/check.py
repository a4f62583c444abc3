"""`fedray check`: a dry run that probes cluster, data and model, without training."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import ray

from fedray import data, fusion, placement, policy, user_code
from fedray.config import SIMILARITY, FederationConfig, PartySpec
from fedray.ensemble import (
    InitialModels,
    MemberSignature,
    incompatible_members,
    workflow_of,
)
from fedray.errors import ConfigError, FedrayError, JoinFailed
from fedray.federation.connection import cluster_connection
from fedray.federation.edge_door import edge_notes
from fedray.federation.memory_estimate import (
    memory_needed,
    memory_problem,
    node_entry,
    noise_notes,
)
from fedray.federation.model_statistics import (
    ask_parties,
    codes_with_gaps,
    complete_by_counts,
)
from fedray.federation.node_tasks import NodeTask, run_on_nodes
from fedray.federation.run import folder_of_run
from fedray.federation.survey import (
    codes_of,
    complete_models,
    survey_pools,
    survey_request,
    without_private_data,
)
from fedray.federation.traffic import round_bytes
from fedray.fusion import scaffold
from fedray.messages import ProbeResult
from fedray.models import Blueprint
from fedray.party import GroupPlan, bytes_kept, probe_party
from fedray.placement import ActorPool, Node
from fedray.report import format_bytes
from fedray.survey import DataCodes
from fedray.weights import encoding, size_of

TEST_DATA = "aggregator"  # whose probe looks at `test_data`
N_PER_NODE = 4  # probes at a time: each is a process with a framework

UNREPEATED = (
    "party {}: a second training from the same weights gave other numbers in {}, so "
    "that a run that was killed or resumed gives other bits; let train() depend on "
    "weights, data and context alone (context.seed)"
)

UNREPEATED_SAMPLES = (
    "party {}: a second pass over its data gave other {}, so that a run that was "
    "killed or resumed gives other bits; let the dataset begin anew at each pass "
    "(set_epoch says which) and draw from the numbers of random, numpy and torch "
    "alone, which are seeded"
)

KEPT = (
    "each party keeps {} of control variates in party_dir on its node for each of up "
    "to {} rounds that may be repeated, and the last before them"
)

OWN = "each party keeps about {} of its own layers or model in party_dir on its node"

Blueprints = Mapping[str | None, Blueprint]  # by member; under None the global model
Probes = Mapping[str, ProbeResult]  # by actor, or TEST_DATA


@dataclass
class CheckResult:
    """What a check found; a run would stop at any of the `problems`."""

    problems: list[str] = field(default_factory=list)
    model: dict[str, Any] | None = None
    nodes: list[dict[str, Any]] = field(default_factory=list)
    parties: list[dict[str, Any]] = field(default_factory=list)
    bytes_per_round: int | None = None  # every round that fuses, the first ones aside
    code: list[dict[str, Any]] = field(default_factory=list)  # files that travel
    notes: list[str] = field(default_factory=list)  # what must be known of the model
    privacy: list[dict[str, Any]] = field(default_factory=list)  # what would be spent

    def to_json(self) -> dict[str, Any]:
        """Plain data; of privacy only where there is some."""
        plain = {"ok": not self.problems, **vars(self)}
        if not self.privacy:
            del plain["privacy"]
        return plain


def check(config: FederationConfig) -> CheckResult:
    """Check the cluster that a run would use, every party's data, and the model.

    Each party's data is read and the model tried on it in a task on its own node.
    Nodes that have not joined yet are not waited for.

    Raises
    ------
    ClusterError
        If there is no cluster.
    """
    initial, problems = _read_models(config)
    with cluster_connection(job="fedray:check"):
        nodes = placement.nodes()
        config, pools, unplaced = _place(config, nodes)
        pools = [pool for pool in pools if not pool.kind]  # not edges: they may sleep
        initial, probes, failures = _look_at_data(config, initial, pools)
        blueprints = initial.blueprints if initial else {}
        in_rounds = blueprints_in_rounds(blueprints, probes)
        size = _size_of(config, initial, in_rounds)
        n_bytes = round_bytes(config, in_rounds, pools) if size else None
        parties = list(_party_entries(config, pools, nodes, probes))
        model_bytes = size["bytes"] if size else 0
        node_entries = [
            node_entry(node, memory_needed(node, pools, probes, model_bytes))
            for node in nodes
        ]
        problems += unplaced + failures
        problems += filter(None, map(memory_problem, node_entries))
        problems += find_mismatches(probes, config)
        problems += find_missing_tests(probes, config)
    code = list(_code_entries(config))
    notes = [*dict.fromkeys(_notes(config, blueprints, probes))]
    privacy, impossible = _privacy_entries(config, pools, probes)
    problems += impossible
    return CheckResult(
        problems, size, node_entries, parties, n_bytes, code, notes, privacy
    )


def _privacy_entries(
    config: FederationConfig, pools: list[ActorPool], probes: Probes
) -> tuple[list[dict[str, Any]], list[str]]:
    """What would be spent of parties' and of samples' privacy; and problems."""
    n_samples = [
        probes[pool.actors[0]].n_train // len(pool.parties)
        for pool in pools
        if pool.actors[0] in probes
    ]
    try:
        forecasts = policy.forecast_privacy(config, n_samples)
    except ConfigError as error:
        return [], error.problems
    own = [vars(forecast) | {"lines": forecast.lines()} for forecast in forecasts]
    return own, []


def _notes(
    config: FederationConfig, blueprints: Blueprints, probes: Probes
) -> Iterator[str]:
    """What must be known of a run that could begin."""
    yield from policy.goal_notes(config)
    yield from policy.privacy_notes(config)
    yield from edge_notes(config, folder_of_run(config, None))
    for blueprint in blueprints.values():
        yield from [*blueprint.notes, *noise_notes(config, blueprint.schema)]
        rule = fusion.from_config(config, blueprint.shared_parameters)
        if n_bytes := scaffold.control_bytes(rule, blueprint.schema):
            yield KEPT.format(format_bytes(n_bytes), config.n_repeatable_rounds)
        if n_bytes := bytes_kept(blueprint, config):
            yield OWN.format(format_bytes(n_bytes))
    for name, probe in probes.items():
        yield from (f"party {name}: {note}" for note in probe.notes)
        if probe.unrepeated:
            yield UNREPEATED.format(name, probe.unrepeated)
        if probe.unrepeated_samples:
            yield UNREPEATED_SAMPLES.format(name, probe.unrepeated_samples)


def _code_entries(config: FederationConfig) -> Iterator[dict[str, Any]]:
    """Each file of user code that is sent to parties, and the files that it imports."""
    models = [config, *map(config.member, range(len(config.parties)))]
    is_source = user_code.is_source
    specs = {
        one.architecture: "architecture"
        for one in models
        if one.architecture and is_source(one.architecture)
    }
    for key in ("model_type", "loss"):
        named = (getattr(one, key) or "" for one in models)
        specs |= dict.fromkeys(filter(is_source, named), key)
    specs |= dict.fromkeys(filter(is_source, config.metrics), "metrics")
    handlers = filter(user_code.is_source, config.handlers())
    specs |= dict.fromkeys(handlers, "data_handler")
    for spec, key in specs.items():
        source = user_code.read(spec, key)
        imports = [source.path_of(imported) for imported in source.imports]
        yield {"code": spec, "imports": imports, "bytes": source.n_bytes}


def blueprints_in_rounds(blueprints: Blueprints, probes: Probes) -> Blueprints:
    """Blueprints whose schemas are what travels every round: frozen tensors go once.

    Those that a step of training moved at a party travel all the same.
    """
    narrow = {}
    for member, blueprint in blueprints.items():
        names = {
            name
            for actor, probe in probes.items()
            if member in (None, actor)
            for name in probe.moved
        }
        schema = blueprint.round_schema(set(blueprint.frozen) - names)
        narrow[member] = dataclasses.replace(blueprint, schema=schema)
    return narrow


def _read_models(
    config: FederationConfig,
) -> tuple[InitialModels | None, list[str]]:
    """Read every model as a run would; and problems."""
    try:
        return workflow_of(config).read(), []
    except FedrayError as error:
        return None, [str(error)]


def _size_of(
    config: FederationConfig, initial: InitialModels | None, in_rounds: Blueprints
) -> dict[str, Any] | None:
    """The size of all models; None of those that a run makes of the parties' words."""
    if initial is None:
        return None
    if not all(blueprint.schema for blueprint in initial.blueprints.values()):
        return None
    return model_size(config, initial.blueprints, in_rounds)


def _place(
    config: FederationConfig, nodes: list[Node]
) -> tuple[FederationConfig, list[ActorPool], list[str]]:
    """Place all parties that a node can take; a problem for each of the others."""
    if config.partition is not None:
        return config, placement.place_federation(config, nodes), []
    able, problems = [], []
    for party in config.parties:
        if any(node.has_labels(party.labels) for node in nodes):
            able.append(party)
            continue
        wanted = placement.describe_labels(party.labels)
        available = placement.describe_nodes(nodes)
        problems.append(f"party {party.name}: wanted {wanted}; found {available}")
    config = config.with_changes(parties=tuple(able), num_parties=len(able))
    return config, placement.place_federation(config, nodes), problems


def _look_at_data(
    config: FederationConfig, initial: InitialModels | None, pools: list[ActorPool]
) -> tuple[InitialModels | None, dict[str, ProbeResult], list[str]]:
    """Survey the parties if the run would, then probe the data of each pool.

    Returns
    -------
    The models, complete if they could be; what the probes found, and a problem for each
    failure. Words are not counted: a model of documents is made when the run starts.
    """
    if initial is None:
        return None, {}, []
    try:
        initial, codes = _survey(config, initial, pools)
    except JoinFailed as error:
        problems = [f"party {name}: {why}" for name, why in error.reasons.items()]
        return initial, {}, problems
    except FedrayError as error:
        return initial, {}, [str(error)]
    tasks = list(_probe_tasks(config, initial, pools, codes))
    probes, failures = run_on_nodes(tasks, config.round_timeout_s, N_PER_NODE)
    problems = [f"party {name}: {why}" for name, why in failures.items()]
    return initial, probes, problems


def _survey(
    config: FederationConfig, initial: InitialModels, pools: list[ActorPool]
) -> tuple[InitialModels, DataCodes | None]:
    """What a run asks its parties before round 1: completed models, and codes."""
    handlers = {name: data.named(name) for name in config.handlers()}
    request, codes = survey_request(config, handlers), None
    if request and not request.words:
        blueprint = next(iter(initial.blueprints.values()))
        survey, failures = survey_pools(config, blueprint, pools, request)
        if survey is None:
            raise JoinFailed(failures)
        survey = without_private_data(config, survey)
        codes = codes_of(config, request, survey)
        initial = complete_models(initial, survey, "check")
    codes = codes_with_gaps(initial, codes)
    ask = functools.partial(ask_parties, pools=pools, codes=codes)
    return complete_by_counts(initial, codes, ask)[0], codes


def _probe_tasks(
    config: FederationConfig,
    initial: InitialModels,
    pools: list[ActorPool],
    codes: DataCodes | None,
) -> Iterator[NodeTask]:
    """A task for each pool and for the aggregator, pinned to where it would run."""
    plans, blueprints = [], initial.blueprints
    payload_refs = {
        member: ray.put(encoding.pack(weights, config.wire_dtype))
        for member, weights in initial.weights.items()
    }
    for pool in pools:
        place = pool.parties.start
        handler, own = data.named(config.handler_of(place)), config.member(place)
        member = config.party_name(place) if None not in blueprints else None
        blueprint = blueprints[member]
        plan = GroupPlan(
            pool.actors[0], pool.parties, own, blueprint, handler, codes=codes
        )
        plans.append((pool.placement.node_id, plan, payload_refs[member]))
    if config.test_data:
        driver_node = ray.get_runtime_context().get_node_id()
        alone = dataclasses.replace(_evaluation_plan(config, blueprints), codes=codes)
        plans.append((driver_node, alone, next(iter(payload_refs.values()))))
    # a process of its own for each, so that the peak memory is its own
    probe = ray.remote(max_calls=1, max_retries=0)(probe_party)
    for node_id, plan, payload_ref in plans:
        options = placement.node_affinity(node_id)
        pinned = probe.options(name=f"check:{plan.name}", **options)
        arguments = (plan, placement.locate_actor, payload_ref)
        yield NodeTask(plan.name, node_id, pinned, arguments)


def _evaluation_plan(config: FederationConfig, blueprints: Blueprints) -> GroupPlan:
    """Probe plan of `test_data`; of an ensemble, its first member's model is tried."""
    own, handler = workflow_of(config).evaluation()
    spec = PartySpec(name=TEST_DATA, data=config.test_data or "")
    alone = own.with_changes(parties=(spec,), partition=None, num_parties=1)
    blueprint = next(iter(blueprints.values()))
    read = data.named(handler)
    return GroupPlan(spec.name, range(1), alone, blueprint, read, trains=False)


def _party_entries(
    config: FederationConfig,
    pools: list[ActorPool],
    nodes: list[Node],
    probes: Probes,
) -> Iterator[dict[str, Any]]:
    """Where each actor goes, and what the probe found there."""
    hosts = {node.id: node.host for node in nodes}
    for pool, name in [(own, name) for own in pools for name in own.actors]:
        probe = probes.get(pool.actors[0])
        yield {
            "name": name,
            "n_parties": len(pool.parties),
            "labels": pool.placement.labels,
            "data": config.source_of(pool.parties.start),
            "node": pool.placement.node_id,
            "host": hosts[pool.placement.node_id],
            "cpus": pool.placement.n_cpus,
            "gpus": pool.placement.n_gpus,
            "found": probe and dataclasses.asdict(probe),
        }


def find_mismatches(probes: Probes, config: FederationConfig) -> list[str]:
    """Find parties whose samples differ in dtype or shape from those of most others.

    Targets may differ in form (labels, class probabilities): each party's were tried.
    Of an ensemble's members: as many classes, and samples that one array can serve.
    """
    if config.has_member_models:
        return _ensemble_mismatches(probes, config)
    kinds = Counter(probe.samples for probe in probes.values())
    if len(kinds) < 2:
        return []
    (samples, _), *_ = kinds.most_common(1)
    return [
        f"party {name}: has samples {probe.samples}, most have {samples}"
        for name, probe in probes.items()
        if probe.samples != samples
    ]


def find_missing_tests(probes: Probes, config: FederationConfig) -> list[str]:
    """What a run with goals, or a comparison, would stop at: no test samples."""
    own_tests = [one.n_test for name, one in probes.items() if name != TEST_DATA]
    if config.compare != "none" and own_tests and not any(own_tests):
        return [policy.NO_TESTS_TO_COMPARE]
    if not config.goals() or config.test_data or not probes:
        return []
    if not any(probe.n_test for probe in probes.values()):
        return [policy.describe_missing_tests(config)]
    if config.groups is None or config.groups.by == SIMILARITY:
        return []
    problems = []
    for group, places in policy.by_field(config).items():
        own = [probes.get(config.party_name(place)) for place in places.tolist()]
        if all(probe and not probe.n_test for probe in own):
            whose = f"party of {group}"
            problems.append(policy.describe_missing_tests(config, whose))
    return problems


def _ensemble_mismatches(probes: Probes, config: FederationConfig) -> list[str]:
    members = {
        party.name: MemberSignature(tuple(probe.sample), probe.n_classes)
        for party in config.parties
        if (probe := probes.get(party.name))
    }
    return [
        f"{'party ' * (name in members)}{name}: {why}"
        for name, why in incompatible_members(members, config).items()
    ]


def model_size(
    config: FederationConfig, blueprints: Blueprints, in_rounds: Blueprints
) -> dict[str, Any]:
    """Type, values and bytes of a model, or of all members of an ensemble.

    in_rounds : the same models, with schemas of what travels every round.
    """
    whole, dtype = [*blueprints.values()], config.wire_dtype
    n_trained = n_once = 0
    for member, blueprint in blueprints.items():
        sizes = {name: prod(form.shape) for name, form in blueprint.schema.items()}
        once = sizes.keys() - in_rounds[member].schema.keys() - blueprint.tied.keys()
        n_trained += sum(sizes[name] for name in blueprint.parameters)
        n_once += sum(sizes[name] for name in once)
    schemas = [blueprint.schema for blueprint in in_rounds.values()]
    return {
        "model_type": ", ".join(sorted({one.model_type for one in whole})),
        "n_parameters": n_trained,
        "n_frozen": n_once,
        "bytes": sum(size_of(blueprint.schema) for blueprint in whole),
        "bytes_sent": sum(size_of(encoding.form(schema, dtype)) for schema in schemas),
    }
