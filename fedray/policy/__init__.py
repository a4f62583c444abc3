"""Decisions from reports alone: selection, quorum, adaptive fusion, clustering.

Pure functions; no weights are looked at.
"""

from fedray.policy.adaptive import disagreement, growth, must_fuse, threshold
from fedray.policy.best_model import candidates, ranking
from fedray.policy.clustering import (
    by_field,
    count_fewest,
    fewest_updates,
    group_by_similarity,
)
from fedray.policy.selection import (
    SELECTIONS,
    ClientSelection,
    count_chosen,
    merge_metrics,
    merge_scores,
    needed,
    seed_for,
    select_random,
    split_by_load,
)

__all__ = [
    "SELECTIONS",
    "ClientSelection",
    "by_field",
    "candidates",
    "count_chosen",
    "count_fewest",
    "disagreement",
    "fewest_updates",
    "group_by_similarity",
    "growth",
    "merge_metrics",
    "merge_scores",
    "must_fuse",
    "needed",
    "ranking",
    "seed_for",
    "select_random",
    "split_by_load",
    "threshold",
]
