"""Sums behind metrics, of several parties' samples: arrays that are added by name."""

from collections.abc import Iterable, Mapping

import numpy as np

from fedray.config.metrics import METRICS


def merge_states(
    states: Iterable[Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Add the sums of several actors, in their order.

    states : by task and sum: ``classes/counts``, ``values/mae/total``. Where one has
        fewer classes than another, all others are zero. Of a metric that needs all
        samples (`MetricSpec.merge`), these follow each other. Sums of another form
        than those before are left out: an edge may send any, and zeros of two such
        together can fill any memory.
    """
    merged: dict[str, np.ndarray] = {}
    for state in states:
        for name, array in state.items():
            before = merged.get(name)
            if before is None:
                merged[name] = array
            elif _is_of_samples(name):
                is_like = before.ndim == array.ndim > 0
                if is_like and before.shape[1:] == array.shape[1:]:
                    merged[name] = np.concatenate([before, array])
            elif _largest(before, array) in (before.shape, array.shape):
                merged[name] = _add(before, array)
    return merged


def _is_of_samples(name: str) -> bool:
    metric = name.split("/")[1]
    return metric in METRICS and METRICS[metric].merge == "samples"


def _largest(one: np.ndarray, other: np.ndarray) -> tuple[int, ...] | None:
    """The shape that holds both; None where they have unlike dimensions."""
    if one.ndim != other.ndim:
        return None
    return tuple(map(max, one.shape, other.shape))


def _add(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    if one.shape == other.shape:
        return one + other
    shape = np.maximum(one.shape, other.shape)
    return _padded(one, shape) + _padded(other, shape)


def _padded(array: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return np.pad(array, [(0, n) for n in shape - array.shape])
