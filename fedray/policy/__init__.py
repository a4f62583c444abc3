"""Decisions from reports alone: selection, quorum, adaptive fusion, clustering.

Pure functions; no weights are looked at.
"""

from fedray.policy.adaptive import disagreement, growth, must_fuse, threshold
from fedray.policy.best_model import candidates, ranking
from fedray.policy.clustering import alike, by_field, count_fewest, fewest_updates
from fedray.policy.selection import (
    SELECTIONS,
    ClientSelection,
    count_chosen,
    needed,
    overall,
    seed_for,
    select_random,
    split_by_load,
)

__all__ = [
    "SELECTIONS",
    "ClientSelection",
    "alike",
    "by_field",
    "candidates",
    "count_chosen",
    "count_fewest",
    "disagreement",
    "fewest_updates",
    "growth",
    "must_fuse",
    "needed",
    "overall",
    "ranking",
    "seed_for",
    "select_random",
    "split_by_load",
    "threshold",
]
