"""A torch module that a Python caller gives as it is: its values, and how to make it.

Its values travel as weights do; the module itself is pickled without them.
"""

import hashlib
import io
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fedray import durable_files
from fedray.errors import ConfigError
from fedray.models.live import LiveModel
from fedray.user_code.code_text import PLAIN, code_text, is_own


def read_live(model: nn.Module, pickler: type[pickle.Pickler]) -> LiveModel:
    """A module as the initial model of a run; it is only read.

    pickler : that pickles classes of a notebook by value.

    Raises
    ------
    ConfigError
        If it cannot be pickled, or has no sizes yet.
    """
    model = unwrap(model)
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if is_lazy(tensor):
            layer = name.rpartition(".")[0] or "(all)"
            remedy = "give sizes, as in nn.Linear(8, 2), or call it on a sample first"
            raise ConfigError([f"model: layer {layer} has no size yet: {remedy}"])
    return LiveModel(
        name=type(model).__name__,
        suffix=".pt",
        write=partial(_write, model),
        build=partial(unpack, pack(model, pickler)),
        text=_describe(model),
        digest=_digest(state),
        settings={},
    )


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside torch.compile's and DataParallel's."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    inner: Any = model
    if type(model).__name__ == "OptimizedModule":
        inner = model._orig_mod
    elif isinstance(model, parallel):
        inner = model.module
    return model if inner is model else unwrap(inner)


def pack(model: nn.Module, pickler: type[pickle.Pickler]) -> bytes:
    """Pickle a module without the tensors of its state_dict."""
    state = model.state_dict(keep_vars=True)
    names = {id(tensor): name for name, tensor in state.items()}

    class Packer(pickler):  # type: ignore[valid-type, misc]
        def persistent_id(self, thing: Any) -> Any:
            if not isinstance(thing, torch.Tensor):
                return None
            if name := names.get(id(thing)):
                is_parameter = isinstance(thing, nn.Parameter)
                return (
                    name,
                    tuple(thing.shape),
                    thing.dtype,
                    is_parameter,
                    bool(thing.requires_grad),
                )
            return None if thing.device.type == "cpu" else ("", thing.detach().cpu())

    file = io.BytesIO()
    Packer(file).dump(model)
    return file.getvalue()


def unpack(packed: bytes) -> nn.Module:
    """A module of `pack`, on the CPU, with zeros for the tensors of its state_dict."""
    return _Unpacker(io.BytesIO(packed)).load()


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self.tensors: dict[str, torch.Tensor] = {}

    def persistent_load(self, pid: Any) -> torch.Tensor:
        if not pid[0]:
            return pid[1]
        name, shape, dtype, is_parameter, requires_grad = pid
        if name not in self.tensors:
            tensor = torch.zeros(shape, dtype=dtype)
            self.tensors[name] = (
                nn.Parameter(tensor, requires_grad) if is_parameter else tensor
            )
        return self.tensors[name]


def _write(model: nn.Module, path: Path) -> None:
    """Write the state_dict; tied tensors stay one."""
    tensors = {
        name: tensor.detach().cpu() for name, tensor in model.state_dict().items()
    }
    with durable_files.replace_file(path) as aside, aside.open("wb") as file:
        torch.save(tensors, file)


def _describe(model: nn.Module) -> str:
    """Layers with their sizes, code and plain attributes of those of the user's own."""
    lines, kinds = [repr(model)], dict[type, None]()
    for name, layer in model.named_modules():
        if is_own(type(layer).__module__):
            kinds[type(layer)] = None
            lines.append(f"{name} {_plain_attributes(layer)!r}")
    return "\n".join([*lines, *map(code_text, kinds)])


def _plain_attributes(layer: nn.Module) -> list[tuple[str, Any]]:
    """Attributes that decide what a layer does, such as a scale; not its mode."""
    return sorted(
        (name, value)
        for name, value in vars(layer).items()
        if isinstance(value, PLAIN) and name[:1] != "_" and name != "training"
    )


def _digest(state: dict[str, Any]) -> str:
    sha = hashlib.sha256()
    for name, tensor in state.items():
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        sha.update(np.ascontiguousarray(raw.numpy()).data)
    return sha.hexdigest()
