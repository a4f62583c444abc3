"""Converts a Keras model's variables to named arrays, in the order of get_weights()."""

import re
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import torch

from fedray.models.keras.backend import keras, to_snake_case
from fedray.models.keras.build import list_layers
from fedray.models.torch_state import OutsideState
from fedray.models.untrusted import validate_name
from fedray.weights import Weights

SEED_STATE = "seed_generator_state"  # of a layer that draws: no weight, see `reseed`


def variable_names(model: Any) -> list[str]:
    """A unique name for every one of `model.weights`, in order.

    They are Keras's paths with dots: ``dense_1.kernel``. The numbers that Keras appends
    count on from model to model in one process; here they start again in each model, so
    that the same layers have the same names in every process.
    """
    automatic = {to_snake_case(name) for name in _class_names(model)}
    renamed: dict[tuple[str, str], str] = {}  # (parent, part) -> part
    counts: dict[tuple[str, str], int] = {}
    names: dict[str, None] = {}  # in order
    for variable in model.weights:
        parent, parts = "", variable.path.split("/")
        if len(parts) > 2 and parts[0] == model.name:
            del parts[0]  # whether it is there depends on how the model was built
        for part in parts:
            if (parent, part) not in renamed:
                new_part = _renumbered(parent, part, automatic, counts)
                renamed[parent, part] = new_part
            parent = f"{parent}.{renamed[parent, part]}".lstrip(".")
        names[_unique(validate_name(parent), names)] = None
    return list(names)


def to_arrays(model: Any, names: Iterable[str]) -> Weights:
    """Arrays of `model.weights`; on a CPU they are views of the live model."""
    return {
        name: np.ascontiguousarray(tensor(variable).cpu().numpy()).reshape(
            tuple(variable.shape)
        )
        for name, variable in zip(names, model.weights, strict=True)
    }


def parameters(model: Any, names: Iterable[str]) -> dict[str, bool]:
    """Names of weights that are made to be trained; whether the layers say they are.

    The others, such as a batch norm's means, layers move by themselves.
    """
    own_ids = {
        id(variable)
        for layer in [model, *all_layers(model)]
        for variable in getattr(layer, "_trainable_variables", ())
    }
    return {
        name: bool(variable.trainable)
        for name, variable in zip(names, model.weights, strict=True)
        if id(variable) in own_ids or variable.trainable
    }


def choose(model: Any, names: Iterable[str], trained: Collection[str]) -> list[Any]:
    """Weights of these names, made trainable; all others are frozen."""
    chosen = []
    for name, variable in zip(names, model.weights, strict=True):
        is_trained = name in trained
        if variable.trainable != is_trained:  # other than its layer says
            variable.trainable = is_trained
            variable.value.requires_grad_(is_trained)
        if is_trained:
            chosen.append(variable)
    return chosen


def batch_norm_names(model: Any, names: Iterable[str]) -> set[str]:
    """Names of all weights of batch norms."""
    ids = {
        id(variable)
        for layer in all_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
        for variable in layer.weights
    }
    pairs = zip(names, model.weights, strict=True)
    return {name for name, variable in pairs if id(variable) in ids}


def all_layers(layer: Any) -> list[Any]:
    """Layers of a model, those inside its layers included."""
    children = list(getattr(layer, "_layers", ()))
    return children + [part for child in children for part in all_layers(child)]


def tensor(variable: Any) -> torch.Tensor:
    """The torch tensor that holds a Keras variable's numbers."""
    return variable.value.detach()


def reseed(model: Any, seed: int) -> None:
    """Seed every layer that draws random numbers, such as dropout.

    Keras keeps a seed and a counter in a variable of each such layer. It is none of the
    model's weights and neither travels nor is saved; its value in a model file is
    ignored.
    """
    states = [v for v in model.variables if v.path.endswith(SEED_STATE)]
    seeds = np.random.SeedSequence([seed, 1]).generate_state(len(states))
    for variable, layer_seed in zip(states, seeds, strict=True):
        # 31 bits: the variable is an int32
        variable.assign(np.array([layer_seed >> 1, 0], np.int64))


def copy_of_others(model: Any) -> list[tuple[Any, torch.Tensor]]:
    """Variables that are no weights, such as a layer's seeds, and copies of them."""
    weights = {id(variable) for variable in model.weights}
    others = [variable for variable in model.variables if id(variable) not in weights]
    return [(variable, tensor(variable).clone()) for variable in others]


def outside_state(model: Any) -> OutsideState:
    """Tensors and arrays in the attributes of a model's layers."""
    inside = [tensor(variable) for variable in model.variables]
    return OutsideState(model, inside)


def _class_names(model: Any) -> set[str]:
    used = {type(layer).__name__ for layer in [model, *list_layers(model)]}
    return used | {n for n, v in vars(keras.layers).items() if isinstance(v, type)}


def _renumbered(
    parent: str, part: str, automatic: set[str], counts: dict[tuple[str, str], int]
) -> str:
    """A part of a path, its automatic number counted from 0 below its parent."""
    base = re.sub(r"_\d+$", "", part)
    if base not in automatic:
        return part
    n = counts[parent, base] = counts.get((parent, base), -1) + 1
    return f"{base}_{n}" if n else base


def _unique(name: str, others: Collection[str]) -> str:
    """The name, with a number if the model's author gave it twice."""
    n, candidate = 1, name
    while candidate in others:
        n, candidate = n + 1, f"{name}.{n + 1}"
    return candidate
