"""What would happen: looked at where it would happen, without training anything."""

import dataclasses
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayError

from fedray import data, fusion, placement
from fedray.aggregator import reason
from fedray.config import FederationConfig, PartySpec
from fedray.ensemble import MemberSignature, incompatible_members, workflow_of
from fedray.errors import FedrayError
from fedray.federation.actors import connected
from fedray.messages import ProbeResult
from fedray.models import Blueprint
from fedray.party import GroupPlan, examine
from fedray.placement import ActorPool, Node
from fedray.weights import Weights, encoding, size_of

COPIES = 4  # of the model in training: gradients, two of the optimizer's, the update
N_AT_ONCE = 4  # parties looked at on one node: each is a process with a framework


@dataclass
class Check:
    """What was found; `problems` are what a run would stop at."""

    problems: list[str] = field(default_factory=list)
    model: dict[str, Any] | None = None
    nodes: list[dict[str, Any]] = field(default_factory=list)
    parties: list[dict[str, Any]] = field(default_factory=list)
    bytes_per_round: int | None = None  # every round that fuses, the first ones aside

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"ok": not self.problems, **vars(self)}


def check(config: FederationConfig) -> Check:
    """Look at the cluster that a run would use, at every party's data and the model.

    Each party's data is read and the model tried on it in a task on its own node.
    Nothing waits for nodes that have not joined.

    Raises
    ------
    ClusterError
        If there is no cluster to look at.
    """
    made = Check()
    blueprints = _model(config, made)
    with connected(job="fedray:check"):
        nodes = placement.nodes()
        config, pools = _placed(config, nodes, made)
        found = {}
        if blueprints:
            found = _examined(config, blueprints, pools, made)
            made.bytes_per_round = _round_bytes(config, blueprints, pools, made)
        made.parties = [
            line for pool in pools for line in _lines(config, pool, nodes, found)
        ]
        made.nodes = [_node(node, pools, found, made) for node in nodes]
        made.problems += compared(found, config)
    return made


def _round_bytes(
    config: FederationConfig,
    blueprints: dict[str | None, Blueprint],
    pools: list[ActorPool],
    made: Check,
) -> int | None:
    if None not in blueprints:  # each member goes to its own party, and back
        return 2 * made.model["bytes_sent"]
    return round_bytes(config, blueprints[None], pools) or None


def _model(config: FederationConfig, made: Check) -> dict[str | None, Blueprint]:
    """Read every model as a run would: a member's by its name, else one under None."""
    try:
        initial = workflow_of(config).read()
    except FedrayError as error:
        made.problems.append(str(error))
        return {}
    blueprints, weights = [*initial.blueprints.values()], [*initial.weights.values()]
    if blueprints[0].schema:  # else it is made of the parties' words in the run
        made.model = sizes(config, blueprints, weights)
    return initial.blueprints


def _placed(
    config: FederationConfig, nodes: list[Node], made: Check
) -> tuple[FederationConfig, list[ActorPool]]:
    """Sites of the parties that have one; a problem for each that has none."""
    if config.partition is not None:
        return config, placement.place_federation(config, nodes)
    able = []
    for party in config.parties:
        if any(node.has_labels(party.labels) for node in nodes):
            able.append(party)
            continue
        wanted = placement.describe_labels(party.labels)
        there = placement.describe_nodes(nodes)
        made.problems.append(f"party {party.name}: wanted {wanted}; found {there}")
    config = config.with_changes(parties=tuple(able), num_parties=len(able))
    return config, placement.place_federation(config, nodes)


def _examined(
    config: FederationConfig,
    blueprints: dict[str | None, Blueprint],
    pools: list[ActorPool],
    made: Check,
) -> dict[str, ProbeResult]:
    """What was found for the first actor of each pool, and for the aggregator."""
    found: dict[str, ProbeResult] = {}
    todo, calls = list(_tasks(config, blueprints, pools)), {}
    until = time.monotonic() + config.round_timeout_s
    busy: Counter[str] = Counter()
    while todo or calls:
        for item in [item for item in todo if busy[item[1]] < N_AT_ONCE]:
            name, node, task, plan = item
            if busy[node] < N_AT_ONCE:
                todo.remove(item)
                busy[node] += 1
                calls[task.remote(plan, placement.locate_actor)] = name, node
        left_s = max(0.0, until - time.monotonic())
        done, _ = ray.wait(list(calls), timeout=left_s)
        if not done:
            late = [name for name, _ in calls.values()] + [item[0] for item in todo]
            text = f"did not answer within round_timeout_s={config.round_timeout_s:g}"
            made.problems += [f"party {name}: {text}" for name in late]
            return found
        name, node = calls.pop(done[0])
        busy[node] -= 1
        _hear(name, done[0], found, made)
    return found


def _tasks(
    config: FederationConfig,
    blueprints: dict[str | None, Blueprint],
    pools: list[ActorPool],
) -> Iterator[tuple[str, str, Any, GroupPlan]]:
    """(name, node, task, what it is told): each pinned to where it would run."""
    plans = []
    for pool in pools:
        place = pool.parties.start
        handler, own = data.named(config.handler_of(place)), config.member(place)
        blueprint = blueprints.get(config.party_name(place)) or blueprints[None]
        words = pool.actors[0], pool.parties, own, blueprint, handler
        plans.append((pool.placement.node_id, GroupPlan(*words)))
    if config.test_data:
        here = ray.get_runtime_context().get_node_id()
        plans.append((here, _examiner(config, blueprints)))
    task = ray.remote(max_calls=1, max_retries=0)(examine)  # its peak is its own
    for node, plan in plans:
        options = placement.node_affinity(node)
        pinned = task.options(name=f"check:{plan.name}", **options)
        yield plan.name, node, pinned, plan


