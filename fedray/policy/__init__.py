"""Decisions from reports alone: selection, quorum, adaptive fusion, clustering.

Pure functions; no weights are looked at.
"""

from fedray.policy.adaptive import disagreement, growth, must_fuse, threshold
from fedray.policy.best_model import candidates, ranking
from fedray.policy.buffered import (
    Arrival,
    Leases,
    Simulation,
    VirtualClock,
    slow_parties,
)
from fedray.policy.clustering import (
    by_field,
    count_fewest,
    fewest_updates,
    group_by_similarity,
)
from fedray.policy.metric_states import merge_states
from fedray.policy.party_scores import (
    finite,
    mean_scores,
    merge_parties,
    spreads,
    to_plain,
    worst_rows,
)
from fedray.policy.plateau import Plateau, next_plateau, plateau_rates, restore_plateau
from fedray.policy.privacy_forecast import forecast_privacy, privacy_notes
from fedray.policy.selection import (
    SELECTIONS,
    ClientSelection,
    choose_fairly,
    count_chosen,
    join_scores,
    merge_metrics,
    merge_scores,
    needed,
    seed_for,
    select_random,
    split_by_load,
)
from fedray.policy.stopping import (
    NO_TESTS_TO_COMPARE,
    best_report,
    describe_missing_tests,
    describe_time_limit,
    goal_notes,
    is_better,
    require_measured,
    stop_notes,
    stop_reason,
    value_of,
)

__all__ = [
    "NO_TESTS_TO_COMPARE",
    "SELECTIONS",
    "Arrival",
    "ClientSelection",
    "Leases",
    "Plateau",
    "Simulation",
    "VirtualClock",
    "best_report",
    "by_field",
    "candidates",
    "choose_fairly",
    "count_chosen",
    "count_fewest",
    "describe_missing_tests",
    "describe_time_limit",
    "disagreement",
    "fewest_updates",
    "finite",
    "forecast_privacy",
    "goal_notes",
    "group_by_similarity",
    "growth",
    "is_better",
    "join_scores",
    "mean_scores",
    "merge_metrics",
    "merge_parties",
    "merge_scores",
    "merge_states",
    "must_fuse",
    "needed",
    "next_plateau",
    "plateau_rates",
    "privacy_notes",
    "ranking",
    "require_measured",
    "restore_plateau",
    "seed_for",
    "select_random",
    "slow_parties",
    "split_by_load",
    "spreads",
    "stop_notes",
    "stop_reason",
    "threshold",
    "to_plain",
    "value_of",
    "worst_rows",
]
