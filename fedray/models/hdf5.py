"""Extracts arrays and texts from an untrusted HDF5 file, in a child process.

The HDF5 library hangs or crashes on some damaged files, so no file is opened in the
process that runs a federation. ``python -m fedray.models.hdf5 FILE FOLDER`` opens it
under limits on memory and CPU time, checks every object before it reads any, and writes
arrays and texts to FOLDER. UnsafeFile are soft and external links, external storage,
filters (HDF5 loads them as plugins) and data sets that declare more than is stored.

`extract` starts that process.
"""

import json
import math
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fedray import limits
from fedray.models.untrusted import BROKEN, MAX_TENSORS, READ_ERRORS, UnsafeFile, quote
from fedray.untrusted_text import is_harmless
from fedray.weights import KINDS, MAX_DIMENSIONS, Form, Weights

MAX_OBJECTS = 4 * MAX_TENSORS  # arrays and groups
MAX_DEPTH = 40
MAX_ATTRIBUTES = 1_000  # of one object; Keras cuts long lists of names into several
MAX_TEXTS = 200_000  # in one attribute
MAX_PATH_LENGTH = 1_000  # characters
# CPU time of the child: a start, for each object (four times what it takes), and
# for the bytes read
START_CPU_S = 1.0
OBJECT_CPU_S = 0.001
BYTES_PER_S = 50 << 20
# address space of the child: the libraries, and copies of the file
BASE_MEMORY_BYTES = 1 << 30
N_FILE_COPIES = 4
TIMEOUT_S = 120  # of the child by the clock, however busy the machine is
ARRAYS_FILE, TEXTS_FILE = "arrays.npz", "texts.json"
OPTIMIZER_GROUPS = ("optimizer", "optimizer_weights")  # optimizer state: not used


@dataclass(frozen=True)
class Content:
    """Arrays and texts of an HDF5 file.

    arrays : by path, such as "/layers/dense/vars/0".
    texts : attributes of groups, by path and name of the attribute.
    """

    arrays: Weights
    texts: dict[str, dict[str, str | list[str]]]

    def model_arrays(self) -> Weights:
        """Arrays by path, without those of an optimizer's state."""
        return {
            path: array
            for path, array in self.arrays.items()
            if path.split("/")[1] not in OPTIMIZER_GROUPS
        }

    def forms(self) -> Counter[Form]:
        """Number of arrays of each shape and dtype, without the optimizer's state."""
        arrays = self.model_arrays().values()
        return Counter(Form(array.shape, array.dtype.name) for array in arrays)

    def root_text(self, name: str) -> str | None:
        """A text attribute of the root group; None if there is none.

        Raises
        ------
        UnsafeFile
            If the attribute is a list.
        """
        value = self.texts.get("/", {}).get(name)
        if value is not None and not isinstance(value, str):
            raise UnsafeFile(BROKEN)
        return value

    def write(self, path: Path) -> None:
        """Write an HDF5 file with the same arrays and texts, made by this process."""
        with h5py.File(path, "w") as file:
            for group_path, attributes in self.texts.items():
                group = file.require_group(group_path)
                for key, value in attributes.items():
                    group.attrs[key] = _attribute(value)
            for array_path, array in self.model_arrays().items():
                file[array_path] = array


def _attribute(value: str | list[str]) -> str | np.ndarray:
    if isinstance(value, str):
        return value
    return np.array([text.encode() for text in value], "S")


