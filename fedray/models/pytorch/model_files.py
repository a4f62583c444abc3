"""Reads initial PyTorch models (file or architecture), writes .pt and .safetensors."""

import warnings
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from fedray import user_code
from fedray.config import FederationConfig
from fedray.errors import ModelFileError
from fedray.models import torch_state, trainable
from fedray.models.base import Blueprint, write_file
from fedray.models.own_loss import read_loss
from fedray.models.pytorch import safe_load
from fedray.models.pytorch.build import Plan, build, tied_parameters
from fedray.models.pytorch.optimizers import DEFAULTS
from fedray.models.pytorch.safe_load import ModelFile
from fedray.models.untrusted import UnsafeFile, model_file_errors
from fedray.user_code import Source
from fedray.weights import (
    KINDS,
    Form,
    Schema,
    Weights,
    mismatch,
    non_finite,
    schema,
)

PEFT = "base_model.model."  # begins the names of a model that peft has wrapped
ADAPTERS = ("lora_", ".default")  # parts of the names of what it adds


def read(config: FederationConfig) -> tuple[Blueprint, Weights]:
    """Read the initial model of a config: see `ModelAdapter.read`."""
    path, has_code = config.model_file, bool(config.architecture)
    file = safe_load.read(Path(path), has_code) if path else None
    plan = _plan(config, file)
    source = str(plan if isinstance(plan, Source) else path)
    with torch_state.random_scope(config.seed):
        module = build(plan, file.forms() if file else {}, source)
    initial, bfloat16 = _arrays(module, source)
    outside = torch_state.OutsideState(module, module.state_dict().values())
    fingerprints, tied = outside.fingerprints(), tied_parameters(module)
    if file:
        with model_file_errors(str(path)):
            file = _fit_names(_with_adapters(file, initial), schema(initial), tied)
        initial, bfloat16 = file.weights, file.bfloat16
    elif flawed := non_finite(initial):
        raise ModelFileError(
            str(plan),
            f"tensor {flawed!r} holds NaN or infinity, which cannot be averaged: for a "
            "constant such as a mask, register_buffer(..., persistent=False)",
        )
    initial |= {name: initial[first] for name, first in tied.items()}
    form, parameters = schema(initial), _parameters(module, file)
    trained, frozen = trainable.split(config.trainable, form, parameters, tied)
    notes = torch_state.describe(fingerprints, config.seed)
    blueprint = Blueprint(
        "pytorch", plan, form, trained, DEFAULTS, fingerprints,
        (*(file.notes if file else ()), *notes), read_loss(config), frozen, tied,
        bfloat16,
    )  # fmt: skip
    norms = _batch_norm_names(module)
    return trainable.set_personal(blueprint, config, parameters, norms), initial


def _parameters(module: torch.nn.Module, file: ModelFile | None) -> dict[str, bool]:
    """Names of parameters, tied ones under each name, and whether they train."""
    frozen = file.frozen if file else frozenset()
    return {
        name: parameter.requires_grad and name not in frozen
        for name, parameter in module.named_parameters(remove_duplicate=False)
    }


def _batch_norm_names(module: torch.nn.Module) -> set[str]:
    """Names of all tensors of batch norms."""
    return {
        f"{path}.{name}".lstrip(".")
        for path, layer in module.named_modules(remove_duplicate=False)
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)
        for name in layer.state_dict()
    }


def _fit_names(file: ModelFile, needed: Schema, tied: Mapping[str, str]) -> ModelFile:
    """The file under an architecture's names, in its order, each tied tensor once.

    Raises
    ------
    UnsafeFile
        If it has other tensors than the architecture.
    """
    prefix = _find_prefix(file.weights, needed, tied)
    cut = len(prefix)
    weights = {name[cut:]: array for name, array in file.weights.items()}
    for name, first in tied.items():
        again = weights.pop(name, None)
        if again is not None and not np.array_equal(weights.get(first, again), again):
            raise UnsafeFile(
                f"tensors {first!r} and {name!r} are one in the architecture (tied), "
                "but hold different numbers here: save a model whose weights are tied"
            )
        if again is not None:
            weights[first] = again
    own = {name: form for name, form in needed.items() if name not in tied}
    if difference := mismatch(weights, own):
        raise UnsafeFile(f"{difference} by the architecture")
    notes = file.notes
    if prefix:
        notes += (f"model_file: the prefix {prefix} of its tensors' names is left out",)
    weights = {name: weights[tied.get(name, name)] for name in needed}
    short = {name[cut:] for name in file.bfloat16}
    short |= {first for name, first in tied.items() if name in short}
    return ModelFile(
        weights,
        frozen=frozenset(name[cut:] for name in file.frozen),
        bfloat16=frozenset(n for n in weights if tied.get(n, n) in short),
        notes=notes,
    )


def _with_adapters(file: ModelFile, initial: Weights) -> ModelFile:
    """The file of a model under the names that it has with adapters of peft in it.

    initial : weights of the architecture; adapters start from these.
    """
    base = {name: _base_name(name) for name in initial if name.startswith(PEFT)}
    is_base = not any(name.startswith(PEFT) for name in file.weights)
    if not base or not is_base or not file.weights.keys() <= set(base.values()):
        return file
    weights = {n: file.weights[of] for n, of in base.items() if of in file.weights}
    new = [n for n in base if n not in weights and any(m in n for m in ADAPTERS)]
    return ModelFile(
        weights | {name: initial[name] for name in new},
        bfloat16=frozenset(name for name, of in base.items() if of in file.bfloat16),
        notes=(*file.notes, f"model_file: its model gets {len(new)} new adapters"),
    )


def _base_name(name: str) -> str:
    """The name that a tensor has without peft around its model."""
    return name.removeprefix(PEFT).replace(".base_layer.", ".")


