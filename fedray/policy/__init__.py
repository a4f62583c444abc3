"""What the aggregator decides, from small numbers alone. Pure functions."""

from fedray.policy.drift import disagreement, must_fuse, threshold
from fedray.policy.turns import choose, deal, needed, overall, seed_for

__all__ = [
    "choose",
    "deal",
    "disagreement",
    "must_fuse",
    "needed",
    "overall",
    "seed_for",
    "threshold",
]
