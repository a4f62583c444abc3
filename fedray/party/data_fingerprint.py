"""Fingerprints of data sets: the same for the same samples, in any order."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from fedray import data, nested

MODULUS = 1 << 256
BLOCK = 4096  # samples that are read at a time


def fingerprints(
    samples: data.Samples | object, pieces: Sequence[np.ndarray]
) -> list[str]:
    """A fingerprint of each piece's training samples, whatever their order.

    The sum of the SHA-256 of every sample with its target. Empty where samples are read
    anew in each pass, and may be others then.

    pieces : rows of the samples of each party.
    """
    if not isinstance(samples, data.Samples):
        return [""] * len(pieces)
    digests = list(_digests(samples))
    sums = (sum(digests[row] for row in piece.tolist()) for piece in pieces)
    return [f"{total % MODULUS:064x}" for total in sums]


def _digests(samples: data.Samples) -> Iterator[int]:
    """SHA-256 of each training sample with its target, as a number."""
    parts = {"x": samples.x_train, "y": samples.y_train}
    leaves = {
        f"{name}{where}": array
        for name, part in parts.items()
        for where, array in sorted(nested.arrays(part).items())
    }
    n_samples = nested.length(samples.x_train)
    for start in range(0, n_samples, BLOCK):
        rows = slice(start, min(start + BLOCK, n_samples))
        blocks = [_to_bytes(name, array[rows]) for name, array in leaves.items()]
        for of_sample in zip(*blocks, strict=True):
            digest = hashlib.sha256(b"".join(of_sample)).digest()
            yield int.from_bytes(digest, "big")


def _to_bytes(name: str, block: np.ndarray) -> Iterator[bytes]:
    """Each row of an array, after what it is."""
    head = f"{name} {block.dtype.str} {block.shape[1:]}:".encode()
    for row in np.ascontiguousarray(block):
        yield head + row.tobytes()
