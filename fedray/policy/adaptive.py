"""Adaptive fusion: parties fuse when they disagree (`aggregation: adaptive`)."""

import math
from collections.abc import Iterable

import numpy as np

from fedray.config import FederationConfig
from fedray.messages import Drift
from fedray.weights import SKETCH_SIZE

# two standard deviations of ‖S(u)‖² / ‖u‖² (Charikar et al. 2002, count sketch)
NOISE = 2 * math.sqrt(2 / SKETCH_SIZE)


def disagreement(drifts: Iterable[Drift]) -> tuple[float, float]:
    """Estimate the parties' variance and their common step from sketches.

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
        total = total + drift.sketch
    if not share:
        return math.nan, math.nan
    common = float(np.square(total / share).sum())
    return max(0.0, squares / share - common), common


def growth(config: FederationConfig, estimate: float, common: float) -> float:
    """How many times the disagreement of one round apart the parties may come to.

    ``2 · drift_tolerance · ‖mean S(u_k)‖² / disagreement`` of round 1: where half of
    the first step was common, twice the tolerance; parties that went the same way may
    go on for longer, and unlike ones less. It has no unit and is kept for all rounds.

    Parameters
    ----------
    estimate, common : what `disagreement` gives of round 1
    """
    floored = _above_noise(estimate, common)
    return 2 * config.drift_tolerance * common / floored if floored else 0.0


def threshold(
    config: FederationConfig, growth: float, one: tuple[float, float], common: float
) -> float:
    """What the disagreement may be in a round until the parties fuse.

    ``growth · disagreement`` of the first round after the last fusion. As parties
    settle they go less far in a round, and the threshold goes with them: one set once
    and for all would let them fuse often at first and too rarely at the end, when the
    last mean decides what comes out. What a sketch cannot tell from none is none.

    Parameters
    ----------
    growth : of round 1
    one : what `disagreement` gave of the first round since the last fusion
    common : ‖mean S(u_k)‖² of this round
    """
    if config.drift_threshold is not None:
        return config.drift_threshold
    return max(growth * _above_noise(*one), NOISE * common)


def _above_noise(estimate: float, common: float) -> float:
    return max(estimate, NOISE * common)


def must_fuse(
    config: FederationConfig, since: int, round: int, estimate: float, limit: float
) -> bool:
    """Does a round fuse? The first and the last do, and whoever disagrees too much.

    since : the first round after the last fusion.
    """
    if round in (1, config.rounds):
        return True
    max_rounds = config.max_rounds_apart
    if max_rounds is not None and round - since + 1 >= max_rounds:
        return True
    return not estimate <= limit  # NaN is no agreement
