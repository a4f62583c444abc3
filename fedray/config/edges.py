"""Edges that the config does not list: a population that enrols by invitation."""

from typing import Annotated

from fedray.config.declaration import SAFE, setting
from fedray.config.specs import Settings

MAX_EDGES = 1_000_000
POPULATION = 1 << 20  # place of the first edge that the config does not list


class EdgesSpec(Settings):
    """Parties outside the cluster that take part by invitation, any number of them."""

    min: Annotated[
        int,
        setting(
            "edges that have enrolled before round 1 begins",
            ge=1,
            le=MAX_EDGES,
            private=SAFE,
        ),
    ] = 1
    max: Annotated[
        int,
        setting(
            "edges that take part, the first to enrol",
            ge=1,
            le=MAX_EDGES,
            private=SAFE,
        ),
    ] = 100_000
    per_round: Annotated[
        int | None,
        setting(
            "edges that train in a round",
            unset="party_fraction of those present",
            ge=1,
            le=MAX_EDGES,
            private=SAFE,
        ),
    ] = None
    max_samples: Annotated[
        int | None,
        setting(
            "training samples that an edge may say it has: what it weighs at most",
            unset="any number",
            ge=1,
            le=2**53,
            examples=(10_000,),
            private=SAFE,
        ),
    ] = None
    per_group: Annotated[
        int,
        setting(
            "edges of a round that one actor takes",
            ge=1,
            le=MAX_EDGES,
            private=SAFE,
        ),
    ] = 5_000
    spool_bytes: Annotated[
        int,
        setting(
            "updates that may be on their way to one actor's disk",
            unit="bytes",
            ge=1 << 20,
            private=SAFE,
        ),
    ] = 8 << 30
