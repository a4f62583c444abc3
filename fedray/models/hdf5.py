"""A stranger's HDF5 file turned into plain arrays, in a process of its own.

The HDF5 library runs in circles or dies on some damaged files. So none is opened where
fedray runs: ``python -m fedray.models.hdf5 FILE FOLDER`` does that under limits, looks
at every object before it reads any, and leaves arrays and texts in FOLDER. Links that
lead elsewhere, data that lies in other files, filters (which HDF5 loads as plugins) and
data sets that claim more than is stored are refused.
"""

import json
import math
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fedray.models.untrusted import BROKEN, FAULTS, MAX_TENSORS, Refused, shown
from fedray.weights import KINDS, MAX_DIMENSIONS

MAX_OBJECTS = 4 * MAX_TENSORS  # groups among them
MAX_DEPTH = 40
MAX_ATTRIBUTES = 1_000  # of one object; Keras cuts long lists of names into several
MAX_TEXTS = 200_000  # in one attribute
MAX_NAME = 1_000  # characters of an object's whole path
CPU_S = 1.0  # of this process; and
OBJECT_S = 0.001  # for every object, four times what it takes; and a second for every
BYTES_A_SECOND = 50 << 20  # that are read
MEMORY = 1 << 30  # of address space, the libraries included; and
COPIES = 4  # of the file
ARRAYS, TEXTS = "arrays.npz", "texts.json"


def extract(path: Path, folder: Path) -> None:
    """Leave the file's arrays, and the texts that its groups have, in `folder`.

    Raises
    ------
    Refused
        If anything in it is not as Keras writes it.
    """
    arrays, texts = {}, {}
    with h5py.File(path, "r") as file:
        found = list(_objects(file))
        claimed = sum(_stored(o) for o in found if isinstance(o, h5py.Dataset))
        if claimed > path.stat().st_size:
            raise Refused("its arrays claim more bytes than it has")
        for item in found:
            if isinstance(item, h5py.Dataset):
                _allow(item.nbytes / BYTES_A_SECOND)
                arrays[f"a:{item.name}"] = item[()]
            else:
                texts[item.name] = dict(_texts(item))
    np.savez(folder / ARRAYS, **arrays)
    (folder / TEXTS).write_text(json.dumps(texts), encoding="utf-8")


def _objects(file: h5py.File) -> Iterator[h5py.Group | h5py.Dataset]:
    todo, seen = [(file["/"], 0)], set()
    while todo:
        item, depth = todo.pop()
        address = h5py.h5o.get_info(item.id).addr
        if address in seen or len(seen) == MAX_OBJECTS or depth > MAX_DEPTH:
            raise Refused(
                "its groups are more or deeper than a model's, or one is in it twice: "
                "save it again"
            )
        seen.add(address)
        _allow(OBJECT_S)
        _check_path(item.name)
        if isinstance(item, h5py.Group):
            if len(item) > MAX_TENSORS:
                raise Refused(f"it has a group of {len(item)} objects: not a model's")
            todo += [(_child(item, name), depth + 1) for name in item]
        yield item


def _child(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    link = group.get(name, getlink=True)
    if link is None:
        raise Refused(BROKEN)
    if not isinstance(link, h5py.HardLink):
        kind = type(link).__name__
        raise Refused(
            f"it holds a {kind} {shown(name)} to somewhere else: save it again, with "
            "everything in one file"
        )
    if group.get(name, getclass=True) not in (h5py.Group, h5py.Dataset):
        raise Refused(f"its {shown(name)} is neither a group nor an array")
    return group[name]


def _check_path(name: str) -> None:
    if len(name) > MAX_NAME or not name.isprintable() or ".." in name:
        raise Refused(f"it names something {shown(name)}, which no model is called")


def _stored(item: h5py.Dataset) -> int:
    """Bytes of one data set, all of them stored in this file as they are."""
    where, made = shown(item.name), item.id.get_create_plist()
    if item.is_virtual or made.get_external_count():
        raise Refused(f"its array {where} lies in another file: save all in one")
    if made.get_nfilters():
        raise Refused(f"its array {where} is compressed or filtered: save it plain")
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


def _texts(item: h5py.Group) -> Iterator[tuple[str, str | list[str]]]:
    """Attributes that are texts or lists of them; numbers are none that Keras needs."""
    if len(item.attrs) > MAX_ATTRIBUTES:
        raise Refused(f"{shown(item.name)} in it has {len(item.attrs)} attributes")
    for name in item.attrs:
        attribute = item.attrs.get_id(name)
        if math.prod(attribute.shape) > MAX_TEXTS:
            raise Refused(f"its attribute {shown(name)} is longer than a model's")
        if attribute.get_type().get_class() == h5py.h5t.STRING:
            value: Any = item.attrs[name]
            many = isinstance(value, np.ndarray)
            yield name, [_text(part) for part in value.flat] if many else _text(value)
        elif not math.prod(attribute.shape):
            yield name, []  # of no names at all


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _limit(n_bytes: int) -> None:
    most, hard = MEMORY + COPIES * n_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)  # set around this process: only lowered
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, CPU_S)


def _allow(seconds: float) -> None:
    """Let this process run so much longer until its timer ends it, if there is one."""
    left = signal.getitimer(signal.ITIMER_PROF)[0]
    if left:
        signal.setitimer(signal.ITIMER_PROF, left + seconds)


def main(path: str, folder: str) -> str:
    """Extract within limits; the reason why not, or nothing."""
    try:
        _limit(Path(path).stat().st_size)
        extract(Path(path), Path(folder))
    except Refused as refused:
        return str(refused)
    except (*FAULTS, TypeError, MemoryError):  # h5py's, for what it does not know
        return BROKEN
    return ""


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))
