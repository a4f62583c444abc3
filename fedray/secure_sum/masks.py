"""Masks: ChaCha20 keystreams added to a vector modulo 2^32 or 2^64, block by block.

No second copy of the vector is made, and a block stays in the processor's cache while
all masks are added to it.
"""

from collections.abc import Sequence

import numpy as np

from fedray.privacy.keys import keystream

BLOCK = 2**18  # bytes
Mask = tuple[bytes, int]  # key of 32 bytes, and 1 to add or -1 to subtract


class MaskStream:
    """The masks of some keys, added to the blocks of one vector after the other.

    A key's mask is its ChaCha20 keystream (RFC 8439, nonce and counter 0), read as
    unsigned numbers in little endian: a key must be used for one mask only.

    masks : keys, each with 1 to add its mask or -1 to subtract it.
    dtype : of the vector, uint32 or uint64 in little endian; sums wrap around.
    """

    def __init__(self, masks: Sequence[Mask], dtype: np.dtype):
        self._streams = [(keystream(key).update_into, sign) for key, sign in masks]
        self._zeros = np.zeros(BLOCK, np.uint8)
        self._stream = np.empty(BLOCK // dtype.itemsize, dtype)

    def add(self, block: np.ndarray) -> None:
        """Add the next numbers of all masks, in place; at most `BLOCK` bytes."""
        stream = self._stream[: len(block)]
        for write, sign in self._streams:
            write(self._zeros[: block.nbytes], stream.view(np.uint8))
            (np.add if sign > 0 else np.subtract)(block, stream, out=block)


def add_masks(vector: np.ndarray, masks: Sequence[Mask]) -> None:
    """Add all masks to a whole vector, in place."""
    stream, step = MaskStream(masks, vector.dtype), BLOCK // vector.itemsize
    for start in range(0, len(vector), step):
        stream.add(vector[start : start + step])
