"""PyTorch's optimizers and losses by the names that a config gives them."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch

from fedray.config import FederationConfig, unknown
from fedray.errors import ConfigError
from fedray.models.base import Blueprint

CLASSES = ("cross_entropy", "nll_loss", "multi_margin_loss")  # targets are labels
BINARY = {  # where an answer counts as yes
    "binary_cross_entropy": 0.5,
    "binary_cross_entropy_with_logits": 0.0,
}
VALUES = (
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "poisson_nll_loss",
)
LOSSES = (*CLASSES, *BINARY, *VALUES)
DEFAULTS = {  # where the config is silent
    "optimizer": "optim.SGD",
    "learning_rate": 0.01,
    "loss": "cross_entropy",
}
NEEDS_MORE = ("Optimizer", "LBFGS", "SparseAdam")  # a closure, sparse gradients
OPTIMIZERS = tuple(
    sorted(
        name
        for name, value in vars(torch.optim).items()
        if isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and name not in NEEDS_MORE
    )
)


def _without_compiler(*methods: Callable[..., Any]) -> None:
    """Spare eager training the import of torch's compiler: 0.8 s, 60 MB a process.

    Optimizers import it on their first call to be left alone by it; marking their
    methods as already left alone does the same. Without effect if torch changes.
    """
    for method in methods:
        plain = getattr(method, "__wrapped__", None)
        if plain is not None:
            setattr(plain, "__dynamo_disable", plain)


_without_compiler(
    torch.optim.Optimizer.add_param_group,
    torch.optim.Optimizer.zero_grad,
)


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """Find ``optim.Adadelta``, ``torch.optim.Adam`` or ``SGD``: the last part counts.

    Raises
    ------
    ConfigError
        If torch.optim has no such optimizer; lists those there are.
    """
    module, _, last = name.rpartition(".")
    known_module = module in ("", "optim", "torch.optim")
    if last not in OPTIMIZERS or not known_module:
        told = last if known_module else name
        raise ConfigError([unknown("optimizer", told, OPTIMIZERS)])
    return getattr(torch.optim, last)


def make_optimizer(
    config: FederationConfig, parameters: Iterable[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """Make the config's optimizer with its learning rate.

    Raises
    ------
    ConfigError
        If the optimizer does not take `optimizer_args`.
    """
    make = optimizer_class(config.optimizer)
    try:
        return make(parameters, lr=config.learning_rate, **config.optimizer_args)
    except (TypeError, ValueError) as error:
        args = f"optimizer_args {config.optimizer_args}"
        raise ConfigError([f"{config.optimizer} refuses {args}: {error}"]) from None


def step(optimizer: torch.optim.Optimizer) -> None:
    """Take one step, as `optimizer.step()` does, without the compiler's import.

    What torch wraps around it is for its compiler and profiler, and cannot be marked
    as other methods are.
    """
    plain = inspect.unwrap(type(optimizer).step)
    with torch.set_grad_enabled(bool(optimizer.defaults.get("differentiable"))):
        plain(optimizer)


def loss_named(name: str) -> Callable[..., Any]:
    """Find a loss of torch.nn.functional.

    Raises
    ------
    ConfigError
        If it is not one of `LOSSES`.
    """
    if name not in LOSSES:
        raise ConfigError([unknown("loss", name, LOSSES)])
    return getattr(torch.nn.functional, name)


def problems(config: FederationConfig) -> list[str]:
    """Optimizer, its arguments and loss, tried out on one small parameter."""
    config = Blueprint("pytorch", None, {}, (), DEFAULTS).settle(config)
    found = []
    if config.loss_args:
        found.append("loss_args are for model_type keras, PyTorch losses take none")
    try:
        make_optimizer(config, [torch.nn.Parameter(torch.zeros(2, 2))])
    except ConfigError as error:
        found += error.problems
    try:
        loss_named(config.loss)
    except ConfigError as error:
        found += error.problems
    return found
