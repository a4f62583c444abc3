"""Checks that one party's update must pass before it is fused."""

import math
from dataclasses import dataclass
from typing import Any

from fedray.fusion.base import RATE_SUM
from fedray.messages import Origin, Rejection, Update
from fedray.weights import Schema, Weights, distance, mismatch, non_finite

EXPLODED = "its training exploded: lower learning_rate, or scale its samples"
MIN_RATE = 1e-12  # what is less would make a step of any length of the weights
MAX_SAMPLES = 1 << 53  # a float counts that far without a gap


@dataclass(frozen=True)
class ExpectedUpdate:
    """Metadata that one party's update must match: run, round, party, sample count.

    max_samples : the training samples that the party declared when it joined.
    """

    origin: Origin
    max_samples: int = MAX_SAMPLES


def rejection_reason(
    update: Any, needed: Schema, expected: ExpectedUpdate | None = None
) -> Rejection | None:
    """Say why one party's update must not be fused; None if it may.

    Parameters
    ----------
    update : what the party sent, whatever that is.
    needed : names, shapes and dtypes of the tensors as they travel.
    expected : None: metadata other than the counts' form is not looked at.
    """
    if not isinstance(update, Update):
        return Rejection("type", f"sent a {type(update).__name__}, not an Update")
    if expected and update.origin != expected.origin:
        got, asked_for = _describe(update.origin), _describe(expected.origin)
        return Rejection("origin", f"is of {got}, asked for was {asked_for}")
    n_samples = update.n_samples
    max_samples = expected.max_samples if expected else MAX_SAMPLES
    if type(n_samples) is not int or not 1 <= n_samples <= max_samples:
        got = repr(n_samples)[:40]
        detail = f"n_samples must be a whole number from 1 to {max_samples}, got {got}"
        return Rejection("count", detail)
    if type(update.n_parties) is not int or update.n_parties != 1:
        detail = f"a party speaks for itself, not for {update.n_parties}"
        return Rejection("other", detail)
    different = mismatch(update.weights, needed)
    if different:
        return Rejection("schema", different)
    if RATE_SUM in needed:
        rates = float(update.weights[RATE_SUM])
        if rates and not MIN_RATE <= rates < math.inf:
            detail = f"the sum of its learning rates must be above 0, got {rates}"
            return Rejection("other", detail)
    return non_finite_reason(update.weights)


def exceeds_norm(
    weights: Weights, base: Weights, max_norm: float | None
) -> Rejection | None:
    """Say that weights are too far from `base`; None if they are not.

    Parameters
    ----------
    max_norm : greatest Euclidean distance over all float tensors together, buffers
        included; None: any.
    """
    if max_norm is None:
        return None
    floats = [name for name, array in base.items() if array.dtype.kind == "f"]
    norm = distance(weights, base, floats)
    if norm <= max_norm:
        return None
    detail = (
        f"its step of length {norm:.4g} is above max_update_norm {max_norm:g}: lower "
        "learning_rate, or raise max_update_norm"
    )
    return Rejection("norm", detail)


def non_finite_reason(weights: Weights) -> Rejection | None:
    """Name the first tensor that holds NaN or infinity; None if all are finite."""
    name = non_finite(weights)
    if name is None:
        return None
    detail = f"tensor {name!r} is not finite (NaN or infinity): {EXPLODED}"
    return Rejection("non_finite", detail)


def _describe(origin: Any) -> str:
    if not isinstance(origin, Origin):
        return f"a {type(origin).__name__} instead of an origin"
    run, round, party = (repr(v)[:80] for v in vars(origin).values())
    return f"run {run}, round {round}, party at place {party}"
