"""One tensor of a stranger's file: name and geometry checked, then numbers copied."""

import math

import numpy as np
from numpy.lib.stride_tricks import as_strided

from fedray.models.pytorch.pickle_reader import DAMAGED, Tensor
from fedray.models.untrusted import Refused, shown
from fedray.weights import MAX_DIMENSIONS


def check_dimensions(name: str, n_dimensions: int) -> None:
    """Refuse tensors of more dimensions than anyone needs."""
    if n_dimensions > MAX_DIMENSIONS:
        raise Refused(
            f"tensor {shown(name)} has {n_dimensions} dimensions, at most "
            f"{MAX_DIMENSIONS} are read: reshape it and save again"
        )


def view(name: str, tensor: Tensor, numbers: np.ndarray) -> np.ndarray:
    """The part of its storage that a tensor shows, never more elements than that has.

    Parameters
    ----------
    numbers : (n,) array
        Its whole storage.
    """
    offset, shape, strides = tensor.offset, tensor.shape, tensor.strides
    if type(shape) is not tuple or type(strides) is not tuple:
        raise Refused(DAMAGED)
    check_dimensions(name, len(shape))
    known = len(shape) == len(strides)
    if not known or not all(
        type(n) is int and n >= 0 for n in (offset, *shape, *strides)
    ):
        raise Refused(DAMAGED)
    n_elements = math.prod(shape)
    steps = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if not n_elements:
        return np.empty(shape, numbers.dtype)
    if n_elements > numbers.size or offset + steps >= numbers.size:
        raise Refused(
            f"tensor {shown(name)} claims shape {list(shape)}, more than is stored "
            "for it: save tensor.contiguous()"
        )
    return as_strided(
        numbers[offset:], shape, [numbers.itemsize * stride for stride in strides]
    )


def owned(array: np.ndarray) -> np.ndarray:
    """A contiguous copy in this machine's byte order; bools are made 0 or 1."""
    if array.dtype.kind == "b":
        return np.array(array.view(np.uint8) != 0, order="C")
    return np.array(array, array.dtype.newbyteorder("="), order="C")
