"""Weighted mean of many models, in the memory of one."""

import numpy as np

from fedray.weights import blocks
from fedray.weights.arrays import Weights


class RunningMean:
    """Weighted mean of weights that arrive one at a time, in one model of memory.

    ``mean += (w − mean) · n / N`` with N the sum of the weights so far (West 1979):
    equal updates give back exactly themselves, and a single one is returned as it was.
    Half and single floats accumulate in float32, integers in float64.
    """

    def __init__(self) -> None:
        self.mean: Weights = {}
        self.total = 0.0
        self._groups: list[_DtypeGroup] = []

    def add(self, weights: Weights, share: float) -> None:
        """Fold one model in with weight `share` > 0."""
        self.total += share
        if self._groups:
            for group in self._groups:
                group.fold(weights, share / self.total)
            return
        names: dict[np.dtype, list[str]] = {}
        for name, array in weights.items():
            names.setdefault(_accumulator(array.dtype), []).append(name)
        self._groups = [_DtypeGroup(weights, *item) for item in names.items()]
        means = {k: v for group in self._groups for k, v in group.mean.items()}
        self.mean = {name: means[name] for name in weights}


def mean_of_stack(stack: Weights, shares: np.ndarray) -> Weights:
    """Weighted mean over the first axis, in the dtypes that `RunningMean` gives.

    Parameters
    ----------
    stack : arrays (S, *shape); one that is the same for all may be a broadcast view
    shares : (S,) above 0
    """
    parts = shares / shares.sum()
    return {name: _mean(array, parts) for name, array in stack.items()}


def _mean(array: np.ndarray, parts: np.ndarray) -> np.ndarray:
    dtype = _accumulator(array.dtype)
    if array.strides[0] == 0 or len(array) == 1:
        return array[0, ...].astype(dtype)
    rows: np.ndarray = array.reshape(len(array), -1).astype(dtype, copy=False)
    return (parts.astype(dtype) @ rows).reshape(array.shape[1:])


class _DtypeGroup:
    """Means of all tensors that accumulate in one dtype, end to end in one array."""

    def __init__(self, weights: Weights, dtype: np.dtype, names: list[str]):
        self.names = names
        arrays = [weights[name] for name in names]
        self.blocks = blocks.cut(tuple(array.size for array in arrays))
        self.whole, views = blocks.allocate([array.shape for array in arrays], dtype)
        self.mean = dict(zip(names, views, strict=True))
        flat = blocks.flat(arrays)

        def take(block: blocks.Block) -> None:
            mean = self.whole[block.whole]
            for part, at in block.parts(flat):
                np.copyto(mean[at], part)

        blocks.each(self.blocks, take)

    def fold(self, weights: Weights, factor: float) -> None:
        flat = blocks.flat([weights[name] for name in self.names])
        dtype = self.whole.dtype
        factor_there = np.array(factor, dtype)  # faster than a scalar

        def work(block: blocks.Block) -> None:
            mean = self.whole[block.whole]
            step = blocks.scratch(block.size, dtype)
            for part, at in block.parts(flat):
                np.subtract(part, mean[at], step[at])
            np.multiply(step, factor_there, step)
            np.add(mean, step, mean)

        blocks.each(self.blocks, work)


def _accumulator(dtype: np.dtype) -> np.dtype:
    is_wide = dtype.kind in "iub" or dtype == np.float64
    return np.dtype(np.float64 if is_wide else np.float32)
