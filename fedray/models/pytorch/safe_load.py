"""Reads untrusted PyTorch and .safetensors files safely, without importing torch.

A file becomes named arrays and plain descriptions of its layers. Nothing in it is run,
and every size, count and name is checked before memory is taken for it.
"""

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from fedray.file_kinds import (
    INDEX,
    SAFETENSORS,
    START_BYTES,
    kind_of_members,
    kind_of_start,
    read_start,
)
from fedray.models import safetensors_file
from fedray.models.blueprint import with_bfloat16
from fedray.models.pytorch.pickle_reader import (
    ADVICE,
    DAMAGED,
    Foreign,
    Module,
    Parameter,
    PickleReader,
    Storage,
    Tensor,
)
from fedray.models.untrusted import (
    BROKEN,
    MAX_NAME,
    MAX_TENSORS,
    READ_ERRORS,
    UnsafeFile,
    bounded,
    check_finite,
    check_members,
    check_readable,
    copy_array,
    model_file_errors,
    other_kind,
    quote,
    validate_name,
)
from fedray.weights import MAX_DIMENSIONS, Schema, Weights, encoding, schema

MAX_PICKLE_BYTES = 16 << 20
CHUNK = 1 << 20  # bytes of a member read at a time
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # begins files older than 1.6


class Archive:
    """The zip of one torch.save file, checked before memory is taken for its claims."""

    def __init__(self, zipped: zipfile.ZipFile, n_bytes: int):
        self.zipped, self.n_bytes = zipped, n_bytes
        self.members = {info.filename: info for info in zipped.infolist()}
        self.root = _archive_root(list(self.members))
        check_members(zipped.infolist(), n_bytes, "torch.save")
        self._raw: dict[str, np.ndarray] = {}
        order = self.members.get(f"{self.root}byteorder")
        if order and self._bytes(order).tobytes() != b"little":
            raise UnsafeFile(
                "its numbers are big-endian: save it again on a little-endian machine"
            )

    def pickle(self) -> bytes:
        """Bytes of the pickle that describes the model."""
        info = self.members[f"{self.root}data.pkl"]
        if info.file_size > MAX_PICKLE_BYTES:
            raise UnsafeFile(
                f"its pickle has {info.file_size} bytes, at most {MAX_PICKLE_BYTES} "
                f"are read: {ADVICE}"
            )
        return self._bytes(info).tobytes()

    def numbers(self, storage: Storage) -> np.ndarray:
        """All numbers of one storage, flat; each storage is read once."""
        info = self.members.get(f"{self.root}data/{storage.key}")
        dtype = np.dtype("u2" if storage.dtype == "bfloat16" else storage.dtype)
        if info is None or info.file_size != storage.n * dtype.itemsize:
            raise UnsafeFile(BROKEN)
        if storage.key not in self._raw:
            self._raw[storage.key] = self._bytes(info)
        raw = self._raw[storage.key].view(dtype.newbyteorder("<"))
        return encoding.from_bfloat16(raw) if storage.dtype == "bfloat16" else raw

    def _bytes(self, info: zipfile.ZipInfo) -> np.ndarray:
        """Read one member; zipfile compares its CRC at the end."""
        raw = np.empty(info.file_size, np.uint8)
        view, n_read = raw.data, 0
        with self.zipped.open(info) as member:
            while part := member.read(CHUNK):
                view[n_read : n_read + len(part)] = part
                n_read += len(part)
        if n_read != info.file_size:
            raise UnsafeFile(BROKEN)
        return raw


