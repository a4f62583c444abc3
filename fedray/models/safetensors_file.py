"""Reads and writes .safetensors files, and folders of their shards.

numpy has no bfloat16: such numbers are read into float32, which holds them exactly, and
are rounded to it again where they are written.
"""

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from fedray.errors import MissingExtra
from fedray.file_kinds import INDEX, list_shards
from fedray.models.untrusted import (
    BROKEN,
    MAX_TENSORS,
    UnsafeFile,
    check_readable,
    copy_array,
    quote,
    validate_name,
)
from fedray.weights import MAX_DIMENSIONS, Weights, encoding

MAX_HEADER_BYTES = 4 << 20  # 400 a tensor
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
METADATA = "__metadata__"


def read(path: Path) -> tuple[Weights, frozenset[str]]:
    """Tensors of a file, or of an index's shards; and names of those in bfloat16.

    Raises
    ------
    UnsafeFile
        If anything is wrong with it.
    MissingExtra
        If the package safetensors is not installed.
    """
    if not path.name.endswith(INDEX):
        return _read_one(path)
    weights: Weights = {}
    bfloat16 = frozenset[str]()
    for shard, names in _read_index(path).items():
        check_shard(shard)
        part, part_bfloat16 = _read_one(shard)
        if missing := [name for name in names if name not in part]:
            raise UnsafeFile(
                f"its shard {shard.name} lacks tensors {missing[:5]} that the index "
                "says are there: copy all of them again"
            )
        if again := [name for name in part if name in weights]:
            raise UnsafeFile(f"two of its shards hold the tensors {again[:5]}")
        weights |= part
        bfloat16 |= part_bfloat16
    return weights, bfloat16


def check_shard(shard: Path) -> None:
    """Raise UnsafeFile, naming the shard, where it cannot be read."""
    try:
        check_readable(shard)
    except UnsafeFile as error:
        raise UnsafeFile(f"its shard {shard.name}: {error}") from None


def _read_index(path: Path) -> dict[Path, list[str]]:
    try:
        shards = list_shards(path)
    except (OSError, ValueError) as error:
        raise UnsafeFile(f"it is no index of shards: {error}") from error
    return {path.parent / file: names for file, names in shards.items()}


def _read_one(path: Path) -> tuple[Weights, frozenset[str]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtra("reading .safetensors files", "safetensors") from error
    header, start = _read_header(path)
    for name, form in header.items():
        _check_form(validate_name(name), form)
    short = frozenset(name for name, form in header.items() if form["dtype"] == "BF16")
    try:
        with safe_open(path, framework="np") as file:  # checks every offset
            weights = {
                name: _read_bfloat16(path, start, header[name])
                if name in short
                else copy_array(file.get_tensor(name))
                for name in header
            }
    except (SafetensorError, ValueError, OSError, KeyError, TypeError) as error:
        raise UnsafeFile(BROKEN) from error
    return weights, short


def _read_bfloat16(path: Path, start: int, form: dict[str, Any]) -> np.ndarray:
    first, shape = start + form["data_offsets"][0], form["shape"]
    bits = np.fromfile(path, "<u2", math.prod(shape), offset=first)
    return encoding.from_bfloat16(bits).reshape(shape)


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Entries of a file's header, in the file's order; where its numbers start."""
    try:
        with path.open("rb") as file:
            n_bytes = int.from_bytes(file.read(8), "little")
            if n_bytes > min(MAX_HEADER_BYTES, path.stat().st_size - 8):
                raise UnsafeFile(
                    f"its header would have {n_bytes} bytes, more than the file or the "
                    f"{MAX_HEADER_BYTES} that are read: copy it or save it again"
                )
            header = json.loads(
                file.read(n_bytes), object_pairs_hook=_refuse_duplicates
            )
    except (ValueError, RecursionError, OSError) as error:
        raise UnsafeFile(BROKEN) from error
    if type(header) is not dict or len(header) > MAX_TENSORS:
        raise UnsafeFile(
            f"its header does not name up to {MAX_TENSORS} tensors: save it again"
        )
    header.pop(METADATA, None)
    return header, 8 + n_bytes


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise UnsafeFile("its header names something twice: save it again")
    return entries


def _check_form(name: str, form: Any) -> None:
    if type(form) is not dict or type(form.get("shape")) is not list:
        raise UnsafeFile(BROKEN)
    if len(form["shape"]) > MAX_DIMENSIONS:
        raise UnsafeFile(
            f"tensor {quote(name)} has {len(form['shape'])} dimensions, at most "
            f"{MAX_DIMENSIONS} are read: reshape it and save again"
        )
    if form.get("dtype") not in DTYPES:
        raise UnsafeFile(
            f"tensor {quote(name)} is of dtype {quote(form.get('dtype'))}, read are "
            f"{', '.join(DTYPES)}: save model.float()"
        )


def write(
    weights: Weights,
    path: Path,
    metadata: dict[str, str] | None = None,
    bfloat16: Collection[str] = (),
) -> None:
    """Write arrays; those of names in `bfloat16` rounded to it.

    Raises
    ------
    MissingExtra
        If the package safetensors is not installed.
    """
    try:
        from safetensors import TensorSpec, serialize_file
    except ImportError:
        raise MissingExtra("writing .safetensors files", "safetensors") from None
    arrays = {name: np.asarray(a, order="C") for name, a in weights.items()}
    arrays |= {name: encoding.to_bfloat16(arrays[name]) for name in bfloat16}
    specs = {
        name: TensorSpec(
            dtype="bfloat16" if name in bfloat16 else array.dtype.name,
            shape=array.shape,
            data_ptr=array.ctypes.data,
            data_len=array.nbytes,
        )
        for name, array in arrays.items()
    }
    serialize_file(specs, path, metadata=metadata)
