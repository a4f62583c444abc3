"""Updates of hostile edges: how each differs from a valid one, why it is refused."""

import json
import os
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors.numpy import load, save
from support.simulated_edge import REPORT, metadata_of

Arrays = dict[str, np.ndarray]
Task = Mapping[str, Any]


@dataclass(frozen=True)
class Bad:
    """One bad update.

    arrays : made from the valid ones.
    content : made from the valid file; after `arrays`.
    says : metadata of the file that is otherwise.
    report : entries of the report that are otherwise.
    why : a word of the reason.
    """

    name: str
    why: str = ""
    arrays: Callable[[Arrays], Arrays] = lambda arrays: arrays
    content: Callable[[bytes], bytes] = lambda content: content
    says: Mapping[str, str] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)

    def make(self, base: bytes, task: Task) -> tuple[bytes, dict[str, Any]]:
        """The file and the report."""
        metadata = metadata_of(task) | dict(self.says)
        arrays = self.arrays(load(base))
        arrays = {name: np.ascontiguousarray(one) for name, one in arrays.items()}
        content = save(arrays, {k: v for k, v in metadata.items() if v is not None})
        return self.content(content), {**REPORT, **self.report}


def honest(base: bytes, task: Task, step: float = 1.0) -> tuple[bytes, dict[str, Any]]:
    """A valid update: each number moves by a step."""
    arrays = {name: one + np.float32(step) for name, one in load(base).items()}
    return save(arrays, metadata_of(task)), dict(REPORT)


def with_first(value: float) -> Callable[[Arrays], Arrays]:
    """One number of all is another."""

    def change(arrays: Arrays) -> Arrays:
        name = next(iter(arrays))
        changed = arrays[name].copy()
        changed.reshape(-1)[0] = value
        return arrays | {name: changed}

    return change


def as_type(dtype: str) -> Callable[[Arrays], Arrays]:
    """All arrays in another type."""
    return lambda arrays: {name: one.astype(dtype) for name, one in arrays.items()}


def renamed(arrays: Arrays) -> Arrays:
    """The first array has another name."""
    name, *others = arrays
    return {"other": arrays[name]} | {one: arrays[one] for one in others}


def transposed(arrays: Arrays) -> Arrays:
    """Matrices lie the other way."""
    return {name: one.T for name, one in arrays.items()}


def raveled(arrays: Arrays) -> Arrays:
    """Arrays have one dimension."""
    return {name: one.reshape(-1) for name, one in arrays.items()}


def with_header(change: Callable[[dict], object]) -> Callable[[bytes], bytes]:
    """The file's header is another, its numbers are the same."""

    def apply(content: bytes) -> bytes:
        (n,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + n])
        change(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + n :]

    return apply


def lie_about_shape(header: dict) -> None:
    """A tensor claims a terabyte."""
    name = next(name for name in header if name != "__metadata__")
    header[name]["shape"] = [1 << 19, 1 << 19]


def overlap(header: dict) -> None:
    """All tensors lie at the same place."""
    for name in header:
        if name != "__metadata__":
            n_bytes = np.subtract(*header[name]["data_offsets"][::-1])
            header[name]["data_offsets"] = [0, int(n_bytes)]


def deep_header(content: bytes) -> bytes:
    """A header nested 100,000 deep."""
    text = b'{"a":' * 100_000
    return struct.pack("<Q", len(text)) + text + content[-100:]


class Runs:
    """What a pickle would do, if anybody loaded it."""

    def __reduce__(self):
        return os.system, ("touch /tmp/fedray-was-hacked",)


BAD = (
    Bad("NaN", "finite", with_first(np.nan)),
    Bad("infinity", "finite", with_first(np.inf)),
    Bad("float16 overflow", "float", as_type("float16")),
    Bad("integers", "", as_type("int32")),
    Bad("float64", "", as_type("float64")),
    Bad("complex", "", as_type("complex64")),
    Bad("another shape", "", raveled),
    Bad("transposed", "", transposed),
    Bad("a tensor is missing", "", lambda a: dict([*a.items()][1:])),
    Bad("one too many", "", lambda a: a | {"more": np.zeros(1, np.float32)}),
    Bad("renamed", "", renamed),
    Bad("no tensors", "", lambda a: {}),
    Bad("norm × 10^6", "", lambda a: {k: v + np.float32(1e6) for k, v in a.items()}),
    Bad("an empty file", content=lambda c: b""),
    Bad("a byte", content=lambda c: b"{"),
    Bad("half", content=lambda c: c[: len(c) // 2]),
    Bad("a byte short", content=lambda c: c[:-1]),
    Bad("a byte more", content=lambda c: c + b"x"),
    Bad("random bytes", content=lambda c: np.random.default_rng(0).bytes(len(c))),
    Bad("a pickle", content=lambda c: pickle.dumps(Runs()).ljust(len(c), b".")),
    Bad("a zip", content=lambda c: b"PK\x03\x04" + c[4:]),
    Bad("a header of 2^63 bytes", content=lambda c: b"\xff" * 7 + b"\x7f" + c[8:]),
    Bad("a shape of a terabyte", content=with_header(lie_about_shape)),
    Bad("tensors that overlap", content=with_header(overlap)),
    Bad("a deep header", content=deep_header),
    Bad("another run's", says={"run": "other"}),
    Bad("of an earlier round", says={"round": "0"}),
    Bad("of a later round", says={"round": "99"}),
    Bad("another party's", says={"party": "0"}),
    Bad("from other weights", says={"base": "0" * 64}),
    Bad("no samples", report={"n_samples": 0}, says={"n_samples": "0"}),
    Bad("negative samples", report={"n_samples": -5}, says={"n_samples": "-5"}),
    Bad("NaN samples", report={"n_samples": float("nan")}, says={"n_samples": "nan"}),
    Bad("10^18 samples", report={"n_samples": 10**18}, says={"n_samples": str(10**18)}),
    Bad("true samples", report={"n_samples": True}),
    Bad("samples as text", report={"n_samples": "40"}),
    Bad("half a sample", report={"n_samples": 0.5}),
    Bad("more samples than declared", report={"n_samples": 41}),
    Bad("a report without a count", report={"n_samples": None}),
    Bad("seconds that are none", report={"seconds": -1.0}),
)
