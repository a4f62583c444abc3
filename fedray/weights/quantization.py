"""Float tensors in 8 bits: blocks of 256 numbers, each with a float32 scale.

A number x of a block whose largest one has the size m travels as the integer x / s
rounded up or down by chance, s = m / 127, so that what is decoded is x on average
(stochastic rounding; QSGD, Alistarh et al. 2017, arXiv:1610.02132, with the maximum
norm per bucket). The chance comes from a key: the same tensors with the same key give
the same bytes.

A tensor of n numbers becomes n + 4 ⌈n / 256⌉ bytes: the scales, then the integers.
"""

from collections.abc import Sequence

import numpy as np

from fedray.weights import blocks

ROW = 256  # numbers that share a scale
LEVELS = 127
MOST = 1 << 17  # numbers that are worked on at once: a multiple of ROW
CHANCES = np.float32(2.0**-16)  # 16 random bits each
TINY = np.finfo(np.float32).tiny  # a smaller scale cannot be divided by: all is 0


def n_bytes(n: int) -> int:
    """Bytes of a tensor of n numbers."""
    return n + 4 * _n_rows(n)


def quantize(
    ours: Sequence[np.ndarray],
    theirs: Sequence[np.ndarray],
    key: tuple[int, ...],
) -> list[np.ndarray]:
    """The differences ours - theirs in 8 bits.

    What is not finite makes its block not finite, which the receiver refuses by name.

    Parameters
    ----------
    ours, theirs : float tensors in one dimension, of the same sizes.
    key : integers >= 0 from which all chance comes.

    Returns
    -------
    int8 arrays of `n_bytes` each, one after another in memory.
    """
    sizes = [array.size for array in ours]
    shapes = [(n_bytes(size),) for size in sizes]
    _, packed = blocks.allocate(shapes, np.dtype(np.int8))
    cut = blocks.cut(tuple(ROW * _n_rows(size) for size in sizes), MOST)

    def work(block: blocks.Block) -> None:
        step = blocks.scratch(block.size, np.float32)
        levels = blocks.scratch(block.size, np.int8)
        with np.errstate(over="ignore", invalid="ignore"):
            for i, start, at in _pieces(block):
                n = min(at.stop - at.start, sizes[i] - start)
                own, end = slice(start, start + n), at.start + n
                np.subtract(ours[i][own], theirs[i][own], step[at.start : end])
                step[end : at.stop] = 0  # the rest of the tensor's last row
            scales = _round(step, levels, (*key, block.whole.start))
        for i, start, at in _pieces(block):
            n, rows = min(at.stop - at.start, sizes[i] - start), _rows(at)
            first, head = 4 * (start // ROW), 4 * _n_rows(sizes[i])
            own_scales = scales[rows].view(np.int8)
            packed[i][first : first + own_scales.size] = own_scales
            packed[i][head + start : head + start + n] = levels[at][:n]

    blocks.each(cut, work)
    return packed


def dequantize(packed: np.ndarray, n: int) -> np.ndarray:
    """A tensor of n numbers, float32 in one dimension, of what `quantize` made."""
    n_rows = _n_rows(n)
    scales = packed[: 4 * n_rows].view(np.float32)
    levels, whole = packed[4 * n_rows :], n - n % ROW
    numbers = levels.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        rows = numbers[:whole].reshape(-1, ROW)
        np.multiply(rows, scales[: len(rows), None], rows)
        numbers[whole:] *= scales[len(rows) :].repeat(n - whole)
    return numbers


def _round(step: np.ndarray, levels: np.ndarray, key: tuple[int, ...]) -> np.ndarray:
    """Fill `levels` with rows of `step`, which is overwritten; each row's scale."""
    rows = step.reshape(-1, ROW)
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    scales = largest * np.float32(1 / LEVELS)
    scales[scales < TINY] = 0
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    np.multiply(rows, inverse[:, None], rows)
    bits = np.random.SFC64(key).random_raw(step.size // 4).view(np.uint16)
    chance = blocks.scratch(step.size, np.float32, 1)
    np.multiply(bits, CHANCES, chance, casting="unsafe")
    np.add(step, chance, step)
    np.add(step, CHANCES / 2, step)  # the mean of the chances is 1/2
    np.floor(step, step)
    np.minimum(step, LEVELS, out=step)
    np.copyto(levels, step, casting="unsafe")
    return scales


def _n_rows(n: int) -> int:
    return -(-n // ROW)


def _pieces(block: blocks.Block) -> list[tuple[int, int, slice]]:
    """Of each tensor in a block: which one, where its part begins, where that lies."""
    return [(i, span.start if span else 0, at) for i, span, at in block.pieces]


def _rows(at: slice) -> slice:
    return slice(at.start // ROW, at.stop // ROW)
