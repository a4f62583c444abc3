"""Keras optimizers by name, and training settings from config and model file."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedray.config import FederationConfig, RunConfig, describe_unknown
from fedray.errors import ConfigError
from fedray.models import torch_common
from fedray.models.base import collect_problems
from fedray.models.keras import losses
from fedray.models.keras.backend import keras
from fedray.models.untrusted import UnsafeFile, quote

DEFAULTS = {  # where neither the config nor the model file says anything
    "optimizer": "SGD",
    "learning_rate": 0.01,
    "loss": "categorical_crossentropy",
}
PREFIXES = ("", "optim", "torch.optim", "optimizers", "keras.optimizers")
NOT_SUPPORTED = (  # other optimizers inside, or weights apart from those trained
    "Optimizer",
    "LossScaleOptimizer",
    "MultiOptimizer",
    "OptimizerMap",
    "ScheduleFreeAdamW",
)
OLD_NAMES = {"lr": "learning_rate", "schedule_decay": "decay"}  # of Keras 1 and 2
OLD_DECAYS = {"Nadam": (0.004,)}  # that Keras 3 always has
WITHOUT_EFFECT = ("name", "is_legacy_optimizer", "jit_compile")  # on what is trained
COMPILED = (
    "optimizer",
    "optimizer_config",
    "loss",
    "metrics",
)  # settings that are read
COMPILED_WITHOUT_EFFECT = (  # on what is trained
    *("weighted_metrics", "run_eagerly", "steps_per_execution", "jit_compile"),
    "auto_scale_loss",
)
OPTIMIZERS = tuple(
    sorted(
        name
        for name, value in vars(keras.optimizers).items()
        if isinstance(value, type)
        and issubclass(value, keras.Optimizer)
        and name not in NOT_SUPPORTED
    )
)


def optimizer_name(name: str) -> str:
    """Keras's class for ``optim.Adadelta``, ``keras.optimizers.Adam`` or ``sgd``.

    Raises
    ------
    ConfigError
        If Keras has no such optimizer; lists those there are.
    """
    prefix, _, last = name.rpartition(".")
    by_lower = {optimizer.lower(): optimizer for optimizer in OPTIMIZERS}
    if prefix not in PREFIXES or last.lower() not in by_lower:
        shortened = last if prefix in PREFIXES else name
        raise ConfigError([describe_unknown("optimizer", shortened, OPTIMIZERS)])
    return by_lower[last.lower()]


def make_optimizer(config: RunConfig) -> Any:
    """A new `keras.Optimizer` as the config says, with its learning rate.

    Raises
    ------
    ConfigError
        If the optimizer does not take `optimizer_args`.
    """
    make = getattr(keras.optimizers, optimizer_name(config.optimizer))
    try:
        return make(learning_rate=config.learning_rate, **config.optimizer_args)
    except (TypeError, ValueError, AttributeError) as error:
        raise torch_common.optimizer_error(config, error) from None


def problems(config: FederationConfig) -> list[str]:
    """What is wrong with optimizer, optimizer_args, loss and loss_args.

    The optimizer makes one step on a small variable: some only then notice arguments of
    wrong types.
    """
    run_config = config.resolve(DEFAULTS)
    return collect_problems(
        lambda: _try_optimizer(run_config),
        lambda: losses.check_names(run_config.loss, run_config.loss_args),
    )


def _try_optimizer(config: RunConfig) -> None:
    optimizer = make_optimizer(config)
    try:
        variable = keras.Variable(np.zeros((2, 2), np.float32))
        optimizer.apply([keras.ops.ones((2, 2))], [variable])
    except Exception as error:  # of many kinds
        raise torch_common.optimizer_error(config, error) from None


def training_settings(
    compiled: Mapping[str, Any] | None, config: FederationConfig
) -> dict[str, Any]:
    """Optimizer, learning rate and loss: the config's, else the file's, else defaults.

    An optimizer or loss of the config replaces all of the file's, its arguments and the
    learning rate that was meant for another one included.

    compiled : a file's compile settings, plain data.

    Raises
    ------
    UnsafeFile
        If the file's optimizer or loss is not known to fedray, and the config names no
        other.
    """
    settings: dict[str, Any] = dict(DEFAULTS, optimizer_args={}, loss_args={})
    if compiled and not config.loss:
        _check_compiled(compiled)
    if compiled and not config.optimizer and compiled.get("optimizer"):
        needs_rate = config.learning_rate is None
        settings |= _optimizer_settings(compiled["optimizer"], needs_rate)
    if compiled and not config.loss and compiled.get("loss"):
        loss, loss_args = losses.loss_from_file(compiled["loss"])
        settings |= {"loss": loss, "loss_args": loss_args}
    configured = {key: getattr(config, key) for key in settings}
    return settings | {
        key: value for key, value in configured.items() if value not in (None, {})
    }


def _check_compiled(compiled: Mapping[str, Any]) -> None:
    """Refuse compile settings that would change the training and are not read."""
    for key, value in compiled.items():
        is_one = value in (None, 1, [1], [None])
        if key not in (*COMPILED, *COMPILED_WITHOUT_EFFECT) and not is_one:
            raise UnsafeFile(
                f"it was compiled with {quote(key)}, which is not read: give loss in "
                "the config"
            )


def _optimizer_settings(compiled: Any, needs_rate: bool) -> dict[str, Any]:
    """Config keys for a file's optimizer; arguments that are defaults are left out."""
    name = compiled.get("class_name") if type(compiled) is dict else compiled
    if type(compiled) is dict:
        losses.check_own(compiled, "optimizer")
    try:
        name = optimizer_name(name.removeprefix("Custom>") if name else "")
    except (ConfigError, AttributeError):
        raise UnsafeFile(
            f"it was compiled with the optimizer {quote(name)}, which is not known to "
            "fedray: give optimizer in the config"
        ) from None
    config = compiled.get("config") if type(compiled) is dict else {}
    if type(config) is not dict:
        raise UnsafeFile("its optimizer has no config: give optimizer in the config")
    defaults = getattr(keras.optimizers, name)().get_config()
    args = _known_arguments(name, config, defaults, needs_rate)
    rate = args.pop("learning_rate", defaults["learning_rate"])
    if needs_rate and type(rate) not in (int, float):
        raise UnsafeFile(
            "its learning rate is a schedule, and every round would start it again: "
            "give learning_rate in the config"
        )
    if not all(type(value) in losses.PLAIN_TYPES for value in args.values()):
        raise UnsafeFile(
            f"its optimizer {name} has arguments that are no plain numbers"
        )
    args = {key: value for key, value in args.items() if _differ(value, defaults[key])}
    settings = {"optimizer": name, "optimizer_args": args}
    return settings | ({"learning_rate": _shortest(rate)} if needs_rate else {})


