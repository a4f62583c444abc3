"""Checks of untrusted model files of any framework: tensor names, sizes, zip layout."""

import os
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fedray.errors import ModelFileError
from fedray.file_kinds import FileKind
from fedray.untrusted_text import is_harmless
from fedray.weights import Weights, non_finite
from fedray.weights.npz import BoundedReader

MAX_TENSORS = 10_000
MAX_NAME = 256  # characters
FORBIDDEN_IN_NAMES = ("/", "\\", "..")  # names become members of npz files
MAX_READ = 8 << 20  # bytes asked of the file at once: the zip's directory is one read
BROKEN = "it is cut short or damaged: copy it or save it again"
READ_ERRORS = (
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,  # NotImplementedError among them
    ValueError,
)


class UnsafeFile(Exception):
    """Why a model file is not read; the adapter's reader adds the path to it."""


def other_kind(kind: FileKind) -> UnsafeFile:
    """The error of a file that holds something else than the model that is read."""
    return UnsafeFile(f"it is {kind.what}: {kind.advice}")


@contextmanager
def model_file_errors(path: Path | str) -> Iterator[None]:
    """Turn UnsafeFile inside into ModelFileError, which names the file."""
    try:
        yield
    except UnsafeFile as error:
        raise ModelFileError(str(path), str(error)) from error


def check_finite(weights: Weights) -> None:
    """Raise UnsafeFile where a tensor holds NaN or infinity."""
    if name := non_finite(weights):
        raise UnsafeFile(
            f"tensor {name!r} holds NaN or infinity: save a model whose numbers are "
            "finite"
        )


def check_readable(path: Path) -> None:
    """Raise UnsafeFile for what is no file, may not be read or holds nothing."""
    try:
        n_bytes, is_file = path.stat().st_size, path.is_file()
    except (OSError, ValueError) as error:
        raise UnsafeFile("there is no such file: check the path") from error
    if not is_file:
        raise UnsafeFile("it is a directory or a device: give a file")
    if not os.access(path, os.R_OK):
        raise UnsafeFile("it may not be read: change its permissions")
    if not n_bytes:
        raise UnsafeFile("it is empty: copy it or save it again")


def validate_name(name: object) -> str:
    """The name, if a tensor may have it."""
    if (
        type(name) is not str
        or not 0 < len(name) <= MAX_NAME
        or not is_harmless(name)
        or any(part in name for part in FORBIDDEN_IN_NAMES)
    ):
        raise UnsafeFile(
            f"it names a tensor {quote(name)}: needed are 1 to {MAX_NAME} printable "
            "characters without slashes, so rename it and save again"
        )
    return name


def quote(name: object) -> str:
    """`name` for an error message: shortened, quoted, in ASCII."""
    return ascii(name[:60] if isinstance(name, str) else type(name).__name__)


def check_members(infos: list[zipfile.ZipInfo], n_bytes: int, maker: str) -> None:
    """Raise UnsafeFile for zips that unpack to more than they hold, or repeat a name.

    maker : the function that writes such files, which never compresses.
    """
    if len({info.filename for info in infos}) != len(infos):
        raise UnsafeFile("two members of its zip have one name: save it again")
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise UnsafeFile(
            f"its zip is compressed, {maker} never does that: save it again "
            f"with {maker}"
        )
    is_inconsistent = any(info.compress_size != info.file_size for info in infos)
    if is_inconsistent or sum(info.file_size for info in infos) > n_bytes:
        raise UnsafeFile(BROKEN)


def bounded(file: BinaryIO) -> BoundedReader:
    """Limit reads to `MAX_READ` bytes, and so what a zip directory takes in memory."""
    return BoundedReader(file, MAX_READ, UnsafeFile)


def copy_array(array: np.ndarray) -> np.ndarray:
    """A contiguous copy in this machine's byte order; booleans become 0 or 1."""
    if array.dtype.kind == "b":
        return np.array(array.view(np.uint8) != 0, order="C")
    return np.array(array, array.dtype.newbyteorder("="), order="C")
