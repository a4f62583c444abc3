"""Every object of an HDF5 file looked at before any of it is read.

Links that lead elsewhere, data that lies in other files, filters (which HDF5 loads as
plugins) and data sets that claim more than is stored are refused.
"""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import h5py

from fedray.models.foreign import BROKEN, FAULTS, MAX_TENSORS, Refused, shown
from fedray.weights import KINDS, MAX_DIMENSIONS, Form

MAX_OBJECTS = 4 * MAX_TENSORS  # groups among them
MAX_DEPTH = 40
MAX_ATTRIBUTES = 1_000  # of one object; Keras cuts long lists of names into several
MAX_TEXTS = 200_000  # numbers or texts in one attribute
STATE_OF = ("optimizer", "optimizer_weights")  # what training remembered: not read


@contextmanager
def opened(source: Path | BinaryIO) -> Iterator[h5py.File]:
    """The file, every object of it checked; its faults become `Refused`."""
    try:
        if isinstance(source, Path):
            n_bytes = source.stat().st_size
        else:
            n_bytes = source.seek(0, 2)
        with h5py.File(source, "r") as file:
            _check(file, n_bytes)
            yield file
    except FAULTS as error:
        raise Refused(BROKEN) from error
    except (TypeError, MemoryError) as error:  # h5py's, for types it does not know
        raise Refused(BROKEN) from error


def forms(file: h5py.File) -> Counter[Form]:
    """How many tensors there are of each shape and dtype, optimizers' left out."""
    found: Counter[Form] = Counter()

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and name.split("/")[0] not in STATE_OF:
            found[Form(item.shape, item.dtype.name)] += 1

    file.visititems(visit)
    return found


def text(file: h5py.File, name: str) -> str | None:
    """A text that the file has as an attribute; None if it has none."""
    value = file.attrs.get(name)
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if value is not None and not isinstance(value, str):
        raise Refused(BROKEN)
    return value


def _check(file: h5py.File, n_bytes: int) -> None:
    todo, seen, n_claimed = [(file["/"], 0)], set(), 0
    while todo:
        item, depth = todo.pop()
        address = h5py.h5o.get_info(item.id).addr
        if address in seen or len(seen) == MAX_OBJECTS or depth > MAX_DEPTH:
            raise Refused(
                "its groups are more or deeper than a model's, or one is in it twice: "
                "save it again"
            )
        seen.add(address)
        _check_attributes(item)
        if isinstance(item, h5py.Dataset):
            n_claimed += _stored(item)
            if n_claimed > n_bytes:
                raise Refused("its arrays claim more bytes than it has")
        elif len(item) > MAX_TENSORS:
            raise Refused(
                f"it has a group of {len(item)} objects, far more than a model"
            )
        else:
            todo += [(_child(item, name), depth + 1) for name in item]


def _child(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        kind = type(link).__name__
        raise Refused(
            f"it holds a {kind} {shown(name)} to somewhere else: save it again, with "
            "everything in one file"
        )
    if group.get(name, getclass=True) not in (h5py.Group, h5py.Dataset):
        raise Refused(f"its {shown(name)} is neither a group nor an array")
    return group[name]


def _stored(item: h5py.Dataset) -> int:
    """Bytes of one data set, all of them stored in this file as they are."""
    where, made = shown(item.name), item.id.get_create_plist()
    if item.is_virtual or made.get_external_count():
        raise Refused(f"its array {where} lies in another file: save all in one")
    if made.get_nfilters():
        raise Refused(f"its array {where} is compressed or filtered: Keras never is")
    if item.dtype.kind not in KINDS or item.dtype.itemsize > 8 or item.shape is None:
        raise Refused(f"its array {where} is of dtype {item.dtype}, not of numbers")
    if len(item.shape) > MAX_DIMENSIONS:
        raise Refused(
            f"its array {where} has {len(item.shape)} dimensions, at most "
            f"{MAX_DIMENSIONS} are read"
        )
    n_bytes = math.prod(item.shape) * item.dtype.itemsize
    if n_bytes > item.id.get_storage_size():
        raise Refused(
            f"its array {where} claims shape {list(item.shape)}, more than is stored "
            "for it"
        )
    return n_bytes


def _check_attributes(item: h5py.Group | h5py.Dataset) -> None:
    if len(item.attrs) > MAX_ATTRIBUTES:
        raise Refused(f"{shown(item.name)} in it has {len(item.attrs)} attributes")
    for name in item.attrs:
        attribute = item.attrs.get_id(name)
        kind = attribute.get_type().get_class()
        is_plain = kind in (h5py.h5t.STRING, h5py.h5t.INTEGER, h5py.h5t.FLOAT)
        n_texts = math.prod(attribute.shape)
        if not is_plain or n_texts > MAX_TEXTS:
            raise Refused(f"its attribute {shown(name)} is no text, number or list")