def _known_arguments(
    name: str, config: dict[str, Any], defaults: Mapping[str, Any], needs_rate: bool
) -> dict[str, Any]:
    """A file's arguments of an optimizer, by the names that Keras has for them today.

    Raises
    ------
    UnsafeFile
        If one is not known: left out, it would train otherwise than the file says.
    """
    args = {OLD_NAMES.get(key, key): value for key, value in config.items()}
    decay = args.pop("decay", None)
    if needs_rate and decay not in (None, 0, *OLD_DECAYS.get(name, ())):
        raise UnsafeFile(
            "its learning rate falls by a decay, and every round would start it "
            "again: give learning_rate in the config"
        )
    if args.get("epsilon", 0) is None:  # in Keras 2 that is the default
        del args["epsilon"]
    args = {key: value for key, value in args.items() if key not in WITHOUT_EFFECT}
    if unknown := [key for key in args if key not in defaults]:
        raise UnsafeFile(
            f"its optimizer {name} has the setting {quote(unknown[0])}, which this "
            "version of Keras does not know: give optimizer in the config"
        )
    return args


def _differ(value: Any, default: Any) -> bool:
    if value == default:
        return False
    both_floats = isinstance(value, float) and isinstance(default, float)
    return not both_floats or _shortest(value) != default


def _shortest(number: float) -> float:
    """The shortest number of the same float32: files hold 0.001 as 0.001000000047."""
    return float(str(np.float32(number)))