def _examiner(
    config: FederationConfig, blueprints: dict[str | None, Blueprint]
) -> GroupPlan:
    """Who holds `test_data`; of an ensemble, with the first member's model."""
    own, name = workflow_of(config).evaluation()
    spec = PartySpec(name="aggregator", data=config.test_data)
    alone = own.with_changes(parties=(spec,), partition=None, num_parties=1)
    words = next(iter(blueprints.values())), data.named(name)
    return GroupPlan(spec.name, range(1), alone, *words)


def _hear(
    name: str, ref: ObjectRef, found: dict[str, ProbeResult], made: Check
) -> None:
    try:
        found[name] = ray.get(ref)
    except RayError as error:
        made.problems.append(f"party {name}: {reason(error)}")


def _lines(
    config: FederationConfig,
    pool: ActorPool,
    nodes: list[Node],
    found: dict[str, ProbeResult],
) -> Iterator[dict[str, Any]]:
    """Where each actor of a pool goes, and what was found there."""
    host = next(node.host for node in nodes if node.id == pool.placement.node_id)
    one = found.get(pool.actors[0])
    for name in pool.actors:
        yield {
            "name": name,
            "n_parties": len(pool.parties),
            "labels": pool.placement.labels,
            "data": _source(config, pool),
            "node": pool.placement.node_id,
            "host": host,
            "cpus": pool.placement.n_cpus,
            "gpus": pool.placement.n_gpus,
            "found": one and dataclasses.asdict(one),
        }


def _source(config: FederationConfig, pool: ActorPool) -> str:
    if config.partition is not None:
        return config.partition.source
    return config.parties[pool.parties.start].data


def _node(
    node: Node, pools: list[ActorPool], found: dict[str, ProbeResult], made: Check
) -> dict[str, Any]:
    """A node, and the memory that its actors need beside what Ray counts there."""
    size = made.model["bytes"] if made.model else 0
    needed = memory_needed(node, pools, found, size)
    if needed > node.memory_bytes > 0:
        there = f"Ray counts {node.memory_bytes / 1e9:.1f} GB there"
        text = f"needs about {needed / 1e9:.1f} GB, {there}"
        made.problems.append(f"node {node.id[:8]} ({node.host}): {text}")
    return {
        "id": node.id,
        "host": node.host,
        "labels": placement.user_labels(node.labels),
        "cpus": node.n_cpus,
        "gpus": node.n_gpus,
        "memory": int(node.memory_bytes),
        "memory_needed": needed,
    }


def compared(found: dict[str, ProbeResult], config: FederationConfig) -> list[str]:
    """Samples of one form everywhere; who differs from most is named.

    Of an ensemble's members as many classes, and samples that one array can serve.
    """
    if config.has_member_models:
        names = [party.name for party in config.parties if party.name in found]
        ones = [found[name] for name in names]
        forms = [MemberSignature(tuple(one.sample), one.n_classes) for one in ones]
        members = dict(zip(names, forms, strict=True))
        return [
            f"{'party ' * (name in members)}{name}: {why}"
            for name, why in incompatible_members(members, config).items()
        ]
    forms = Counter((one.samples, one.targets) for one in found.values())
    if len(forms) < 2:
        return []
    problems = []
    (samples, targets), _ = forms.most_common(1)[0]
    for name, one in found.items():
        if (one.samples, one.targets) != (samples, targets):
            got = f"samples {one.samples} with targets {one.targets}"
            most = f"{samples} with {targets}"
            problems.append(f"party {name}: has {got}, most have {most}")
    return problems


def memory_needed(
    node: Node,
    pools: list[ActorPool],
    found: Mapping[str, ProbeResult],
    model_bytes: int,
) -> int:
    """Bytes of all actors of a node while they train; measured, but for the copies."""
    needed = 0
    for pool in pools:
        one = found.get(pool.actors[0])
        if pool.placement.node_id == node.id and one:
            needed += len(pool.actors) * (one.peak_bytes + COPIES * model_bytes)
    return needed


def round_bytes(
    config: FederationConfig, blueprint: Blueprint, pools: list[ActorPool]
) -> int:
    """Bytes of a round that fuses, the first aside: its start weights travel too.

    Weights go to every node once; back comes one model from each actor, or from each
    node where the rule may combine there: the aggregator's own node never does. A
    fraction of the parties is taken to reach as many actors as it has parties.
    """
    size = size_of(encoding.form(blueprint.schema, config.wire_dtype))
    own = ray.get_runtime_context().get_node_id()
    actors: dict[str, int] = defaultdict(int)
    for pool in pools:
        actors[pool.placement.node_id] += len(pool.actors)
    n_chosen = max(1, int(config.party_fraction * config.num_parties + 0.5))
    n_nodes = min(len(actors), n_chosen)
    if not fusion.configured(config, blueprint.parameters).associative:
        return size * (n_nodes + n_chosen)
    n_updates = sum(n if node == own else 1 for node, n in actors.items())
    return size * (n_nodes + min(n_updates, n_chosen))


def sizes(
    config: FederationConfig, blueprints: list[Blueprint], weights: list[Weights]
) -> dict[str, Any]:
    """What a model is, or all of an ensemble together."""
    sizes = [
        own[name].size
        for blueprint, own in zip(blueprints, weights, strict=True)
        for name in blueprint.parameters
    ]
    schemas, dtype = [blueprint.schema for blueprint in blueprints], config.wire_dtype
    return {
        "model_type": ", ".join(sorted({one.model_type for one in blueprints})),
        "n_parameters": int(sum(sizes)),
        "bytes": sum(map(size_of, schemas)),
        "bytes_sent": sum(size_of(encoding.form(schema, dtype)) for schema in schemas),
    }