def _archive_root(names: list[str]) -> str:
    """The one folder that torch.save puts everything in, with its slash."""
    pickles = [n for n in names if n.count("/") == 1 and n.endswith("/data.pkl")]
    if not pickles and (kind := kind_of_members(names)):
        raise other_kind(kind)
    if len(pickles) != 1:
        raise UnsafeFile(
            "it is a zip but not one of torch.save: save the model with torch.save"
        )
    root = pickles[0].removesuffix("data.pkl")
    if any(n == f"{root}constants.pkl" or n.startswith(f"{root}code/") for n in names):
        raise UnsafeFile(
            "it is a TorchScript archive, which is code, and code in a file is never "
            f"run: {ADVICE}"
        )
    return root


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open the archive at `path`; errors of reading it become `UnsafeFile`."""
    try:
        with path.open("rb") as file:
            _check_magic(file.read(START_BYTES), path.suffix)
            with zipfile.ZipFile(bounded(file)) as zipped:
                yield Archive(zipped, path.stat().st_size)
    except READ_ERRORS as error:
        raise UnsafeFile(BROKEN) from error


def _check_magic(start: bytes, suffix: str) -> None:
    if start.startswith(LEGACY):
        raise UnsafeFile(
            "it is of the format before torch 1.6: convert it once with "
            "torch.save(torch.load(path, weights_only=True), path), and "
            "weights_only=False if it is a whole model that you trust"
        )
    if start.startswith(b"PK\x03\x04"):
        return
    if kind := kind_of_start(start, suffix):
        raise other_kind(kind)
    raise UnsafeFile(
        "it is neither of torch.save (a zip) nor a .safetensors file, or it is cut "
        "short: save the model with torch.save"
    )


def check_dimensions(name: str, n_dimensions: int) -> None:
    """Raise UnsafeFile for tensors of more than MAX_DIMENSIONS dimensions."""
    if n_dimensions > MAX_DIMENSIONS:
        raise UnsafeFile(
            f"tensor {quote(name)} has {n_dimensions} dimensions, at most "
            f"{MAX_DIMENSIONS} are read: reshape it and save again"
        )


def strided_view(name: str, tensor: Tensor, numbers: np.ndarray) -> np.ndarray:
    """A tensor's elements within its storage, never more than the storage has.

    Parameters
    ----------
    numbers : (n,) array
        Its whole storage.
    """
    offset, shape, strides = tensor.offset, tensor.shape, tensor.strides
    if type(shape) is not tuple or type(strides) is not tuple:
        raise UnsafeFile(DAMAGED)
    check_dimensions(name, len(shape))
    is_consistent = len(shape) == len(strides)
    if not is_consistent or not all(
        type(n) is int and n >= 0 for n in (offset, *shape, *strides)
    ):
        raise UnsafeFile(DAMAGED)
    n_elements = math.prod(shape)
    steps = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if not n_elements:
        return np.empty(shape, numbers.dtype)
    if n_elements > numbers.size or offset + steps >= numbers.size:
        raise UnsafeFile(
            f"tensor {quote(name)} claims shape {list(shape)}, more than is stored "
            "for it: save tensor.contiguous()"
        )
    return as_strided(
        numbers[offset:], shape, [numbers.itemsize * stride for stride in strides]
    )


MAX_LAYERS = 2_000
MAX_DEPTH = 50  # layers inside layers
MAX_ENTRIES = 200_000  # of all layers' dicts together; shared ones count every time
MAX_COPIES = 4  # a tied tensor is copied under every name: times the file's bytes
SCALARS = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Layer:
    """A module of torch.nn as plain data that can be pickled; `build_layers` builds it.

    kind : name of its class in torch.nn, such as "Conv2d".
    args : its public attributes that are plain data, and for each of its parameters
        (weight, bias) whether it has one: at least its constructor's arguments.
    children : names and layers in order; one object twice is one module used twice.
    tied : of the outermost layer only, (name, earlier name) of one and the same
        parameter.
    """

    kind: str
    args: dict[str, Any]
    children: tuple[tuple[str, "Layer"], ...] = ()
    tied: tuple[tuple[str, str], ...] = ()


@dataclass
class ModelCollector:
    """Collects weights and layer descriptions of one archive, within bounds."""

    archive: Archive
    weights: Weights = field(default_factory=dict)
    frozen: set[str] = field(default_factory=set)
    bfloat16: set[str] = field(default_factory=set)
    tied: list[tuple[str, str]] = field(default_factory=list)
    _layers: dict[int, Layer] = field(default_factory=dict)  # by id of the Module
    _names: dict[int, str] = field(default_factory=dict)  # by id of the Parameter
    _n_layers: int = 0
    _n_entries: int = 0
    _n_bytes: int = 0

    def add_model(self, module: Module) -> Layer:
        """Collect a whole model; returns its outermost layer."""
        return replace(self._layer(module, "", 1), tied=tuple(self.tied))

    def add_tensors(self, module: Any, prefix: str = "", depth: int = 1) -> None:
        """Collect the tensors of a model alone: whatever its classes are."""
        self._count_layer(module, prefix, depth)
        state = self._entries(module.state)
        for name, value in self._entries(state.get("_parameters")).items():
            self._add_parameter(prefix + name, value)
        self._add_buffers(state, prefix)
        for name, child in self._entries(state.get("_modules")).items():
            if child is not None:
                self.add_tensors(child, f"{prefix}{name}.", depth + 1)

    def add_tensor(self, name: str, value: Any) -> None:
        """Copy one tensor or parameter out of the archive."""
        tensor = value.tensor if type(value) is Parameter else value
        if type(tensor) is not Tensor or type(tensor.storage) is not Storage:
            raise UnsafeFile(DAMAGED)
        if len(self.weights) == MAX_TENSORS:
            raise UnsafeFile(f"it has more than {MAX_TENSORS} tensors: {ADVICE}")
        array = strided_view(
            validate_name(name), tensor, self.archive.numbers(tensor.storage)
        )
        self._n_bytes += array.nbytes
        if self._n_bytes > MAX_COPIES * self.archive.n_bytes:
            raise UnsafeFile(
                f"its tensors share their numbers: they would fill over {MAX_COPIES} "
                "times the file's bytes, so save one of each"
            )
        self.weights[name] = copy_array(array)
        if tensor.storage.dtype == "bfloat16":
            self.bfloat16.add(name)

    def _count_layer(self, module: Any, prefix: str, depth: int) -> None:
        if type(module) is not Module:
            raise UnsafeFile(f"its module {quote(prefix)} is no module of torch.nn")
        self._n_layers += 1
        if self._n_layers > MAX_LAYERS or depth > MAX_DEPTH:
            raise UnsafeFile(
                f"it has over {MAX_LAYERS} layers, or over {MAX_DEPTH} one inside the "
                f"other: {ADVICE}"
            )

    def _layer(self, module: Any, prefix: str, depth: int) -> Layer:
        self._count_layer(module, prefix, depth)
        state = self._entries(module.state)
        args = {
            key: value for key, value in state.items() if self._is_argument(key, value)
        }
        for name, value in self._entries(state.get("_parameters")).items():
            args[name] = value is not None
            self._add_parameter(prefix + name, value)
        self._add_buffers(state, prefix)
        children = tuple(
            (name, self._layer(child, f"{prefix}{name}.", depth + 1))
            for name, child in self._entries(state.get("_modules")).items()
        )
        return self._layers.setdefault(id(module), Layer(module.kind, args, children))

    def _add_parameter(self, name: str, value: Any) -> None:
        if value is None:
            return
        if type(value) is not Parameter or type(value.requires_grad) is not bool:
            raise UnsafeFile(DAMAGED)
        if not value.requires_grad:
            self.frozen.add(name)
        self.add_tensor(name, value)
        earlier = self._names.setdefault(id(value), name)
        if earlier != name:
            self.tied.append((name, earlier))

    def _add_buffers(self, state: dict[str, Any], prefix: str) -> None:
        transient = state.get("_non_persistent_buffers_set", [])
        if type(transient) is not list:
            raise UnsafeFile(DAMAGED)
        self._count(len(transient))
        for name, value in self._entries(state.get("_buffers")).items():
            if value is not None and name not in transient:
                self.add_tensor(prefix + name, value)

    def _entries(self, value: Any) -> dict[str, Any]:
        """A dict of a module, its names checked; each visit counts for the bound."""
        if type(value) is not dict:
            raise UnsafeFile(DAMAGED)
        self._count(len(value))
        for name in value:
            if "." in validate_name(name):
                raise UnsafeFile(DAMAGED)
        return value

    def _is_argument(self, name: str, value: Any) -> bool:
        """Whether an attribute may be an argument of the layer's constructor."""
        if name.startswith("_"):
            if name.endswith("_hooks") and value:
                raise UnsafeFile(
                    f"it has hooks, which are code and never run: {ADVICE}"
                )
            return False
        return name != "training" and self._is_data(value, 2)

    def _is_data(self, value: Any, depth: int) -> bool:
        if type(value) in SCALARS:
            return type(value) is not str or len(value) <= MAX_NAME
        if type(value) not in (tuple, list) or len(value) > MAX_DIMENSIONS or not depth:
            return False
        self._count(len(value))
        return all(self._is_data(item, depth - 1) for item in value)

    def _count(self, n_entries: int) -> None:
        self._n_entries += n_entries
        if self._n_entries > MAX_ENTRIES:
            raise UnsafeFile(f"its layers have over {MAX_ENTRIES} attributes: {ADVICE}")


