"""Arrays of numbers made of what a handler returns; each refusal says what to give.

No error here contains a sample's value: errors leave the party, samples do not.
"""

import mmap
from collections.abc import Mapping, Sized
from typing import Any

import numpy as np

from fedray.errors import DataError, format_count
from fedray.nested import MappedArray, Nested

MAX_READ_WHOLE = 64 << 20  # bytes of an array in a file that is read whole all the same
KINDS = "fiub"  # float, signed, unsigned, bool: what a model can learn from
NEEDED = "an array of finite numbers, samples along its first axis"
TEXT = "numbers: give each text a number, the same one at all parties"
TIMES = "numbers, such as seconds: x.astype('int64')"
MISSING = "no missing values: fill them or leave those samples out"
NOT_NUMBERS = {  # kinds of numpy's dtypes, in plain words, and what to give
    "O": ("Python objects", "numbers, such as x.astype('float32')"),
    "U": ("text", TEXT),
    "S": ("text", TEXT),
    "T": ("text", TEXT),
    "M": ("dates", TIMES),
    "m": ("spans of time", TIMES),
    "c": ("complex numbers", "real numbers, such as x.real and x.imag as two columns"),
    "V": ("records or a dtype that numpy lacks", "one array of numbers of one dtype"),
}
MISSING_TYPES = ("NoneType", "NAType", "NaTType")
NUMBERS = (bool, int, float, np.bool_, np.integer, np.floating)


def to_array(
    value: Any, name: str, source: str, allows_missing: bool = False
) -> np.ndarray:
    """A contiguous array of finite numbers, of whatever holds them.

    allows_missing : whether NaN may stand for a value that is missing.

    Raises
    ------
    DataError
        If it holds anything else, or hides some of its values.
    """
    if hasattr(value, "tocsr") or _is_sparse_tensor(value):
        got = f"{name} that is a sparse matrix"
        raise DataError(source, got, "a dense array: x.toarray() or x.to_dense()")
    _refuse_missing(_count_masked(value), name, source)  # numpy would unmask them
    try:
        array = np.asarray(_to_cpu(value))  # lists, tensors, what has __array__
    except Exception:
        got = f"{name} of type {type(value).__name__}, which is no array"
        needed = f"{NEEDED}, all of one shape"
        raise DataError(source, got, needed) from None
    _refuse_missing(_count_missing(array), name, source)
    array = _check_kind(array, name, source)
    if array.dtype.kind == "f" and not _are_numbers(array, allows_missing):
        raise DataError(source, f"NaN or infinity in {name}", NEEDED)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = _to_signed(array, name, source)
    # torch takes neither foreign byte orders nor negative strides
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _are_numbers(array: np.ndarray, allows_missing: bool) -> bool:
    are_finite = np.isfinite(array)
    return bool((are_finite | np.isnan(array) if allows_missing else are_finite).all())


def to_arrays(
    value: Any, name: str, source: str, allows_missing: bool = False
) -> Nested:
    """Nested arrays of a tuple or dict of whatever holds numbers, or of one.

    Raises
    ------
    DataError
        As `to_array`; naming the array by where it stands.
    """
    if isinstance(value, Mapping) and not hasattr(value, "dtype"):
        _refuse_empty(value, name, source)
        for key in value:
            if not isinstance(key, str):
                got = f"{name} with a key of type {type(key).__name__}"
                raise DataError(source, got, "texts: the names of the model's inputs")
        return {
            key: to_arrays(part, f"{name}[{key!r}]", source, allows_missing)
            for key, part in value.items()
        }
    if isinstance(value, Inputs):
        _refuse_empty(value, name, source)
        return tuple(
            to_arrays(part, f"{name}[{i}]", source, allows_missing)
            for i, part in enumerate(value)
        )
    if value is None:
        needed = "an array; leave out what is not there"
        raise DataError(source, f"{name} that is None", needed)
    if is_large_map(value):
        return _to_mapped(value, name, source, allows_missing)
    return to_array(value, name, source, allows_missing)


class Inputs(tuple):
    """A tuple that holds several inputs or targets, not samples."""


def _refuse_empty(value: Sized, name: str, source: str) -> None:
    if not len(value):
        got = f"{name} that is an empty {type(value).__name__.lower()}"
        raise DataError(source, got, "at least one array in it")


