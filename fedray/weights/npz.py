"""Weights in an npz file: written whole, read trusting nothing that it declares."""

import zipfile
from math import prod
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from fedray.weights.arrays import KINDS, MAX_DIMENSIONS, Weights

MAX_READ = 64 << 20  # bytes asked of a zip at once: its directory is one read


class Bounded:
    """A file that is never asked for much at once.

    zipfile reads a whole directory before it looks at it: of a 1 GB file that is
    nothing but directory it would make ten times that in Python objects.
    """

    def __init__(self, file: BinaryIO, most: int = MAX_READ):
        self.file, self.most = file, most
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, n: int = -1) -> bytes:
        """As a file does, but for an error where more than `most` is asked for."""
        found = self.file.read(min(n, self.most + 1) if n >= 0 else self.most + 1)
        if len(found) > self.most:
            raise ValueError(f"more than {self.most} bytes at once")
        return found


def save(weights: Weights, path: Path) -> None:
    """Write an uncompressed npz; arrays only, never objects."""
    # a tensor named "file" would collide with savez's argument
    np.savez(path, **{f"w:{name}": array for name, array in weights.items()})


def load(path: Path) -> Weights:
    """Read what `save` wrote; checksums are verified, pickles refused.

    Raises
    ------
    Exception
        Of many kinds, before more memory is taken than the file has bytes.
    """
    with path.open("rb") as file, zipfile.ZipFile(Bounded(file)) as archive:
        members = archive.infolist()
        if len({member.filename for member in members}) < len(members):
            raise ValueError("two arrays of one name")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("compressed, as no checkpoint is written")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("its arrays are larger than itself")
        return {_name(member): _array(archive, member) for member in members}


def _name(member: zipfile.ZipInfo) -> str:
    name = member.filename
    if not (name.startswith("w:") and name.endswith(".npy")):
        raise ValueError(f"an array {name[:40]!r} that no checkpoint has")
    return name[2:-4]


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        check_header(file, member.file_size)
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def check_header(file: IO[bytes], n_bytes: int) -> np.dtype:
    """Read an npy header and see that it declares what is there; its dtype.

    Raises
    ------
    ValueError
        If it does not, or has more than eight dimensions. dtypes that are no numbers
        are not looked into: the caller says which it takes.
    """
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:  # refuses what is not (2, 0): only records with names have that
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.kind not in KINDS:
        return dtype
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{len(shape)} dimensions, at most {MAX_DIMENSIONS}")
    if file.tell() + prod(shape) * dtype.itemsize != n_bytes:
        raise ValueError("another size than it declares")
    return dtype
