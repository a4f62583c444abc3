"""Weights and updates in files, as edges get and send them: the .safetensors format.

Written without the package of that name, which an edge need not have. Read with every
size and offset checked before memory is taken; arrays are views of the mapped file.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedray import fusion
from fedray.edges.protocol import Task
from fedray.fusion import ExpectedUpdate
from fedray.fusion.update_checks import MAX_SAMPLES
from fedray.messages import Origin, Rejection, Update
from fedray.weights import Form, Schema, Weights

MAX_HEADER = 8 << 20  # bytes
ALIGNMENT = 8  # of the first number in the file
METADATA = "__metadata__"
CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
    "bool": "BOOL",
}  # fmt: skip
NAMES = {code: name for name, code in CODES.items()}


class TensorFile(NamedTuple):
    """What a file holds: arrays as views of it, and what it says of itself."""

    weights: Weights
    metadata: dict[str, str]


class TensorFileError(ValueError):
    """A file is damaged, or holds other tensors than are needed."""


def write(
    path: Path, weights: Weights, metadata: Mapping[str, str] | None = None
) -> tuple[str, int]:
    """Write arrays, flushed to disk; SHA-256 of the file and its bytes.

    The file is written in place: who needs it whole or not at all renames it.
    """
    sha, n_bytes = hashlib.sha256(), 0
    with path.open("wb") as file:
        for part in _parts(weights, metadata or {}):
            file.write(part)
            sha.update(part)
            n_bytes += len(part)
        file.flush()
        os.fsync(file.fileno())
    return sha.hexdigest(), n_bytes


def size_of_file(schema: Schema, metadata: Mapping[str, str] | None = None) -> int:
    """Bytes of the file with tensors of a schema."""
    header = _header(schema, metadata or {})
    return len(header) + sum(_n_bytes(form) for form in schema.values())


def read(path: Path, needed: Schema | None = None) -> TensorFile:
    """Map a file's arrays, which stay read-only views of it.

    needed : names, shapes and dtypes that it has to have, and no others; None: any.

    Raises
    ------
    TensorFileError
        If it is damaged or holds other tensors; the message has none of its numbers.
    OSError
    """
    n_bytes = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, n_bytes - 8):
            raise TensorFileError("its header is larger than the file, or than read")
        header = _parse(file.read(length))
    metadata = header.pop(METADATA, {})
    if not _is_metadata(metadata):
        raise TensorFileError("its metadata is no mapping of short texts")
    forms = {name: _form(name, entry) for name, entry in header.items()}
    if needed is not None and (different := _difference(forms, needed)):
        raise TensorFileError(different)
    start = 8 + length
    _check_offsets(forms, header, n_bytes - start)
    numbers = _map(path, start, n_bytes)
    weights: Weights = {}
    for name in needed if needed is not None else forms:
        first, last = header[name]["data_offsets"]
        weights[name] = _view(numbers[first:last], name, forms[name])
    return TensorFile(weights, metadata)


def update_metadata(task: Task, n_samples: int) -> dict[str, str]:
    """What the file of an update says of itself; `read_update` compares it."""
    return {
        "run": task.run,
        "round": str(task.round),
        "party": str(task.party),
        "base": task.base or "",
        "n_samples": str(n_samples),
    }


def read_update(
    path: Path, task: Task, needed: Schema, max_samples: int = MAX_SAMPLES
) -> Update | Rejection:
    """Map an edge's update, or say why it must not be used.

    task : which it has to be of. max_samples : that its party has declared.
    """
    try:
        weights, metadata = read(path, needed)
    except TensorFileError as error:
        return Rejection("schema", f"its file is refused: {error}")
    digits = metadata.get("n_samples", "")
    n_samples = int(digits) if digits.isdecimal() and len(digits) < 20 else 0
    if metadata != update_metadata(task, n_samples):
        asked_for = f"run {task.run!r}, round {task.round}, place {task.party}"
        return Rejection("origin", f"is of another task, asked for was {asked_for}")
    origin = Origin(task.run, task.round, task.party)
    update = Update(weights, n_samples, origin=origin)
    expected = ExpectedUpdate(origin, max_samples)
    return fusion.rejection_reason(update, needed, expected) or update


def _map(path: Path, start: int, n_bytes: int) -> np.ndarray:
    if n_bytes == start:
        return np.zeros(0, np.uint8)
    return np.memmap(path, np.uint8, "r")[start:]


def _view(raw: np.ndarray, name: str, form: Form) -> np.ndarray:
    array = np.frombuffer(raw, form.dtype).reshape(form.shape)
    if array.dtype == np.bool_ and raw.size and raw.max() > 1:
        raise TensorFileError(f"tensor {name!r:.80} holds what is no truth value")
    return array


def _parts(weights: Weights, metadata: Mapping[str, str]) -> Any:
    """The file, piece by piece: header first, then each tensor's numbers."""
    forms = {name: Form(a.shape, str(a.dtype)) for name, a in weights.items()}
    yield _header(forms, metadata)
    for name in _order(forms):
        array = np.ascontiguousarray(weights[name])
        yield array.reshape(-1).view(np.uint8).data if array.size else b""


def _header(forms: Schema, metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name in _order(forms):
        form, start = forms[name], end
        end += _n_bytes(form)
        entries[name] = {
            "dtype": CODES[form.dtype],
            "shape": list(form.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _order(forms: Schema) -> list[str]:
    """Names in the order of the file: wide numbers first, so that all are aligned."""
    return sorted(forms, key=lambda name: -np.dtype(forms[name].dtype).itemsize)


def _n_bytes(form: Form) -> int:
    return math.prod(form.shape) * np.dtype(form.dtype).itemsize


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError):
        raise TensorFileError("its header is not JSON, or names one twice") from None
    if type(header) is not dict:
        raise TensorFileError("its header is no mapping")
    return header


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError
    return entries


def _is_metadata(value: Any) -> bool:
    return type(value) is dict and all(
        type(text) is str and len(text) <= 1024 for text in value.values()
    )


def _form(name: str, entry: Any) -> Form:
    match entry:
        case {
            "dtype": str() as code,
            "shape": list() as shape,
            "data_offsets": [int(), int()],
        } if code in NAMES:
            if len(shape) <= 32 and all(type(n) is int and n >= 0 for n in shape):
                return Form(tuple(shape), NAMES[code])
    raise TensorFileError(f"tensor {name!r:.80} has no dtype, shape and place")


def _difference(forms: Schema, needed: Schema) -> str:
    """As `fedray.weights.mismatch` says it, of what the header claims."""
    if forms.keys() != needed.keys():
        missing = [name for name in needed if name not in forms]
        extra = [name[:80] for name in forms if name not in needed]
        return f"tensors missing: {missing[:5]}, not of this model: {extra[:5]}"
    for name, form in needed.items():
        if forms[name] != form:
            return f"tensor {name!r} got {forms[name]}, needed {form}"
    return ""


def _check_offsets(forms: Schema, header: Mapping[str, Any], n_bytes: int) -> None:
    """See that the tensors fill the file, one behind the other."""
    spans = sorted((*header[name]["data_offsets"], name) for name in forms)
    end = 0
    for first, last, name in spans:
        if first != end or last - first != _n_bytes(forms[name]):
            raise TensorFileError(f"tensor {name!r:.80} is not where its shape ends")
        end = last
    if end != n_bytes:
        raise TensorFileError("its tensors do not fill the file")
