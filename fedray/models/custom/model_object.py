"""One object of the user's class: made, called, and what it gives checked."""

import ast
import contextlib
import inspect
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedray import user_code
from fedray.errors import ConfigError, ModelClassError, ModelFileError
from fedray.models.custom.object_weights import (
    DICT,
    WeightsForm,
    fit_schema,
    from_arrays,
    to_arrays,
)
from fedray.untrusted_text import is_harmless
from fedray.user_code import LiveObject, Source
from fedray.weights import Schema, Weights

METHODS: dict[str, tuple[str, ...]] = {  # that a class must have, and what they get
    "get_weights": (),
    "set_weights": ("weights",),
    "train": ("data", "context"),
    "evaluate": ("data", "context"),
}
OPTIONAL: dict[str, tuple[str, ...]] = {"predict": ("x",), "save": ("path",)}
ARGUMENTS = METHODS | OPTIONAL
N_NUMBERS = 100  # most that evaluate() may give
MAX_NAME = 64  # characters of a metric's name
EXAMPLE = 'a dict of numbers, such as {"loss": 0.3}'


@dataclass(frozen=True)
class TrainingContext:
    """What train() and evaluate() of a class of the user's own are told.

    round : from 1; 0 in an evaluation before the first.
    epochs : as the config says.
    learning_rate : of this round, as the config and its scheduler say; 0.01 where it
        gives none.
    steps : `local_steps` of the config; None: it goes by epochs.
    rate_at : gives the learning rate at a step of this round, from 0.
    seed : from 0 to 2³¹−1, of the config's seed, round and party. Python's, numpy's
        and torch's global random numbers are seeded with it before each call.
    device : "cpu" or "cuda".
    global_weights : those that the round started from, in the form of get_weights();
        numpy arrays are read-only.
    progress : call it with the share that is done, 0 to 1, in a long training.
    party : its name.
    """

    round: int
    epochs: int
    learning_rate: float
    seed: int
    device: str
    global_weights: Any
    progress: Callable[[float], None]
    party: str = ""
    steps: int | None = None
    rate_at: Callable[[int], float] = field(default=lambda step: 0.01)


def read_class(model_type: str, must_predict: bool = False) -> Source:
    """Read the code of a model class without running it.

    must_predict : whether it has to have predict(), too: an ensemble's member.

    Raises
    ------
    ConfigError
        If there is no such class, or it lacks methods.
    """
    source = user_code.read(model_type, "model_type")
    if isinstance(source, LiveObject):  # looked at when an object is made
        return source
    definitions = user_code.definitions(ast.parse(source.text))
    definition = definitions.get(source.attribute)
    what = f"{source.attribute} of model_type {source.file}"
    if isinstance(definition, ast.FunctionDef):
        raise ConfigError([f"{what} is a function: name a class with {_list(METHODS)}"])
    lacks = [
        name
        for name in (*METHODS, *(["predict"] if must_predict else []))
        if not user_code.may_have(name, source.attribute, definitions)
    ]
    if lacks:
        raise ConfigError([f"class {what} has no {_list(lacks)}"])
    return source


def _list(names: Any) -> str:
    *first, last = (f"{name}()" for name in names)
    return f"{', '.join(first)} and {last}" if first else last


