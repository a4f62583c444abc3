"""Optimizers of torch.optim by name."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch

from fedray.config import FederationConfig, RunConfig, describe_unknown
from fedray.errors import ConfigError
from fedray.models import torch_common
from fedray.models.base import collect_problems
from fedray.models.pytorch import losses

DEFAULTS = {  # of keys that the config leaves open
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
    """Avoid the import of torch's compiler in eager training: 0.8 s, 60 MB a process.

    Optimizers import it on their first call to exclude their methods from compilation;
    marking the methods as excluded does the same. Without effect if torch changes.
    """
    for method in methods:
        unwrapped = getattr(method, "__wrapped__", None)
        if unwrapped is not None:
            setattr(unwrapped, "__dynamo_disable", unwrapped)


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
    is_torch_optim = module in ("", "optim", "torch.optim")
    if last not in OPTIMIZERS or not is_torch_optim:
        unknown_name = last if is_torch_optim else name
        raise ConfigError([describe_unknown("optimizer", unknown_name, OPTIMIZERS)])
    return getattr(torch.optim, last)


def make_optimizer(
    config: RunConfig, parameters: Iterable[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """Make the config's optimizer with its learning rate.

    Raises
    ------
    ConfigError
        If the optimizer does not take `optimizer_args`.
    """
    make: Callable[..., torch.optim.Optimizer] = optimizer_class(config.optimizer)
    try:
        return make(parameters, lr=config.learning_rate, **config.optimizer_args)
    except Exception as error:  # of many kinds: IndexError of short betas
        raise torch_common.optimizer_error(config, error) from None


def is_plain_sgd(config: RunConfig) -> bool:
    """Whether a step is the learning rate times the gradient, and nothing else."""
    optimizer = make_optimizer(config, [torch.nn.Parameter(torch.zeros(1))])
    others = {k: v for k, v in optimizer.defaults.items() if k != "lr"}
    ways = ("foreach", "fused")  # of computing the same
    return type(optimizer) is torch.optim.SGD and not any(
        value for key, value in others.items() if key not in ways
    )


def step(optimizer: torch.optim.Optimizer) -> None:
    """Take one step, as `optimizer.step()` does, without the compiler's import.

    The wrappers that torch puts around it serve its compiler and profiler, and cannot
    be marked as other methods are.
    """
    unwrapped = inspect.unwrap(type(optimizer).step)
    with torch.set_grad_enabled(bool(optimizer.defaults.get("differentiable"))):
        unwrapped(optimizer)


def problems(config: FederationConfig) -> list[str]:
    """Mistakes in optimizer, its arguments and loss; tried on one small parameter."""
    run_config = config.resolve(DEFAULTS)
    return collect_problems(
        lambda: make_optimizer(run_config, [torch.nn.Parameter(torch.zeros(2, 2))]),
        lambda: losses.check_names(run_config.loss, run_config.loss_args),
    )
