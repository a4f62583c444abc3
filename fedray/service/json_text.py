"""JSON in and out: nothing is accepted that an answer could not repeat as it came."""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

from fedray.config.mistakes import MAX_DEPTH, MAX_NAME, describe_value
from fedray.errors import CallRefused
from fedray.untrusted_text import encodable

PART_BYTES = 1 << 20  # of an array: five to ten times as many of JSON
MIN_INTEGER, MAX_INTEGER = -(1 << 63), (1 << 64) - 1  # that any reader of JSON takes


def read_json(text: str | bytes) -> Any:
    """Data of a JSON text.

    Raises
    ------
    CallRefused
        If an object in it gives a key twice.
    ValueError
        If it is not JSON, or nested too deep.
    """
    try:
        return json.loads(text, object_pairs_hook=_refuse_repeated)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            detail = f"The JSON gives the key {name[:80]!a} twice."
            raise CallRefused(400, detail, "Keep one of them.")
        values[name] = value
    return values


def value_problem(name: str, value: Any) -> str:
    """Why a value that JSON can have cannot be kept and answered; empty if it can.

    name : of the field, for the message: ``optimizer_args.momentum must be ...``.
    """
    todo = [(name[:MAX_NAME], value, 1)]
    while todo:
        where, one, depth = todo.pop()
        if depth > MAX_DEPTH:
            return f"{name[:MAX_NAME]} is nested deeper than {MAX_DEPTH} levels"
        if isinstance(one, dict):
            todo += [(f"key of {where}", key, depth) for key in one]
            todo += [
                (f"{where}.{encodable(key[:MAX_NAME])}", inner, depth + 1)
                for key, inner in one.items()
            ]
        elif isinstance(one, list):
            todo += [(f"{where}[{i}]", inner, depth + 1) for i, inner in enumerate(one)]
        elif needed := _needed(one):
            return f"{where} must be {needed}, got {describe_value(one)}"
    return ""


def _needed(value: Any) -> str:
    """What a plain value has to be instead; empty if it is fine."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if isinstance(value, int) and not MIN_INTEGER <= value <= MAX_INTEGER:
        return "a number of at most 64 bits"
    if isinstance(value, str) and encodable(value) != value:
        return "text without halves of surrogate pairs"
    return ""


def write_json(value: Any) -> bytes:
    """Plain data as JSON; never fails, whatever an earlier version has accepted.

    NaN and infinity become null, as JSON has neither, and halves of surrogate pairs
    are written out as escapes.
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        return orjson.dumps(_writable(value))


def _writable(value: Any, depth: int = 0) -> Any:
    """The same data as far as orjson can write it; whole numbers stay exact."""
    if depth > 200:  # orjson takes 254 levels
        return "..."
    if isinstance(value, dict):
        return {
            encodable(str(key)): _writable(inner, depth + 1)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_writable(inner, depth + 1) for inner in value]
    if isinstance(value, str):
        return encodable(value)
    is_large = isinstance(value, int) and not MIN_INTEGER <= value <= MAX_INTEGER
    return orjson.Fragment(str(value)) if is_large else value


def json_parts(value: Any) -> Iterator[bytes | memoryview]:
    """The JSON of plain data with arrays, in parts of some MB: never as a whole.

    An array counts as nested lists; NaN in it becomes null.
    """
    if isinstance(value, dict):
        yield b"{"
        for i, (name, inner) in enumerate(value.items()):
            yield b"," * bool(i) + orjson.dumps(name) + b":"
            yield from json_parts(inner)
        yield b"}"
    elif isinstance(value, list) and isinstance((*value, 0)[0], list | np.ndarray):
        yield b"["
        for i, inner in enumerate(value):
            yield b"," * bool(i)
            yield from json_parts(inner)
        yield b"]"
    elif isinstance(value, np.ndarray) and value.ndim and value.nbytes > PART_BYTES:
        n_rows = len(value) * PART_BYTES // value.nbytes  # of a part
        yield from _rows(value, n_rows) if n_rows else json_parts([*value])
    else:
        yield orjson.dumps(value, _to_list, orjson.OPT_SERIALIZE_NUMPY)


def _rows(array: np.ndarray, n_rows: int) -> Iterator[bytes | memoryview]:
    """The JSON of a large array, so many rows at a time."""
    yield b"["
    for start in range(0, len(array), n_rows):
        (rows,) = json_parts(array[start : start + n_rows])
        yield b"," * bool(start)
        yield memoryview(rows)[1:-1]
    yield b"]"


def _to_list(value: Any) -> Any:
    """Arrays that orjson does not take itself: without dimensions, or strided."""
    return value.tolist()
