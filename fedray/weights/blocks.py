"""Blocked, multithreaded arithmetic over many arrays: blocks stay in the CPU cache.

Tensors are thought of as lying end to end; a block is a stretch of that line. Small
tensors share a block, so that they share the cost of a call; large ones are cut.
What is computed for an element never depends on the block or the thread it is in.
"""

import functools
import math
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np

BLOCK = 1 << 18  # elements; smaller ones make threads queue for the interpreter lock
ALONE = 4  # blocks that one thread works off before another would be awake
MAX_THREADS = 8  # more would queue for the interpreter lock between numpy's calls

LINE = 64  # bytes

T = TypeVar("T")
R = TypeVar("R")


class Block(NamedTuple):
    """A stretch of all tensors laid end to end."""

    whole: slice
    size: int
    pieces: tuple[tuple[int, slice | None, slice], ...]  # tensor, where in it, here

    def parts(self, flat: Sequence[np.ndarray]) -> list[tuple[np.ndarray, slice]]:
        """What of each tensor is in this block, and where in it."""
        return [(flat[i] if span is None else flat[i][span], at)
                for i, span, at in self.pieces]  # fmt: skip


@functools.lru_cache(maxsize=32)
def cut(sizes: tuple[int, ...], most: int | None = None) -> tuple[Block, ...]:
    """Blocks of tensors that have so many elements; `most` each, None: `BLOCK`."""
    most = most or BLOCK
    blocks: list[Block] = []
    pieces: list[tuple[int, slice | None, slice]] = []
    filled = start = 0

    def close() -> None:
        nonlocal pieces, filled, start
        blocks.append(Block(slice(start, start + filled), filled, tuple(pieces)))
        pieces, filled, start = [], 0, start + filled

    for index, size in enumerate(sizes):
        done = 0
        while done < size:
            n = min(size - done, most - filled)
            part = None if n == size else slice(done, done + n)
            pieces.append((index, part, slice(filled, filled + n)))
            done, filled = done + n, filled + n
            if filled == most:
                close()
    if filled:
        close()
    return tuple(blocks)


def flat(arrays: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Each array in one dimension; a copy only where its memory has gaps."""
    return [array.reshape(-1) for array in arrays]


def allocate(
    shapes: Sequence[tuple[int, ...]], dtype: np.dtype
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Allocate tensors end to end: the whole array, and a view for each shape.

    One allocation: from 4 MB on numpy asks for huge pages, and first touching small
    pages takes longer than folding a model.
    """
    sizes = [math.prod(shape) for shape in shapes]
    whole, views, start = _empty(sum(sizes), dtype), [], 0
    for shape, size in zip(shapes, sizes, strict=True):
        views.append(whole[start : start + size].reshape(shape))
        start += size
    return whole, views


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.by_use: dict[Any, np.ndarray] = {}


_scratch = _Scratch()


def scratch(n: int, dtype: Any, use: int = 0) -> np.ndarray:
    """Scratch memory of n <= BLOCK elements; this thread's until it asks again."""
    memory = _scratch.by_use.get((dtype, use))
    if memory is None:
        memory = _scratch.by_use[dtype, use] = _empty(BLOCK, dtype)
    return memory[:n]


def _empty(n: int, dtype: Any) -> np.ndarray:
    """Memory from the start of a cache line: a vector across two takes longer."""
    size = n * np.dtype(dtype).itemsize
    raw = np.empty(size + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + size].view(dtype)


def each(blocks: Sequence[T], work: Callable[[T], R]) -> list[R]:
    """Call `work` on every block, in threads where that is faster; results in order."""
    n_threads = len(blocks) // ALONE + 1
    if n_threads > 1:
        n_threads = min(n_threads, _n_cores(), MAX_THREADS)
    if n_threads == 1:
        return [work(block) for block in blocks]
    results: list[Any] = [None] * len(blocks)
    turns = iter(range(len(blocks)))  # shared: who is done early takes the next

    def run() -> None:
        for i in turns:
            results[i] = work(blocks[i])

    futures = [_pool().submit(run) for _ in range(n_threads - 1)]
    try:
        run()
    finally:
        # a task that has not started has nothing left to do, and may never start: other
        # calls keep the pool busy, or this process is a fork without these threads
        for future in futures:
            if not future.cancel():
                future.result()
    return results


@functools.cache
def _n_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MAX_THREADS - 1, thread_name_prefix="fedray-blocks")
