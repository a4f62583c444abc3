"""A PyTorch file as named arrays and plain descriptions of its layers, without torch.

A stranger's file is data here: nothing in it is run, and every size, count and name
is checked before memory is taken for it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray.errors import MissingExtra, ModelFileError
from fedray.models.pytorch import archive
from fedray.models.pytorch.pickle_reader import (
    Module,
    Parameter,
    PickleReader,
    Tensor,
)
from fedray.models.pytorch.tensors import check_dimensions, owned
from fedray.models.pytorch.tree import Layer, Tree
from fedray.models.untrusted import (
    BROKEN,
    MAX_TENSORS,
    Refused,
    check_there,
    checked_name,
    shown,
)
from fedray.weights import Weights, non_finite

MAX_HEADER_BYTES = 4 << 20  # of a .safetensors file: 400 a tensor
SAFE_DTYPES = ("F64", "F32", "F16", "I64", "I32", "I16", "I8", "U8", "BOOL")

__all__ = ["Layer", "ModelFile", "read"]


@dataclass(frozen=True)
class ModelFile:
    """What a file holds.

    weights : its tensors in the order of state_dict(), owned and contiguous.
    layer : the outermost layer of a whole model; None for a bare state_dict.
    frozen : names of a whole model's parameters whose requires_grad is False.
    """

    weights: Weights
    layer: Layer | None = None
    frozen: frozenset[str] = frozenset()


def read(path: Path) -> ModelFile:
    """Read what torch.save wrote (a model of torch.nn, a state_dict) or .safetensors.

    Raises
    ------
    ModelFileError
        If anything at all is wrong with the file.
    MissingExtra
        If it is a .safetensors file and the package of that name is not installed.
    """
    path = Path(path)
    try:
        check_there(path)
        is_safe = path.suffix.lower() == ".safetensors"
        found = _safetensors(path) if is_safe else _torch(path)
        if not found.weights:
            raise Refused("it holds no tensors: there is nothing to train and fuse")
        if name := non_finite(found.weights):
            raise Refused(
                f"tensor {name!r} holds NaN or infinity: save a model whose numbers "
                "are finite"
            )
        return found
    except Refused as refused:
        raise ModelFileError(str(path), str(refused)) from refused


def _torch(path: Path) -> ModelFile:
    with archive.opened(path) as opened:
        value = PickleReader().read(opened.pickle())
        tree = Tree(opened)
        if type(value) is Module:
            layer = tree.add_model(value)
            return ModelFile(tree.weights, layer, frozenset(tree.frozen))
        for name, tensor in _state_dict(value).items():
            tree.add_tensor(name, tensor)
        return ModelFile(tree.weights)


def _state_dict(value: Any) -> dict[str, Any]:
    needed = "save the state_dict alone, torch.save(model.state_dict(), path)"
    if type(value) is not dict:
        raise Refused(f"it is {_kind(value)}, not a model or state_dict: {needed}")
    for name, tensor in value.items():
        if type(tensor) not in (Tensor, Parameter):
            raise Refused(
                f"it is a checkpoint: its entry {shown(name)} is {_kind(tensor)}, not "
                f"a tensor, so {needed}"
            )
    return value


def _kind(value: Any) -> str:
    return "a model" if type(value) is Module else f"of type {type(value).__name__}"


def _safetensors(path: Path) -> ModelFile:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise MissingExtra("reading .safetensors files", "safetensors") from error
    header = _header(path)
    for name, form in header.items():
        _check_form(checked_name(name), form)
    try:
        arrays = load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise Refused(BROKEN) from error
    return ModelFile({name: owned(arrays[name]) for name in header})


def _header(path: Path) -> dict[str, Any]:
    """Entries of a .safetensors file in its own order, before anything is loaded."""
    try:
        with path.open("rb") as file:
            n_bytes = int.from_bytes(file.read(8), "little")
            if n_bytes > min(MAX_HEADER_BYTES, path.stat().st_size - 8):
                raise Refused(
                    f"its header would have {n_bytes} bytes, more than the file or the "
                    f"{MAX_HEADER_BYTES} that are read: copy it or save it again"
                )
            header = json.loads(file.read(n_bytes), object_pairs_hook=_all_different)
    except (ValueError, RecursionError, OSError) as error:
        raise Refused(BROKEN) from error
    if type(header) is not dict or len(header) > MAX_TENSORS:
        raise Refused(
            f"its header does not name up to {MAX_TENSORS} tensors: save it again"
        )
    header.pop("__metadata__", None)
    return header


def _all_different(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise Refused("its header names something twice: save it again")
    return entries


def _check_form(name: str, form: Any) -> None:
    if type(form) is not dict or type(form.get("shape")) is not list:
        raise Refused(BROKEN)
    check_dimensions(name, len(form["shape"]))
    if form.get("dtype") not in SAFE_DTYPES:
        raise Refused(
            f"tensor {shown(name)} is of dtype {shown(form.get('dtype'))}, read are "
            f"{', '.join(SAFE_DTYPES)}: save model.float()"
        )