def is_large_map(value: Any) -> bool:
    """Whether an array lies in a file that numpy maps, and is not read whole."""
    if not isinstance(value, np.ndarray) or value.nbytes <= MAX_READ_WHOLE:
        return False
    base: Any = value
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return isinstance(base, mmap.mmap)


def _to_mapped(
    array: np.ndarray, name: str, source: str, allows_missing: bool
) -> MappedArray:
    """An array that stays in its file, once all of it was looked at by blocks."""
    _check_kind(array[:0], name, source)
    dtype = array.dtype.newbyteorder("=")
    if dtype.kind == "u" and dtype.itemsize > 1:
        dtype = np.dtype(np.int32 if dtype.itemsize == 2 else np.int64)
    for block in MappedArray(array, array.dtype.newbyteorder("=")).blocks():
        if dtype.kind == "f" and not _are_numbers(block, allows_missing):
            raise DataError(source, f"NaN or infinity in {name}", NEEDED)
        if block.dtype.kind == "u" and block.itemsize > 1:
            _to_signed(block, name, source)
    return MappedArray(np.asarray(array), dtype)


def describe(array: np.ndarray) -> str:
    """dtype and shape."""
    return f"{array.dtype.name}{list(array.shape)}"


def _is_sparse_tensor(value: Any) -> bool:
    return "sparse" in str(getattr(value, "layout", ""))


def _to_cpu(value: Any) -> Any:
    """A tensor of torch on the CPU, in a dtype that numpy has; all else as it is."""
    if not (hasattr(value, "detach") and hasattr(value, "cpu")):
        return value
    tensor = value.detach().cpu()
    return tensor.float() if "bfloat16" in str(tensor.dtype) else tensor


def _refuse_missing(n_missing: int, name: str, source: str) -> None:
    if n_missing:
        got = f"{name} with {format_count(n_missing, 'masked or missing value')}"
        raise DataError(source, got, MISSING)


def _count_missing(array: np.ndarray) -> int:
    """Missing values of Python and pandas, which have no number."""
    items = array.ravel().tolist() if array.dtype.kind == "O" and array.ndim else []
    return sum(type(item).__name__ in MISSING_TYPES for item in items)


def _count_masked(value: Any) -> int:
    if isinstance(value, list | tuple):
        return sum(map(_count_masked, value))
    return int(np.ma.count_masked(value)) if np.ma.isMaskedArray(value) else 0


def _check_kind(array: np.ndarray, name: str, source: str) -> np.ndarray:
    """The array, if it holds numbers of up to 64 bits; Python's own become numpy's."""
    if array.ndim == 0:
        kind = "number" if array.dtype.kind in KINDS else type(array.item()).__name__
        raise DataError(source, f"{name} that is a single {kind}", NEEDED)
    if array.dtype.kind == "O" and array.size:
        array = _to_numbers(array)
    if array.dtype.kind in NOT_NUMBERS:
        holds, needed = NOT_NUMBERS[array.dtype.kind]
        if holds == "text" and name.startswith("y"):
            needed = "class numbers 0, 1, ..., the same ones at all parties"
        raise DataError(source, f"{name} that holds {holds}", needed)
    if array.dtype.itemsize > 8:
        needed = f"{NEEDED}, of at most 64 bits"
        raise DataError(source, f"{name} {describe(array)}", needed)
    return array


def _to_numbers(objects: np.ndarray) -> np.ndarray:
    """An array of Python's numbers, or of its texts, as numpy's own; others stay."""
    items = objects.ravel().tolist()
    if not all(isinstance(item, NUMBERS) for item in items) and not all(
        isinstance(item, str | bytes) for item in items
    ):
        return objects
    return np.array(items).reshape(objects.shape)


def _to_signed(array: np.ndarray, name: str, source: str) -> np.ndarray:
    """Unsigned integers, which torch hardly knows, as signed ones of 32 or 64 bits."""
    signed: type[np.signedinteger] = np.int32 if array.itemsize == 2 else np.int64
    if array.size and array.max() > np.iinfo(signed).max:
        got = f"{name} {describe(array)} with numbers of 2**63 or more"
        raise DataError(source, got, "whole numbers below 2**63, or floats")
    return array.astype(signed)
