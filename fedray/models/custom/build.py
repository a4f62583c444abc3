"""Reads, checks and writes models that are classes of the user's own."""

import shutil
import tempfile
from pathlib import Path

import numpy as np

from fedray import durable_files
from fedray.config import FederationConfig
from fedray.errors import ConfigError, MissingExtra, ModelClassError, ModelFileError
from fedray.file_kinds import kind_of_start, read_start
from fedray.models.base import Blueprint, collect_problems, missing_files, write_file
from fedray.models.custom.model import CustomPlan
from fedray.models.custom.model_object import (
    ModelObject,
    describe_failure,
    random_scope,
    read_class,
)
from fedray.weights import Schema, Weights, mismatch, non_finite, npz, schema

LEARNING_RATE = 0.01  # where the config gives none, as for networks
NO_FLOATS = (
    "get_weights() of {} gives no floats: fusing rounds the mean of integers. Fuse "
    "such models with fusion_algorithm: ensemble"
)


def problems(config: FederationConfig) -> list[str]:
    """Everything wrong with the class and the model file, without running code."""
    return missing_files(config) + collect_problems(
        lambda: read_class(config.model_type, config.has_member_models)
    )


def read(config: FederationConfig) -> tuple[Blueprint, Weights]:
    """Make the object here, under `seed`, and take its weights or those of model_file.

    Raises
    ------
    ConfigError
        If the class cannot be used.
    ModelFileError
        If the file does not hold its arrays.
    """
    source = read_class(config.model_type, config.has_member_models)
    try:
        model = ModelObject(source, config.seed)
        with random_scope(config.seed):  # some classes make them when first asked
            weights = {name: a.copy() for name, a in model.get_weights().items()}
    except (Exception, SystemExit) as error:  # user code raises any exception
        line = f"model_type {source}: {describe_failure(error)}"
        raise ConfigError([line]) from None
    if name := non_finite(weights):
        line = f"model_type {source}: get_weights() gives NaN or infinity in {name!r}"
        raise ConfigError([f"{line} before any training: look at __init__"])
    needed = schema(weights)
    if config.model_file:
        weights = _read_arrays(Path(config.model_file), needed)
    floats = tuple(name for name, a in weights.items() if a.dtype.kind == "f")
    is_averaged = not floats and not config.has_member_models
    notes = (NO_FLOATS.format(model.name),) if is_averaged else ()
    blueprint = Blueprint(
        config.model_type,
        CustomPlan(source, model.form, config.seed),
        needed,
        floats,
        {"learning_rate": LEARNING_RATE},
        notes=notes,
    )
    return blueprint, weights


def _read_arrays(path: Path, needed: Schema) -> Weights:
    """Arrays of a .npz or .safetensors file."""
    try:
        start = read_start(path)
        is_npz = start.startswith(b"PK")
        kind = None if is_npz else kind_of_start(start, path.suffix)
        arrays = npz.read(path) if is_npz else _read_safetensors(path)
    except FileNotFoundError:
        raise ModelFileError(str(path), "there is no such file") from None
    except MissingExtra:
        raise
    except Exception as error:  # hostile bytes break zipfile and numpy in many ways
        is_other = kind is not None and "safetensors" not in kind.what
        what = f"is {kind.what}" if kind and is_other else f"cannot be read ({error})"
        expected = "a .npz or .safetensors of the class's arrays is needed"
        raise ModelFileError(str(path), f"{what[:200]}: {expected}") from None
    if difference := mismatch(arrays, needed):
        what = f"{difference}: it is of another class, or the class has changed"
        raise ModelFileError(str(path), what)
    if name := non_finite(arrays):
        raise ModelFileError(str(path), f"tensor {name!r} holds NaN or infinity")
    return {name: np.array(arrays[name], order="C") for name in needed}


def _read_safetensors(path: Path) -> Weights:
    try:
        from safetensors.numpy import load_file
    except ImportError:
        raise MissingExtra("reading .safetensors files", "safetensors") from None
    return dict(load_file(path))


def write(blueprint: Blueprint, weights: Weights, path: Path) -> None:
    """Write the arrays as .npz or .safetensors."""
    write_file(path, weights, lambda aside: npz.write(weights, aside))


def save(blueprint: Blueprint, weights: Weights, path: Path) -> Path | None:
    """Let the class write its own file or files, `path` and what begins so.

    They are moved into place when they are whole. None if it has no save().

    Raises
    ------
    ModelFileError
        If save() fails or writes nothing there.
    """
    plan: CustomPlan = blueprint.plan
    folder = Path(tempfile.mkdtemp(prefix=".saving-", dir=path.parent))
    try:
        model = ModelObject(plan.source, plan.seed, plan.form)
        if not model.has("save"):
            return None
        model.set_weights(weights)
        model.save(folder / path.name)
        written = sorted(folder.iterdir(), key=lambda one: (len(one.name), one.name))
        others = [one.name for one in written if not one.name.startswith(path.name)]
        if others:
            needed = "files at path, or at path with a suffix"
            raise ModelClassError(model.name, "save()", f"{others[0]!r}", needed)
        for one in written:
            _move(one, path.parent / one.name)
    except (Exception, SystemExit) as error:  # user code raises any exception
        reason = f"save() of {plan.source}: {describe_failure(error)}"
        raise ModelFileError(str(path), reason) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not written:
        reason = f"save(path) of {plan.source} wrote nothing at path"
        raise ModelFileError(str(path), reason)
    return path.parent / written[0].name


def _move(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    elif source.is_dir():
        target.unlink(missing_ok=True)
    durable_files.move(source, target)