def _find_prefix(
    names: Collection[str], needed: Collection[str], tied: Mapping[str, str]
) -> str:
    """What all names begin with more than those needed: ``module.`` of DDP, or such."""
    first, cut = next(iter(names)), 0
    own = {name for name in needed if name not in tied}
    while end := first.find(".", cut) + 1:
        if not all(name.startswith(first[:end]) for name in names):
            return ""
        cut = end
        rest = {name[cut:] for name in names}
        if rest <= set(needed) and {tied.get(name, name) for name in rest} == own:
            return first[:cut]
    return ""


def read_file(path: Path) -> tuple[Blueprint, Weights]:
    """Read a file without a config, for fusing offline; its layers may be unknown.

    Raises
    ------
    ModelFileError
        If anything is wrong with it.
    """
    file = safe_load.read(path)
    trained = tuple(name for name in file.weights if name not in file.frozen)
    blueprint = Blueprint(
        "pytorch", file.layer, schema(file.weights), trained, DEFAULTS,
        bfloat16=file.bfloat16,
    )  # fmt: skip
    return blueprint, file.weights


def write(blueprint: Blueprint, weights: Weights, path: Path) -> None:
    """Write a whole module where the model came as one, else a state_dict.

    See `ModelAdapter.write`. Of tied tensors a .safetensors file has the first by
    alphabet, and says in its metadata which name is left out, as safetensors.torch's
    `save_model` writes it.
    """
    save = partial(_save, blueprint, weights)
    if path.suffix != ".safetensors":
        write_file(path, weights, save)
        return
    stored, metadata = {}, {"format": "pt", **blueprint.metadata}
    for names in _names_of_each(weights, blueprint.tied):
        first, *rest = sorted(names)
        stored[first] = weights[first]
        metadata |= dict.fromkeys(rest, first)
    short = [name for name in stored if name in blueprint.bfloat16]
    write_file(path, stored, save, metadata, short)


def _names_of_each(
    weights: Weights, tied: Mapping[str, str]
) -> Collection[Collection[str]]:
    """All names of each tensor, in the model's order."""
    names: dict[str, list[str]] = {}
    for name in weights:
        names.setdefault(tied.get(name, name), []).append(name)
    return names.values()


def save_adapter(blueprint: Blueprint, weights: Weights, folder: Path) -> None:
    """Write the adapters of a model that peft has wrapped, as peft reads them; or not.

    Raises
    ------
    ModelFileError
        If they cannot be written.
    """
    if not any(part in name for name in blueprint.parameters for part in ADAPTERS):
        return
    with torch_state.random_scope(0):
        module = build(blueprint.plan, blueprint.forms)
    wrapped = (m for m in module.modules() if hasattr(m, "peft_config"))
    model: Any = next((m for m in wrapped if hasattr(m, "save_pretrained")), None)
    if model is None:
        return
    tensors = {name: torch.from_numpy(np.array(a)) for name, a in weights.items()}
    module.load_state_dict(tensors)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the model is of no hub
            model.save_pretrained(folder)
    except Exception as error:  # a full disk, in peft's own words
        reason = f"cannot be written: {type(error).__name__}: {error}"
        raise ModelFileError(str(folder), reason) from None


def _plan(config: FederationConfig, file: ModelFile | None) -> Plan:
    if config.architecture:
        return user_code.read(config.architecture, "architecture")
    if file is None:
        raise ModelFileError("model_file", "is missing: give it, or an architecture")
    if file.layer is None:
        reason = "holds arrays without their layers; give architecture: file.py:name"
        raise ModelFileError(str(config.model_file), reason)
    return file.layer


def _save(blueprint: Blueprint, weights: Weights, path: Path) -> None:
    tensors = {
        name: _tensor(array, name in blueprint.bfloat16)
        for name, array in weights.items()
    }
    tensors |= {name: tensors[first] for name, first in blueprint.tied.items()}
    model: torch.nn.Module | None = None
    if isinstance(blueprint.plan, safe_load.Layer):
        forms = {
            name: Form(tuple(t.shape), str(t.dtype).removeprefix("torch."))
            for name, t in tensors.items()
        }
        model = build(blueprint.plan, forms)
        model.load_state_dict(tensors)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in blueprint.parameters)
    with path.open("wb") as file:  # given a path, torch writes its name into the file
        torch.save(tensors if model is None else model, file)


def _tensor(array: np.ndarray, is_short: bool) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(array))
    return tensor.bfloat16() if is_short else tensor


def _arrays(module: torch.nn.Module, source: str) -> tuple[Weights, frozenset[str]]:
    """Copies of a module's parameters and buffers, of dtypes that fedray fuses.

    Also the names of those in bfloat16, whose copies are float32.
    """
    arrays, short = {}, set()
    for name, tensor in module.state_dict().items():
        if is_lazy(tensor):
            layer = f"layer {name.rpartition('.')[0] or '(all)'}"
            reason = f"{layer} has no size yet: give sizes, as in nn.Linear(8, 2)"
            raise ModelFileError(source, reason)
        array = _array_or_none(tensor)
        if array is None:
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            reason = f"tensor {name!r} is {kind}; floats of 16, 32 or 64 bits, integers"
            raise ModelFileError(source, f"{reason} or booleans are needed")
        arrays[name] = array
        if tensor.dtype == torch.bfloat16:
            short.add(name)
    return arrays, frozenset(short)


def _array_or_none(tensor: Any) -> np.ndarray | None:
    try:
        array = np.array(torch_state.to_array(tensor.detach()))
    except (AttributeError, TypeError, RuntimeError, ValueError):
        return None
    return array if array.dtype.kind in KINDS else None
