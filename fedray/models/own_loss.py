"""Functions of outputs and targets that are the user's own: a loss, metrics."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fedray import user_code
from fedray.config import FederationConfig
from fedray.config.metrics import label_of
from fedray.errors import ConfigError


def read_loss(config: FederationConfig) -> user_code.Source | None:
    """The code of a loss that is the user's own; None of those with a name.

    Raises
    ------
    ConfigError
        If it cannot be read, or the file has no such function.
    """
    name = config.loss or ""
    return user_code.read(name, "loss") if user_code.is_source(name) else None


def read_metrics(config: FederationConfig) -> dict[str, user_code.Source]:
    """The code of metrics that are functions of the user's own, by their names.

    Raises
    ------
    ConfigError
        If it cannot be read, or a file has no such function.
    """
    return {
        label_of(name): user_code.read(name, "metrics")
        for name in config.metrics
        if user_code.is_source(name)
    }


def make_loss(source: user_code.Source, args: Mapping[str, Any]) -> Callable[..., Any]:
    """The user's loss of two arguments: a function, or an object of their class.

    args : `loss_args`, for the function or for making the object.

    Raises
    ------
    ConfigError
        If the code fails, or the loss does not take two arguments and these.
    """
    needed = "a function of two arguments, or a class that makes one"
    return make_function(source, args, "loss", needed)


def make_function(
    source: user_code.Source, args: Mapping[str, Any], key: str, needed: str
) -> Callable[..., Any]:
    """The user's function of two arguments, or the object of a class that is one.

    Parameters
    ----------
    args : further arguments by name, for the function or for making the object.
    key, needed : what errors call it, and what it has to be.

    Raises
    ------
    ConfigError
        If the code fails, or it does not take two arguments and these.
    """
    try:
        function, rest = user_code.run(source), dict(args)
        if isinstance(function, type):
            function, rest = function(**args), {}
        if not callable(function):
            raise TypeError(f"'{type(function).__name__}' object is not callable")
        signature = inspect.signature(getattr(function, "forward", function))
        signature.bind(None, None, **rest)
    except (Exception, SystemExit) as error:  # user code raises any exception
        with_args = f" with {key}_args {', '.join(args)}" if args else ""
        failed = user_code.describe_here(error)
        line = f"{key} {source} cannot be used{with_args}: {failed}; needed is {needed}"
        raise ConfigError([line]) from None
    return functools.partial(function, **rest) if rest else function
