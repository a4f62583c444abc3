"""npz files of weights: writing, and reading with every declared size checked."""

import zipfile
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from fedray.weights.arrays import KINDS, MAX_DIMENSIONS, Weights

MAX_READ = 64 << 20  # bytes asked of a zip at once: its directory is one read


class BoundedReader:
    """A binary file of which only a limited number of bytes can be read at once.

    zipfile reads a zip's whole directory before it checks it: a file of 1 GB that is
    nothing but directory would become ten times as many bytes of Python objects.

    Parameters
    ----------
    max_bytes : of one read.
    error : makes what is raised where more is asked for, from its message.
    """

    def __init__(
        self,
        file: BinaryIO,
        max_bytes: int = MAX_READ,
        error: Callable[[str], Exception] = ValueError,
    ):
        self.file, self.max_bytes, self.error = file, max_bytes, error
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, n: int = -1) -> bytes:
        """Read up to `n` bytes, or all that is left."""
        if n <= self.max_bytes:
            data = self.file.read(n if n >= 0 else self.max_bytes + 1)
            if len(data) <= self.max_bytes:
                return data
            n = len(data)
        raise self.error(f"its zip needs {n} bytes of directory, far more than a model")


def save(weights: Weights, path: Path) -> None:
    """Write an uncompressed npz; arrays only, never objects."""
    # a tensor named "file" would collide with savez's argument
    members: dict[str, Any] = {f"w:{name}": a for name, a in weights.items()}
    np.savez(path, **members)


def load(path: Path) -> Weights:
    """Read what `save` wrote; checksums are verified, pickles refused.

    Raises
    ------
    Exception
        Of many kinds, before more memory is taken than the file has bytes.
    """
    arrays = read(path)
    for name in arrays:
        if not name.startswith("w:"):
            raise ValueError(f"an array {name[:40]!r} that no checkpoint has")
    return {name[2:]: array for name, array in arrays.items()}


def write(arrays: Weights, path: Path) -> None:
    """Write an uncompressed npz of arrays under any names, as `np.load` reads it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


def read(path: Path) -> Weights:
    """Read all arrays of an uncompressed npz, as `load` does, under any names."""
    with path.open("rb") as file, zipfile.ZipFile(BoundedReader(file)) as archive:
        members = archive.infolist()
        if len({member.filename for member in members}) < len(members):
            raise ValueError("two arrays of one name")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("compressed: write it with np.savez")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("its arrays are larger than itself")
        if others := [m.filename for m in members if not m.filename.endswith(".npy")]:
            raise ValueError(f"it holds {others[0][:40]!r}, which is no array")
        return {member.filename[:-4]: _array(archive, member) for member in members}


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
