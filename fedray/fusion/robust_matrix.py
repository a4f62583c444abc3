"""The updates of all parties as one matrix, read a slice of coordinates at a time."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedray.messages import Update
from fedray.weights import Weights, blocks
from fedray.weights.arrays import FLOATS

N_SUMS = 8  # partial sums over slices: as many as threads at most
NETWORK = 16  # rows; up to here comparing whole rows sorts faster than numpy does

Slice = np.ndarray  # (K, n): some coordinates of all rows


class Rows:
    """A matrix (K, P) that is never in memory: each row is what one party sent.

    Row i is an update's float tensors end to end, parameters and buffers alike, or the
    plain mean of a bucket of updates. The updates stay where they are (views of Ray's
    object store); a thread reads at most `blocks.BLOCK` numbers at once.

    Rows are ranked by their numbers, first coordinate first, so that no rule can see
    the order of the parties, and the first of several alike is the smallest.

    dtype : float32 where all float tensors are at most that wide and no bucket is
        averaged, else float64.
    """

    def __init__(
        self, updates: Sequence[Update], buckets: Sequence[Sequence[int]] | None = None
    ):
        if len(updates) > blocks.BLOCK:
            raise ValueError(f"{len(updates)} updates at once, {blocks.BLOCK} is most")
        first = updates[0].weights
        self.names = [name for name, array in first.items() if array.dtype.kind == "f"]
        self.shapes = [first[name].shape for name in self.names]
        narrow = FLOATS.issuperset([first[name].dtype for name in self.names])
        self.dtype = np.float32 if narrow and not buckets else np.float64
        self._flat = [
            blocks.flat([update.weights[name] for name in self.names])
            for update in updates
        ]
        self._buckets = list(buckets or [(i,) for i in range(len(updates))])
        sizes = tuple([array.size for array in self._flat[0]])
        self._layout = blocks.cut(sizes, max(1, blocks.BLOCK // len(self._buckets)))
        self._buckets = [self._buckets[i] for i in self._ranked()]

    def __len__(self) -> int:
        return len(self._buckets)

    def each(self, work: Callable[[blocks.Block, Slice], Any]) -> list[Any]:
        """Do `work` on every slice, on all cores that pay; results in order.

        What it is given may be written to, and is another's once it returns.
        """

        def work_on(block: blocks.Block) -> Any:
            with np.errstate(over="ignore"):  # too large is infinite, which is far
                return work(block, self._read(block))

        return blocks.each(self._layout, work_on)

    def fused(self, work: Callable[[blocks.Block, Slice], np.ndarray]) -> Weights:
        """The model whose coordinates `work` makes of each slice: (K, n) -> (n,)."""
        whole, views = blocks.allocate(self.shapes, np.dtype(self.dtype))

        def place(block: blocks.Block, part: Slice) -> None:
            np.copyto(whole[block.whole], work(block, part), casting="same_kind")

        self.each(place)
        return dict(zip(self.names, views, strict=True))

    def summed(self, work: Callable[[blocks.Block, Slice], np.ndarray]) -> np.ndarray:
        """Σ of `work` over all slices, always in the same order; zero without any."""
        ends = np.linspace(0, len(self._layout), N_SUMS + 1).astype(int)
        groups = [slice(i, j) for i, j in itertools.pairwise(ends) if i < j]

        def of_group(group: slice) -> np.ndarray:
            total: np.ndarray | float = 0.0
            for block in self._layout[group]:
                with np.errstate(over="ignore", invalid="ignore"):
                    total = total + work(block, self._read(block))
            return np.asarray(total)

        return sum(blocks.each(groups, of_group), np.zeros(()))

    def _read(self, block: blocks.Block) -> Slice:
        n_all = len(self._buckets) * block.size
        line = blocks.scratch(n_all, self.dtype)
        part = line.reshape(len(self._buckets), block.size)
        for row, bucket in zip(part, self._buckets, strict=True):
            self._fill(row, bucket, block)
        return part

    def _fill(
        self, row: np.ndarray, bucket: Sequence[int], block: blocks.Block
    ) -> None:
        for piece, at in block.parts(self._flat[bucket[0]]):
            np.copyto(row[at], piece)
        for i in bucket[1:]:
            for piece, at in block.parts(self._flat[i]):
                np.add(row[at], piece, row[at])
        if len(bucket) > 1:
            np.divide(row, len(bucket), row)

    def _ranked(self) -> list[int]:
        """Places of the rows, smallest first; read on only while some are alike."""
        groups = [list(range(len(self._buckets)))]
        for block in self._layout:
            if all(len(group) == 1 for group in groups):
                break
            part = self._read(block)
            groups = [some for group in groups for some in _split(group, part)]
        return [i for group in groups for i in group]


def _split(group: list[int], part: Slice) -> list[list[int]]:
    """Rank rows that were alike so far by this slice; alike ones stay together."""
    if len(group) == 1 or (part[group] == part[group[0]]).all():
        return [group]
    numbers = {i: part[i].tolist() for i in group}
    in_order = sorted(group, key=numbers.__getitem__)
    return [
        list(alike) for _, alike in itertools.groupby(in_order, numbers.__getitem__)
    ]


def draw_buckets(n: int, size: int, seed: int, round: int) -> list[list[int]]:
    """Deal n updates into ⌈n/size⌉ buckets, drawn by (seed, round) alone."""
    order = np.random.default_rng([seed, round, 0]).permutation(n).tolist()
    return [order[i : i + size] for i in range(0, n, size)]


def sums_of_squares(part: Slice) -> np.ndarray:
    """‖·‖² of each row, (K,)."""
    return np.einsum("kn,kn->k", part, part)


def sort_columns(part: Slice) -> Slice:
    """Each coordinate's values in ascending order, in place."""
    if len(part) > NETWORK:
        part.sort(axis=0)
        return part
    lower = np.empty_like(part[0])
    for i, j in _comparisons(len(part)):
        np.minimum(part[i], part[j], out=lower)
        np.maximum(part[i], part[j], out=part[j])
        np.copyto(part[i], lower)
    return part


def _comparisons(n: int) -> list[tuple[int, int]]:
    """Which pairs to put in order, one after another, to sort n values.

    Source: Batcher's odd-even merge sort, as Knuth, TAOCP 3, 5.2.2, Algorithm M.
    """
    top = 1 << max(0, (n - 1).bit_length() - 1)
    pairs: list[tuple[int, int]] = []
    p = top
    while p:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            if q == p:
                break
            q, r, d = q // 2, p, q - p
        p //= 2
    return pairs


def median_of_integers(updates: Sequence[Update]) -> Weights:
    """Coordinate median of every tensor that is not of floats; exact, never averaged.

    Of an even number the lower of the two in the middle, so that the result is one
    party's value and no sum of large integers is rounded.
    """
    first = updates[0].weights
    middle = (len(updates) - 1) // 2
    medians = {}
    for name in (name for name, array in first.items() if array.dtype.kind != "f"):
        stack = np.stack([update.weights[name] for update in updates])
        medians[name] = np.sort(stack, axis=0)[middle, ...]
    return medians