__all__ = ["Layer", "ModelFile", "read"]

# entries of training checkpoints that hold the model, the likeliest first
CHECKPOINTS = ("model_state_dict", "state_dict", "model", "module", "net", "weights")


@dataclass(frozen=True)
class ModelFile:
    """Contents of a model file.

    weights : its tensors in the order of state_dict(), owned and contiguous.
    layer : the outermost layer of a whole model; None for a bare state_dict.
    frozen : names of a whole model's parameters whose requires_grad is False.
    bfloat16 : names of tensors that it holds in bfloat16; `weights` are float32.
    notes : what people must know of it.
    """

    weights: Weights
    layer: Layer | None = None
    frozen: frozenset[str] = frozenset()
    bfloat16: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def forms(self) -> Schema:
        """Names, shapes, and dtypes as the file has them."""
        return with_bfloat16(schema(self.weights), self.bfloat16)


def read(path: Path, has_architecture: bool = False) -> ModelFile:
    """Read what torch.save wrote (a model of torch.nn, a state_dict) or .safetensors.

    has_architecture : whether tensors are all that is needed: then a model of the
        user's own classes is read too.

    Raises
    ------
    ModelFileError
        If anything at all is wrong with the file.
    MissingExtra
        If it is a .safetensors file and the package of that name is not installed.
    """
    path = Path(path)
    with model_file_errors(path):
        check_readable(path)
        if _is_safetensors(path):
            weights, bfloat16 = safetensors_file.read(path)
            file = ModelFile(weights, bfloat16=bfloat16)
        else:
            file = _torch(path, has_architecture)
        if not file.weights:
            raise UnsafeFile("it holds no tensors: there is nothing to train and fuse")
        check_finite(file.weights)
        return file


