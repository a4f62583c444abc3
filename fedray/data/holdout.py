"""Test samples of data that comes without: a share, drawn by seed and party name."""

import hashlib
from collections.abc import Sequence

import numpy as np

from fedray.data.options import Origin


def draw_tests(
    n: int, share: float, origin: Origin, groups: np.ndarray | None = None
) -> np.ndarray:
    """Ascending places of the test samples among `n`; the same on every machine.

    One sample at least is a test and one is not, where there are two.

    groups : (n,) numbers; of the samples of each the same share is drawn.
    """
    digest = hashlib.sha256(origin.party.encode("utf-8", "surrogatepass")).digest()
    name = int.from_bytes(digest[:8], "little")
    rng = np.random.default_rng([origin.seed, name])
    if groups is None:
        return _draw(np.arange(n), share, rng)
    kinds = np.unique(groups)
    parts = [_draw(np.flatnonzero(groups == kind), share, rng) for kind in kinds]
    return np.sort(np.concatenate(parts))


def _draw(places: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    n_tests = min(max(round(share * len(places)), share > 0), len(places) - 1)
    return np.sort(rng.permutation(places)[: max(n_tests, 0)])


def move_to_end(arrays: Sequence[np.ndarray], places: np.ndarray) -> None:
    """Swap these samples of each array with the last ones, in place.

    places : ascending.
    """
    if not len(places):
        return
    first = len(arrays[0]) - len(places)
    moved, stay = places[places < first], places[places >= first]
    is_free = np.ones(len(places), bool)
    is_free[stay - first] = False
    freed = first + np.flatnonzero(is_free)
    for array in arrays:
        array[moved], array[freed] = array[freed], array[moved]
