"""What goes with parties outside the cluster, and what does not: with the reason."""

import re
from collections.abc import Iterator

from fedray.config.edges import EdgesSpec
from fedray.config.keys import FederationKeys
from fedray.config.specs import MEMBER_KEYS, SIMILARITY, PartySpec
from fedray.user_code import is_source

MADE_NAME = re.compile(r"edge-[0-9]+")
AT_THE_EDGE = ("data", "labels", "data_handler", "data_root", *MEMBER_KEYS)
RULES = {  # fusion rules that edges cannot take part in, and why
    "best_model": "other parties' updates would travel to each edge to be scored there",
    "ensemble": "each edge would need a model and code of its own",
    "doc2vec": "its model is made of the words of all parties, counted before round 1",
    "scaffold": "control variates of all parties would travel to each edge",
}


def edge_problems(config: FederationKeys) -> list[str]:
    """Keys that do not go with edges; and parties that are neither edge nor have data.

    What would take code to an edge, or what the service cannot do for one that sleeps.
    """
    problems = []
    for place, party in enumerate(config.parties):
        if not party.edge and not party.data:
            problems.append(f"parties[{place}].data is missing")
        problems += _party_problems(party) if party.edge else []
    if config.edges is not None:
        problems += _population_problems(config, config.edges)
    elif not any(party.edge for party in config.parties):
        return problems
    return problems + [
        f"{what} does not go with edges: {why}" for what, why in _unfit(config)
    ]


def _population_problems(config: FederationKeys, edges: EdgesSpec) -> list[str]:
    """Mistakes in `edges`, and what goes with edges that are listed alone."""
    problems = []
    if edges.min > edges.max:
        problems.append(f"edges.min is {edges.min}, more than edges.max: {edges.max}")
    if config.num_parties is not None and not config.parties:
        problems.append(
            f"num_parties: {config.num_parties} has no effect with edges, of which "
            "edges.max takes part: leave it out"
        )
    for party in config.parties:
        if MADE_NAME.fullmatch(party.name):
            problems.append(
                f"party name {party.name!r} is like those that edges get by their "
                "numbers: choose another"
            )
    if config.aggregation != "always":
        problems.append(
            f"aggregation: {config.aggregation} does not go with edges, whose updates "
            "are combined before the aggregator sees them: list them as parties "
            "(edge: true)"
        )
    if config.late == "next_round":
        problems.append(
            "late: next_round does not go with edges: take discard, or list them as "
            "parties"
        )
    if config.groups is not None:
        problems.append(
            "groups does not go with edges, which have no fields: list them as parties"
        )
    return problems


def _party_problems(party: PartySpec) -> list[str]:
    return [
        f"party {party.name!r}: {key} has no effect at an edge, whose owner names it "
        "on the command line of fedray edge: leave it out"
        for key in AT_THE_EDGE
        if getattr(party, key) not in (None, "", {}, ())
    ]


def _unfit(config: FederationKeys) -> Iterator[tuple[str, str]]:
    """Settings that edges cannot follow, and why."""
    rule = config.fusion_algorithm
    if rule in RULES:
        yield f"fusion_algorithm: {rule}", RULES[rule]
    if config.model_type == "sklearn":
        why = "its parties count their samples together before round 1; take a network"
        yield "model_type: sklearn", why
    if config.groups is not None and config.groups.by == SIMILARITY:
        why = "a round of training before round 1 would compare them: take a field"
        yield "groups.by: similarity", why
    if config.normalize != "none":
        why = "all parties would tell of their data before round 1: take constants"
        yield f"normalize: {config.normalize}", why
    if config.attack is not None:
        yield "attack", "it simulates hostile parties within the cluster"
    if config.personal is not None:
        yield "personal", "layers that stay at an edge are not kept there yet"
    for key in ("ditto_lambda", "finetune_epochs"):
        if key in config.model_fields_set and getattr(config, key) not in (None, 0):
            yield key, "models of an edge's own are not kept there yet"
    if config.compare != "none":
        why = "an edge does not train alone for a comparison"
        yield f"compare: {config.compare}", why
    yield from _code(config)


def _code(config: FederationKeys) -> Iterator[tuple[str, str]]:
    """Settings that are code, which an edge never takes from the service."""
    why = "it is code, and code never travels to an edge"
    for key in ("loss", "optimizer"):
        if is_source(getattr(config, key) or ""):
            yield key, f"{why}: take one with a name"
    own = any(map(is_source, config.metrics))
    if own and config.test_data is None:
        yield "metrics", f"{why}: give test_data, or take metrics with names"
