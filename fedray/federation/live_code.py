"""Classes and functions in a call of `fedray.run`, as config keys name them.

What PyTorch or Keras have under a name becomes that name. Others are pickled by value
with the user's own modules, since no party has a notebook or what lies beside it.
"""

import contextlib
import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ray import cloudpickle

from fedray.errors import ConfigError, FedrayError
from fedray.user_code import IN_MEMORY, LiveObject, remember
from fedray.user_code.code_text import code_text, own_modules

CODE_KEYS = (
    *("architecture", "data_handler", "loss", "metrics", "model_type"),
    "optimizer",
)
NAMED = {  # keys whose values may be a framework's own, and the arguments' key
    "loss": ("torch.nn.", "keras."),
    "optimizer": ("torch.optim.", "keras."),
}
PICKLER = cloudpickle.CloudPickler
MAX_REASON = 300  # characters


def code_settings(key: str, value: Any) -> dict[str, Any]:
    """The settings that a class, function or object given for a key stands for.

    Raises
    ------
    ConfigError
        If it cannot be used under this key, or not be pickled.
    """
    if key == "metrics" and isinstance(value, list | tuple):
        return {key: [_metric_settings(one) for one in value]}
    if isinstance(value, Path):
        return {key: str(value)}
    if isinstance(value, str | None):
        return {key: value}
    if key in NAMED:
        thing, arguments = _without_arguments(key, value)
        if _is_framework(thing, key):
            return {key: thing.__name__, **_argument_settings(key, arguments)}
    if key == "optimizer":
        got = f"optimizer is {_describe(value)}"
        raise ConfigError([f"{got}: a class of torch.optim or keras.optimizers"])
    _check_code(key, value)
    text = code_text(value)
    if key == "data_handler" and not isinstance(value, type):
        value = type(_name(value), (FunctionHandler,), {"read": staticmethod(value)})
    name = remember(pickle_code(value, key, text))
    return {key: [name] if key == "metrics" else name}


def _metric_settings(value: Any) -> Any:
    """One of several metrics: a name, or a function of the caller's."""
    own = code_settings("metrics", value)["metrics"]
    return own[0] if isinstance(own, list) else own


def _is_framework(thing: Any, key: str) -> bool:
    """Whether a framework has it under its name."""
    module = getattr(thing, "__module__", None) or ""
    return module.startswith(NAMED[key]) or module == "torch._C._nn"


def _argument_settings(key: str, arguments: dict[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if key == "optimizer":
        for name in ("lr", "learning_rate"):
            if (rate := arguments.pop(name, None)) is not None:
                settings["learning_rate"] = float(rate)
    return {f"{key}_args": arguments, **settings} if arguments else settings


class FunctionHandler:
    """The data handler that a function is: it takes a path and gives the data."""

    read: Callable[[str], Any]

    def __init__(self, path: str):
        self.path = path

    def get_data(self) -> Any:
        """Return what the function gives."""
        return self.read(self.path)


def pickle_code(thing: Any, what: str, text: str) -> LiveObject:
    """An object that travels to parties by value.

    what : the config key; text : of its code.

    Raises
    ------
    ConfigError
        If it cannot be pickled.
    """
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    file = f"{IN_MEMORY}/{digest}"
    return LiveObject(file, _name(thing), text, pickled=pickle_by_value(thing, what))


def pickle_by_value(thing: Any, what: str) -> bytes:
    """Pickle an object and the user's own modules that it uses.

    Raises
    ------
    ConfigError
        If it cannot be pickled: which attribute, and why.
    """
    with own_modules_by_value(), pickling_errors(what, thing):
        return cloudpickle.dumps(thing)


@contextlib.contextmanager
def pickling_errors(what: str, thing: Any) -> Iterator[None]:
    """Say which object cannot be pickled."""
    try:
        yield
    except FedrayError:
        raise
    except Exception as error:  # as many kinds as there are things to pickle
        reason = " ".join(str(error).split())[:MAX_REASON]
        part = _unpicklable_part(thing)
        where = f" (its {part})" if part else ""
        got = f"{what} {_describe(thing)}{where} cannot be sent to parties"
        remedy = "make such things where they are used, not before"
        raise ConfigError([f"{got}: {reason}; {remedy}"]) from None


@contextlib.contextmanager
def own_modules_by_value() -> Iterator[None]:
    """Pickle classes and functions of the user's own modules by value meanwhile."""
    registered = cloudpickle.list_registry_pickle_by_value()
    modules = [one for one in own_modules() if one.__name__ not in registered]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _check_code(key: str, value: Any) -> None:
    if getattr(value, "__name__", "") == "<lambda>":
        remedy = "give a function made by def, or a class"
        raise ConfigError([f"{key} is a lambda, which has no name: {remedy}"])
    if not callable(value):
        is_function = key in ("loss", "metrics")
        needed = "a function" if is_function else "a class or function"
        raise ConfigError([f"{key} is {_describe(value)}: a name, {needed} is needed"])
    if key == "metrics" and (hasattr(value, "update") or hasattr(value, "result")):
        remedy = "name a built-in metric, such as f1_macro, whose sums are merged"
        got = f"metrics: {_describe(value)} keeps sums of its own"
        raise ConfigError([f"{got}: {remedy}; or give a function of (output, target)"])
    is_class = key == "data_handler" and isinstance(value, type)
    if is_class and not callable(getattr(value, "get_data", None)):
        raise ConfigError([f"data_handler {value.__name__} has no get_data()"])


def _without_arguments(key: str, value: Any) -> tuple[Any, dict[str, Any]]:
    """The class or function of a partial or an object, and the arguments it has."""
    if isinstance(value, functools.partial):
        if value.args:
            raise ConfigError([f"{key}: give a partial's arguments by name"])
        return value.func, dict(value.keywords)
    module = type(value).__module__
    if isinstance(value, type) or not module.startswith(NAMED[key]):
        return value, {}
    return type(value), _arguments_of(key, value)


def _arguments_of(key: str, value: Any) -> dict[str, Any]:
    """Arguments of a framework's object that are not their defaults."""
    if hasattr(value, "get_config"):  # of Keras
        settings: dict[str, Any] = value.get_config()
    elif hasattr(value, "defaults"):  # an optimizer of torch
        if len(value.param_groups) > 1:
            got = f"optimizer {type(value).__name__} with several groups of parameters"
            raise ConfigError([f"{got}: give its class; all parameters train alike"])
        settings = value.defaults
    else:
        settings = vars(value) | vars(value).get("_buffers", {})
    arguments = {}
    for name, parameter in inspect.signature(type(value)).parameters.items():
        if name in settings and name not in ("self", "params", "name"):
            mine = _plain(settings[name])
            if mine != parameter.default and mine is not None:
                arguments[name] = mine
    return arguments


def _plain(value: Any) -> Any:
    """A tensor as a list, as YAML would have it; all else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _describe(value: Any) -> str:
    if name := getattr(value, "__qualname__", ""):
        return name
    return f"a {type(value).__module__}.{type(value).__qualname__}"


def _name(thing: Any) -> str:
    if isinstance(thing, functools.partial):
        return _name(thing.func)
    return getattr(thing, "__name__", type(thing).__name__)


def _unpicklable_part(thing: Any) -> str:
    """Name of the attribute or global name that cannot be pickled; may be empty."""
    parts = dict(getattr(thing, "__dict__", {}))
    if inspect.isfunction(thing):
        variables = inspect.getclosurevars(thing)
        parts = {**variables.globals, **variables.nonlocals}
    for name, part in parts.items():
        try:
            cloudpickle.dumps(part)
        except Exception:
            return name
    return ""
