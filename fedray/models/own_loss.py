"""A loss that is the user's own: ``loss: file.py:function`` of a config."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fedray import user_code
from fedray.config import FederationConfig
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


def make_loss(source: user_code.Source, args: Mapping[str, Any]) -> Callable[..., Any]:
    """The user's loss of two arguments: a function, or an object of their class.

    args : `loss_args`, for the function or for making the object.

    Raises
    ------
    ConfigError
        If the code fails, or the loss does not take two arguments and these.
    """
    try:
        loss, rest = user_code.run(source), dict(args)
        if isinstance(loss, type):
            loss, rest = loss(**args), {}
        if not callable(loss):
            raise TypeError(f"'{type(loss).__name__}' object is not callable")
        inspect.signature(getattr(loss, "forward", loss)).bind(None, None, **rest)
    except (Exception, SystemExit) as error:  # user code raises any exception
        with_args = f" with loss_args {', '.join(args)}" if args else ""
        failed = user_code.describe_here(error)
        needed = "needed is a function of two arguments, or a class that makes one"
        line = f"loss {source} cannot be used{with_args}: {failed}; {needed}"
        raise ConfigError([line]) from None
    return functools.partial(loss, **rest) if rest else loss