def _is_safetensors(path: Path) -> bool:
    """Whether a file is to be read as .safetensors: by its bytes, then by its name."""
    start = read_start(path)
    kind = kind_of_start(start)
    is_named = path.suffix.lower() == ".safetensors" and kind is None
    is_index = path.name.endswith(INDEX)
    is_other = start.startswith(b"PK\x03\x04")
    return kind == SAFETENSORS or is_index or (is_named and not is_other)


def _torch(path: Path, has_architecture: bool) -> ModelFile:
    with open_archive(path) as archive:
        reader, tree = PickleReader(), ModelCollector(archive)
        value = reader.read(archive.pickle())
        key, value = _find_model(value)
        layer = None
        if type(value) is Module and has_architecture:
            tree.add_tensors(value)
        elif type(value) is Module:
            if reader.foreign:
                raise reader.foreign
            layer = tree.add_model(value)
        else:
            for name, tensor in _state_dict(value, reader.foreign).items():
                tree.add_tensor(name, tensor)
        frozen, bfloat16 = frozenset(tree.frozen), frozenset(tree.bfloat16)
        what = f"{path.name} is a training checkpoint: its entry {quote(key)} is used"
        notes = (what,) if key else ()
        return ModelFile(tree.weights, layer, frozen, bfloat16, notes)


def _find_model(value: Any) -> tuple[str, Any]:
    """The model in a training checkpoint and its key there; else the value itself."""
    if type(value) is not dict or _is_state_dict(value):
        return "", value
    inside = [
        key
        for key in value
        if type(value[key]) is Module or (value[key] and _is_state_dict(value[key]))
    ]
    usual = [key for key in CHECKPOINTS if key in inside]
    if usual or len(inside) == 1:
        key = (usual or inside)[0]
        return str(key), value[key]
    return "", value


def _is_state_dict(value: Any) -> bool:
    return type(value) is dict and all(
        type(tensor) in (Tensor, Parameter) for tensor in value.values()
    )


def _state_dict(value: Any, foreign: UnsafeFile | None) -> dict[str, Any]:
    needed = "save the state_dict alone, torch.save(model.state_dict(), path)"
    if type(value) is not dict:
        if foreign:
            raise foreign
        raise UnsafeFile(f"it is {_kind(value)}, not a model or state_dict: {needed}")
    for name, tensor in value.items():
        if type(tensor) not in (Tensor, Parameter):
            if foreign:
                raise foreign
            raise UnsafeFile(
                f"it is a checkpoint: its entry {quote(name)} is {_kind(tensor)}, not "
                f"a tensor, so {needed}"
            )
    return value


def _kind(value: Any) -> str:
    if type(value) is Foreign:
        return "of a class that is not torch's"
    return "a model" if type(value) is Module else f"of type {type(value).__name__}"