def extract(path: Path) -> Content:
    """Read an untrusted HDF5 file in a child process.

    Raises
    ------
    UnsafeFile
        If it holds anything that Keras does not write, or the child fails on it.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fedray.models.hdf5", str(path), folder]
        try:
            child = subprocess.run(
                command,
                capture_output=True,
                timeout=TIMEOUT_S,
                env=limits.child_environment(),
                check=True,
            )
            reason = json.loads(child.stdout)
            if reason:
                raise UnsafeFile(reason)
            return _read_extracted(Path(folder))
        except (*READ_ERRORS, subprocess.SubprocessError) as error:
            raise UnsafeFile(BROKEN) from error


def _read_extracted(folder: Path) -> Content:
    with np.load(folder / ARRAYS_FILE, allow_pickle=False) as file:
        arrays = {name.removeprefix("a:"): file[name] for name in file.files}
    texts = json.loads((folder / TEXTS_FILE).read_text(encoding="utf-8"))
    return Content(arrays, texts)


# What follows runs in the child.


def write_extracted(path: Path, folder: Path) -> None:
    """Write the arrays of an HDF5 file and the texts of its groups to `folder`.

    Raises
    ------
    UnsafeFile
        If it holds anything that Keras does not write.
    """
    arrays: dict[str, Any] = {}
    texts: dict[str, dict[str, str | list[str]]] = {}
    with h5py.File(path, "r") as file:
        objects = list(_objects(file))
        n_declared = sum(_n_bytes(o) for o in objects if isinstance(o, h5py.Dataset))
        if n_declared > path.stat().st_size:
            raise UnsafeFile("its arrays claim more bytes than it has")
        for item in objects:
            if isinstance(item, h5py.Dataset):
                limits.extend_cpu_timer(item.nbytes / BYTES_PER_S)
                # a data set named "file" would collide with savez's argument
                arrays[f"a:{item.name}"] = item[()]
            else:
                texts[item.name] = dict(_texts(item))
    np.savez(folder / ARRAYS_FILE, **arrays)
    (folder / TEXTS_FILE).write_text(json.dumps(texts), encoding="utf-8")


def _objects(file: h5py.File) -> Iterator[h5py.Group | h5py.Dataset]:
    """All groups and data sets, each checked, each once."""
    pending = [(file["/"], 0)]
    addresses: set[int] = set()
    while pending:
        item, depth = pending.pop()
        address = h5py.h5o.get_info(item.id).addr
        is_full = len(addresses) == MAX_OBJECTS
        if address in addresses or is_full or depth > MAX_DEPTH:
            raise UnsafeFile(
                "its groups are more or deeper than a model's, or one is in it twice: "
                "save it again"
            )
        addresses.add(address)
        limits.extend_cpu_timer(OBJECT_CPU_S)
        _check_path(item.name)
        if isinstance(item, h5py.Group):
            if len(item) > MAX_TENSORS:
                raise UnsafeFile(
                    f"it has a group of {len(item)} objects: not a model's"
                )
            pending += [(_child(item, name), depth + 1) for name in item]
        yield item


def _child(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """The object under a name, if it is a hard link to a group or a data set."""
    link = group.get(name, getlink=True)
    if link is None:
        raise UnsafeFile(BROKEN)
    if not isinstance(link, h5py.HardLink):
        kind = type(link).__name__
        raise UnsafeFile(
            f"it holds a {kind} {quote(name)} to somewhere else: save it again, with "
            "everything in one file"
        )
    if group.get(name, getclass=True) not in (h5py.Group, h5py.Dataset):
        raise UnsafeFile(f"its {quote(name)} is neither a group nor an array")
    return group[name]


def _check_path(path: str) -> None:
    if len(path) > MAX_PATH_LENGTH or not is_harmless(path) or ".." in path:
        raise UnsafeFile(f"it names something {quote(path)}, which no model is called")


def _n_bytes(item: h5py.Dataset) -> int:
    """Bytes of one data set, all of them stored unfiltered in this file."""
    path, properties = quote(item.name), item.id.get_create_plist()
    if item.is_virtual or properties.get_external_count():
        raise UnsafeFile(f"its array {path} lies in another file: save all in one")
    if properties.get_nfilters():
        raise UnsafeFile(f"its array {path} is compressed or filtered: save it plain")
    if item.dtype.kind not in KINDS or item.dtype.itemsize > 8 or item.shape is None:
        raise UnsafeFile(f"its array {path} is of dtype {item.dtype}, not of numbers")
    if len(item.shape) > MAX_DIMENSIONS:
        raise UnsafeFile(
            f"its array {path} has {len(item.shape)} dimensions, at most "
            f"{MAX_DIMENSIONS} are read"
        )
    n_bytes = math.prod(item.shape) * item.dtype.itemsize
    if n_bytes > item.id.get_storage_size():
        raise UnsafeFile(
            f"its array {path} claims shape {list(item.shape)}, more than is stored "
            "for it"
        )
    return n_bytes


def _texts(item: h5py.Group) -> Iterator[tuple[str, str | list[str]]]:
    """Attributes that are texts or lists of texts; Keras needs no numbers of them."""
    if len(item.attrs) > MAX_ATTRIBUTES:
        raise UnsafeFile(f"{quote(item.name)} in it has {len(item.attrs)} attributes")
    for name in item.attrs:
        attribute = item.attrs.get_id(name)
        if math.prod(attribute.shape) > MAX_TEXTS:
            raise UnsafeFile(f"its attribute {quote(name)} is longer than a model's")
        if attribute.get_type().get_class() == h5py.h5t.STRING:
            value: Any = item.attrs[name]
            if isinstance(value, np.ndarray):
                yield name, [_decode(text) for text in value.flat]
            else:
                yield name, _decode(value)
        elif not math.prod(attribute.shape):
            yield name, []  # a list of no names has no type of text


def _decode(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def main(path: str, folder: str) -> str:
    """Extract under limits; the reason of a refusal, or an empty text."""
    limits.start_child()
    try:
        n_bytes = Path(path).stat().st_size
        limits.limit_memory(BASE_MEMORY_BYTES + N_FILE_COPIES * n_bytes)
        limits.start_cpu_timer(START_CPU_S)
        write_extracted(Path(path), Path(folder))
    except UnsafeFile as reason:
        return str(reason)
    except (*READ_ERRORS, TypeError, MemoryError):  # h5py's, for what it does not know
        return BROKEN
    return ""


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))
