"""A Keras model's variables as named arrays, in the order of get_weights()."""

import re
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import torch

from fedray.models.keras.backend import keras
from fedray.models.keras.build import all_layers
from fedray.models.untrusted import checked_name
from fedray.weights import Weights

SEEDS = "seed_generator_state"  # of a layer that draws: no weight, see `reseed`


def names(model: Any) -> list[str]:
    """A name for every one of `model.weights`, in order, none twice.

    They are Keras's paths with dots: ``dense_1.kernel``. Numbers that Keras gives, and
    that go on counting from model to model, start again in each: the same layers have
    the same names in every process.
    """
    automatic = {_snake(name) for name in _class_names(model)}
    renamed: dict[tuple[str, str], str] = {}  # (parent, part) -> part
    counts: dict[tuple[str, str], int] = {}
    found: dict[str, None] = {}  # in order
    for variable in model.weights:
        parent, parts = "", variable.path.split("/")
        if len(parts) > 2 and parts[0] == model.name:
            del parts[0]  # which it is not always, by how it was built
        for part in parts:
            if (parent, part) not in renamed:
                own = _numbered(parent, part, automatic, counts)
                renamed[parent, part] = own
            parent = f"{parent}.{renamed[parent, part]}".lstrip(".")
        found[_unlike(checked_name(parent), found)] = None
    return list(found)


def values(model: Any, called: Iterable[str]) -> Weights:
    """Arrays of `model.weights`; on a CPU they are views of the live model."""
    return {
        name: np.ascontiguousarray(tensor(variable).cpu().numpy()).reshape(
            tuple(variable.shape)
        )
        for name, variable in zip(called, model.weights, strict=True)
    }


def tensor(variable: Any) -> torch.Tensor:
    """The tensor that a variable's numbers live in."""
    return variable.value.detach()


def reseed(model: Any, seed: int) -> None:
    """Let every layer that draws, such as dropout, draw what follows from `seed`.

    Keras keeps a seed and a counter in a variable of each such layer, which is none of
    its weights and neither travels nor is saved; what the model's maker put there does
    not count.
    """
    drawing = [v for v in model.variables if v.path.endswith(SEEDS)]
    drawn = np.random.SeedSequence([seed, 1]).generate_state(len(drawing))
    for variable, own in zip(drawing, drawn, strict=True):
        variable.assign(np.array([own >> 1, 0], np.int64))  # 31 bits: it is an int32


def _class_names(model: Any) -> set[str]:
    own = {type(layer).__name__ for layer in [model, *all_layers(model)]}
    return own | {n for n, v in vars(keras.layers).items() if isinstance(v, type)}


def _numbered(
    parent: str, part: str, automatic: set[str], counts: dict[tuple[str, str], int]
) -> str:
    base = re.sub(r"_\d+$", "", part)
    if base not in automatic:
        return part
    n = counts[parent, base] = counts.get((parent, base), -1) + 1
    return f"{base}_{n}" if n else base


def _unlike(name: str, others: Collection[str]) -> str:
    """Name apart what its maker named alike."""
    n, told = 1, name
    while told in others:
        n, told = n + 1, f"{name}.{n + 1}"
    return told


def _snake(name: str) -> str:
    """A class's name as Keras names its layers: Conv2D is conv2d."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
