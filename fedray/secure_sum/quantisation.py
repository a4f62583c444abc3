"""Float differences to whole numbers and back, where no privacy grid does it."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from fedray.errors import SecureSumError
from fedray.secure_sum.attempt import SumParameters
from fedray.secure_sum.masks import BLOCK

STEP = BLOCK // 4  # coordinates at a time


def quantise(
    difference: Sequence[np.ndarray], clip_norm: float, parameters: SumParameters
) -> Iterator[np.ndarray]:
    """Clip a difference to an L2 norm and round it to whole numbers up to the bound.

    difference : float arrays, together one vector, in the order of its coordinates.
    clip_norm : S; the vector is shortened to it if it is longer, so that no coordinate
        is larger. `parameters.bound` stands for S.

    Yields int64 arrays, a block of coordinates each.

    Raises
    ------
    SecureSumError
        If the difference is not finite, or too large for its norm to be.
    """
    norm = math.sqrt(sum(_square(block) for block in _blocks(difference)))
    if not math.isfinite(norm):
        raise SecureSumError("a difference", f"norm {norm}", "finite numbers")
    factor = parameters.bound / max(norm, clip_norm)
    for block in _blocks(difference):
        whole = np.rint(block * factor)
        yield np.clip(whole, -parameters.bound, parameters.bound).astype(np.int64)


def _blocks(arrays: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    for array in arrays:
        flat = array.reshape(-1)
        for start in range(0, len(flat), STEP):
            yield flat[start : start + STEP].astype(np.float64)


def _square(block: np.ndarray) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.dot(block, block))


def mean_of_sum(
    total: np.ndarray, weight: int, clip_norm: float, parameters: SumParameters
) -> np.ndarray:
    """The weighted mean of differences behind a sum of their whole numbers, float64."""
    return total * (clip_norm / (float(parameters.bound) * weight))


def scale_weight(n_samples: int, largest: int, max_weight: int) -> int:
    """A sample count as a weight from 1 to `max_weight`, which stands for the largest.

    Exact where `largest` is at most `max_weight`; else rounded, never to 0.
    """
    if largest <= max_weight:
        return max(1, n_samples)
    return min(max_weight, max(1, round(n_samples * max_weight / largest)))
