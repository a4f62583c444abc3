"""When parties that train apart must fuse: `aggregation: adaptive`."""

import math
from collections.abc import Iterable

import numpy as np

from fedray.config import FederationConfig
from fedray.messages import Drift


def disagreement(drifts: Iterable[Drift]) -> tuple[float, float]:
    """How far the parties are from each other, and how far they went together.

    With u_k what party k moved since the last fusion and p_k what it weighs, the
    parties' variance is mean ‖u_k‖² − ‖mean u_k‖². Sketches are linear and keep
    lengths (`fedray.weights.sketch`), so that no model is needed:

    Returns
    -------
    mean ‖u_k‖² − ‖mean S(u_k)‖², at least 0, and ‖mean S(u_k)‖². NaN without drifts.

    Source: in the line of Kamp et al. 2018, arXiv:1807.03210, and of Federated Dynamic
    Averaging, arXiv:2405.20988.
    """
    share, squares, total = 0.0, 0.0, np.zeros(1)
    for drift in drifts:
        share += drift.share
        squares += drift.squares
        total = total + drift.sketch.astype(np.float64)
    if not share:
        return math.nan, math.nan
    common = float(np.square(total / share).sum())
    return max(0.0, squares / share - common), common


def threshold(config: FederationConfig, estimate: float, common: float) -> float:
    """What the disagreement may be until the parties fuse.

    ``drift_tolerance · ‖mean S(u_k)‖² · 2 ‖mean S(u_k)‖² / mean ‖u_k‖²``, all of round
    1: the first common step, times twice the share of all steps that was common. Where
    half of it was, that is the tolerance in common steps; parties that go the same way
    may drift apart further, and unlike ones less. Without that share one tolerance does
    not serve both: unlike parties, whose averages lose most, would fuse too rarely.

    Parameters
    ----------
    estimate, common : what `disagreement` gives of round 1
    """
    if config.drift_threshold is not None:
        return config.drift_threshold
    share = common / (common + estimate) if common > 0 else 0.0
    return config.drift_tolerance * common * 2 * share


def must_fuse(
    config: FederationConfig, since: int, round: int, estimate: float, limit: float
) -> bool:
    """Does a round fuse? The first and the last do, and whoever disagrees too much.

    since : the first round after the last fusion.
    """
    if round in (1, config.rounds):
        return True
    most = config.max_rounds_apart
    if most is not None and round - since + 1 >= most:
        return True
    return not estimate <= limit  # what is not a number is no agreement
