"""Masks: ChaCha20 keystreams added to a vector modulo 2^32 or 2^64, block by block.

No second copy of the vector is made, and a block stays in the processor's cache while
all masks are added to it.
"""

from collections.abc import Sequence

import numpy as np

from fedray.secure_sum.keys import keystream

BLOCK = 2**18  # bytes
Mask = tuple[bytes, int]  # key of 32 bytes, and 1 to add or -1 to subtract


def add_masks(vector: np.ndarray, masks: Sequence[Mask]) -> None:
    """Add or subtract the masks of these keys, in place.

    vector : of one dimension, uint32 or uint64 in little endian; sums wrap around.
        A key's mask is its keystream (RFC 8439, nonce and counter 0), read as such
        numbers: a key must be used for one mask only.
    """
    streams = [(keystream(key), sign) for key, sign in masks]
    step = BLOCK // vector.itemsize
    zeros, stream = np.zeros(BLOCK, np.uint8), np.empty(step, vector.dtype)
    for start in range(0, len(vector), step):
        block = vector[start : start + step]
        n = len(block)
        for write, sign in streams:
            write(zeros[: n * vector.itemsize], stream[:n].view(np.uint8))
            (np.add if sign > 0 else np.subtract)(block, stream[:n], out=block)