class ModelObject:
    """An object of the user's class, made without arguments.

    Exceptions of its code are passed on.

    seed : of what is random in its constructor.
    form : how get_weights() gives weights, as far as it is known.

    Raises
    ------
    ModelClassError
        If it lacks a method, or one does not take what it will get.
    """

    def __init__(self, source: Source, seed: int, form: WeightsForm = DICT):
        self.name = f"{Path(source.file).name}:{source.attribute}"
        if isinstance(source, LiveObject):
            self.name = str(source)
        self.form = form
        model_class = user_code.run(source)
        if not isinstance(model_class, type):
            got = f"no class, but a {type(model_class).__name__}"
            raise ModelClassError(self.name, "the code", got, "a class")
        with contextlib.suppress(ValueError):
            signature = inspect.signature(model_class)
            if any(map(_is_required, signature.parameters.values())):
                got, needed = f"__init__{signature}", "one that needs no arguments"
                raise ModelClassError(self.name, "the class", got, needed)
        with random_scope(seed):  # now that what the code imports is there
            self.object = model_class()
        for method in ARGUMENTS:
            self._check_method(method)

    def has(self, method: str) -> bool:
        """Whether the class has a method."""
        return callable(getattr(self.object, method, None))

    def get_weights(self, needed: Schema | None = None, call: str = "") -> Weights:
        """Named arrays, views where possible.

        needed : names, shapes and dtypes that they must have; None: any.
        call : after which they are asked for, as errors say it.
        """
        weights, self.form = to_arrays(self.object.get_weights(), self.name)
        if needed is None:
            return weights
        return fit_schema(weights, needed, self.name, call)

    def set_weights(self, weights: Weights) -> None:
        """Give the object copies of these weights, in its own form."""
        self.object.set_weights(self.in_own_form(weights))

    def in_own_form(self, weights: Weights, copies: bool = True) -> Any:
        """Weights as get_weights() gives them; see `from_arrays`."""
        return from_arrays(weights, self.form, copies)

    def train(self, data: Any, context: TrainingContext) -> float | None:
        """Train on what the handler gave; the loss, if one is told."""
        seed_all(context.seed)
        numbers = self._numbers("train", self.object.train(data, context))
        loss = numbers.get("loss")
        if loss is not None and not math.isfinite(loss):
            needed = "a finite number: look for a division by zero or samples that are "
            needed += "not scaled, and lower learning_rate"
            raise ModelClassError(self.name, "train()", f"loss {loss}", needed)
        return loss

    def evaluate(self, data: Any, context: TrainingContext) -> dict[str, float]:
        """Numbers that evaluate() gives, at least one."""
        seed_all(context.seed)
        numbers = self._numbers("evaluate", self.object.evaluate(data, context))
        if not numbers:
            needed = 'at least one, such as {"loss": 0.3, "accuracy": 0.9}'
            raise ModelClassError(self.name, "evaluate()", "no numbers", needed)
        if len(numbers) > N_NUMBERS:
            got, most = f"{len(numbers)} numbers", f"at most {N_NUMBERS}"
            raise ModelClassError(self.name, "evaluate()", got, most)
        return numbers

    def predict(self, x: Any) -> np.ndarray:
        """What predict() gives for samples, as an array."""
        if not self.has("predict"):
            got, needed = "no answer: it is not there", "predict(self, x) -> array"
            raise ModelClassError(self.name, "predict()", got, needed)
        answer, _ = to_arrays({"answer": self.object.predict(x)}, self.name)
        return answer["answer"]

    def save(self, path: Path) -> None:
        """Let the object write itself, below this path."""
        self.object.save(str(path))

    def _numbers(self, method: str, answer: Any) -> dict[str, float]:
        """The numbers in what a method returned; what is none stays here."""
        if not isinstance(answer, Mapping):
            got = "None" if answer is None else f"a {type(answer).__name__}"
            raise ModelClassError(self.name, f"{method}()", got, EXAMPLE)
        numbers: dict[str, float] = {}
        for name, value in answer.items():
            number = _to_number(value)
            if number is None and name in ("loss", "accuracy", "n_samples"):
                got = f"{name} as a {type(value).__name__}"
                raise ModelClassError(self.name, f"{method}()", got, "a number")
            if number is not None:
                self._check_name(method, name)
                numbers[name] = number
        return numbers

    def _check_name(self, method: str, name: Any) -> None:
        is_text = isinstance(name, str) and 0 < len(name) <= MAX_NAME
        if not (is_text and name.isprintable() and is_harmless(name)):
            got = f"a number under the name {ascii(name)[:80]}"
            needed = f"text of 1 to {MAX_NAME} printable characters"
            raise ModelClassError(self.name, f"{method}()", got, needed)

    def _check_method(self, method: str) -> None:
        """Look whether a method is there, and takes what it will be given."""
        function, names = getattr(self.object, method, None), ARGUMENTS[method]
        if function is None and method in OPTIONAL:
            return
        if not callable(function):
            got = f"no {method}()"
            raise ModelClassError(self.name, "the class", got, f"{_list(METHODS)}")
        with contextlib.suppress(ValueError):  # of C, without a signature
            signature = inspect.signature(function)
            try:
                signature.bind(*names)
            except TypeError:
                got, needed = f"{method}{signature}", f"{method}({', '.join(names)})"
                raise ModelClassError(self.name, "the class", got, needed) from None


def _is_required(parameter: inspect.Parameter) -> bool:
    is_rest = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not is_rest


def _to_number(value: Any) -> float | None:
    """A number, also as an array or tensor of one; None for anything else."""
    if (
        isinstance(value, int | float | np.generic)
        or math.prod(getattr(value, "shape", (0,))) == 1
    ):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            return float(value.item() if hasattr(value, "item") else value)
    return None


def seed_all(seed: int) -> None:
    """Seed the global random numbers of Python, numpy, and torch where it is used."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)


@contextlib.contextmanager
def random_scope(seed: int) -> Iterator[None]:
    """Seed everything random inside, and restore Python's and numpy's state after."""
    states = random.getstate(), np.random.get_state()
    torch = sys.modules.get("torch")
    of_torch = torch.get_rng_state() if torch else None
    seed_all(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if torch:
            torch.set_rng_state(of_torch)


def describe_failure(error: BaseException) -> str:
    """An error of the user's code on this machine, in one line."""
    if isinstance(error, ModelClassError | ConfigError | ModelFileError):
        return str(error)
    return user_code.describe_here(error)
