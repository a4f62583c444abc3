"""Estimates of the memory that a run takes, before anything of it starts."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fedray import placement
from fedray.config import FederationConfig
from fedray.messages import ProbeResult
from fedray.models import Blueprint
from fedray.placement import ActorPool, Node
from fedray.privacy import banded, cohorts
from fedray.report import format_bytes
from fedray.weights import Form, Schema, size_of

COPIES = 4  # of what trains: gradients, two of the optimizer's, the update
ANSWER_COPIES = 3  # of a model while its file and its answer are written
PROCESS_BYTES = {  # of an actor that has imported a framework, measured
    "pytorch": 200 << 20,
    "keras": 440 << 20,
    "sklearn": 290 << 20,
    "doc2vec": 120 << 20,
}
OTHER_PROCESS = 200 << 20  # of a class of the user's own
NOISE = (
    "the aggregator goes on from the noise of the rounds before: {} in memory, and as "
    "much in the run's folder until the run ends (privacy.band)"
)


@dataclass(frozen=True)
class ModelBytes:
    """Bytes of a model's weights, and of those among them that training moves."""

    whole: int = 0
    trained: int = 0

    @classmethod
    def of(cls, blueprint: Blueprint) -> "ModelBytes":
        """The bytes of a blueprint's weights."""
        schema, names = blueprint.schema, set(blueprint.parameters)
        trained = {name: form for name, form in schema.items() if name in names}
        return cls(size_of(schema), size_of(trained))


def run_bytes(model_type: str, model: ModelBytes, parties: Collection[int]) -> int:
    """Memory of a run with an actor for each party, at its peak.

    parties : what each takes for its data, bytes.
    """
    process = PROCESS_BYTES.get(model_type, OTHER_PROCESS)
    driver = process + 2 * model.whole
    aggregator = process + 2 * model.whole + COPIES * model.trained
    training = (
        driver
        + aggregator
        + sum(party_bytes(model_type, model, own) for own in parties)
    )
    return max(training, process + ANSWER_COPIES * model.whole)


def party_bytes(model_type: str, model: ModelBytes, data_bytes: int = 0) -> int:
    """Memory of one party's actor while it trains."""
    process = PROCESS_BYTES.get(model_type, OTHER_PROCESS)
    return process + model.whole + COPIES * model.trained + data_bytes


def noise_notes(config: FederationConfig, schema: Schema) -> list[str]:
    """What correlated noise of cyclic rounds takes: 8 bytes a number and round."""
    if config.privacy is None or config.privacy.sampling != "cyclic":
        return []
    floats = [name for name, form in schema.items() if form.dtype.startswith("float")]
    wide = {name: Form(schema[name].shape, "int64") for name in floats}
    n_turns = cohorts.n_turns(config.party_fraction)
    n_rounds = banded.band_size(n_turns, config.privacy.band) - 1
    return [NOISE.format(format_bytes(n_rounds * size_of(wide)))] if n_rounds else []


def node_entry(node: Node, needed: int) -> dict[str, Any]:
    """A node as `fedray check` has it.

    needed : bytes that the run takes there.
    """
    return {
        "id": node.id,
        "host": node.host,
        "labels": placement.user_labels(node.labels),
        "cpus": node.n_cpus,
        "gpus": node.n_gpus,
        "memory": int(node.memory_bytes),
        "memory_needed": needed,
    }


def memory_problem(node: Mapping[str, Any]) -> str | None:
    """What is wrong with a node that has too little memory; else None."""
    needed, memory = node["memory_needed"], node["memory"]
    if not needed > memory > 0:
        return None
    text = f"needs about {needed / 1e9:.1f} GB, Ray counts {memory / 1e9:.1f} GB there"
    return f"node {node['id'][:8]} ({node['host']}): {text}"


def memory_needed(
    node: Node,
    pools: list[ActorPool],
    probes: Mapping[str, ProbeResult],
    model_bytes: int,
) -> int:
    """Estimate the memory of a node's actors: measured peak plus model copies."""
    needed = 0
    for pool in pools:
        probe = probes.get(pool.actors[0])
        if pool.placement.node_id == node.id and probe:
            needed += len(pool.actors) * (probe.peak_bytes + COPIES * model_bytes)
    return needed
