"""Keras's optimizers by the names that a config or a file gives them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedray.config import FederationConfig, unknown
from fedray.errors import ConfigError
from fedray.models.base import Blueprint
from fedray.models.keras import losses
from fedray.models.keras.backend import keras
from fedray.models.untrusted import Refused, shown

DEFAULTS = {  # where neither the config nor the model file says anything
    "optimizer": "SGD",
    "learning_rate": 0.01,
    "loss": "categorical_crossentropy",
}
HOMES = ("", "optim", "torch.optim", "optimizers", "keras.optimizers")
NEEDS_MORE = (  # other optimizers inside, or weights apart from those trained
    "Optimizer",
    "LossScaleOptimizer",
    "MultiOptimizer",
    "OptimizerMap",
    "ScheduleFreeAdamW",
)
OPTIMIZERS = tuple(
    sorted(
        name
        for name, value in vars(keras.optimizers).items()
        if isinstance(value, type)
        and issubclass(value, keras.Optimizer)
        and name not in NEEDS_MORE
    )
)


def optimizer_name(given: str) -> str:
    """Find ``optim.Adadelta``, ``keras.optimizers.Adam`` or ``sgd``: the last part.

    Raises
    ------
    ConfigError
        If Keras has no such optimizer; lists those there are.
    """
    home, _, last = given.rpartition(".")
    by_lower = {name.lower(): name for name in OPTIMIZERS}
    if home not in HOMES or last.lower() not in by_lower:
        told = last if home in HOMES else given
        raise ConfigError([unknown("optimizer", told, OPTIMIZERS)])
    return by_lower[last.lower()]


def make_optimizer(config: FederationConfig) -> Any:
    """Make the config's optimizer with its learning rate.

    Raises
    ------
    ConfigError
        If the optimizer does not take `optimizer_args`.
    """
    make = getattr(keras.optimizers, optimizer_name(config.optimizer))
    try:
        return make(learning_rate=config.learning_rate, **config.optimizer_args)
    except (TypeError, ValueError, AttributeError) as error:
        raise _refusal(config, error) from None


def problems(config: FederationConfig) -> list[str]:
    """Optimizer, its arguments and loss, tried out on one small variable."""
    config = Blueprint("keras", None, {}, (), DEFAULTS).settle(config)
    found = []
    try:
        optimizer = make_optimizer(config)
        try:
            variable = keras.Variable(np.zeros((2, 2), np.float32))
            optimizer.apply([keras.ops.ones((2, 2))], [variable])
        except Exception as error:  # of wrong types, only noticed in use
            raise _refusal(config, error) from None
    except ConfigError as error:
        found += error.problems
    try:
        losses.named(config.loss, config.loss_args)
    except ConfigError as error:
        found += error.problems
    return found


def _refusal(config: FederationConfig, error: Exception) -> ConfigError:
    args = f"optimizer_args {config.optimizer_args}"
    first = str(error).strip().splitlines() or [""]
    return ConfigError([f"{config.optimizer} refuses {args}: {first[0][:300]}"])


def settings(
    compiled: Mapping[str, Any] | None, config: FederationConfig
) -> dict[str, Any]:
    """What training will use: the config's, else the file's, else the defaults.

    An optimizer or loss of the config leaves nothing of the file's: neither its
    arguments nor the learning rate that was meant for another one.

    Raises
    ------
    Refused
        If the file's optimizer or loss is none that fedray knows, and the config does
        not say another.
    """
    told = dict(DEFAULTS, optimizer_args={}, loss_args={})
    if compiled and not config.optimizer and compiled.get("optimizer"):
        needs_rate = config.learning_rate is None
        told |= _optimizer(compiled["optimizer"], needs_rate)
    if compiled and not config.loss and compiled.get("loss"):
        told["loss"], told["loss_args"] = losses.from_file(compiled["loss"])
    given = {key: getattr(config, key) for key in told}
    return told | {
        key: value for key, value in given.items() if value not in (None, {})
    }


def _optimizer(given: Any, needs_rate: bool) -> dict[str, Any]:
    """A file's optimizer in the config's words; what is Keras's default is left out."""
    name = given.get("class_name") if type(given) is dict else given
    try:
        name = optimizer_name(name.removeprefix("Custom>") if name else "")
    except (ConfigError, AttributeError):
        raise Refused(
            f"it was compiled with the optimizer {shown(name)}, which is not known to "
            "fedray: give optimizer in the config"
        ) from None
    config = given.get("config") if type(given) is dict else {}
    if type(config) is not dict:
        raise Refused("its optimizer has no config: give optimizer in the config")
    default = getattr(keras.optimizers, name)().get_config()
    args = {key: config[key] for key in default if key in config and key != "name"}
    rate = args.pop("learning_rate", default["learning_rate"])
    if needs_rate and type(rate) not in (int, float):
        raise Refused(
            "its learning rate is a schedule, and every round would start it again: "
            "give learning_rate in the config"
        )
    if not all(type(v) in (int, float, bool, str, type(None)) for v in args.values()):
        raise Refused(f"its optimizer {name} has arguments that are no plain numbers")
    args = {key: v for key, v in args.items() if not _alike(v, default[key])}
    found = {"optimizer": name, "optimizer_args": args}
    return found | ({"learning_rate": _short(rate)} if needs_rate else {})


def _alike(a: Any, b: Any) -> bool:
    return a == b or (isinstance(a, float) and isinstance(b, float) and _short(a) == b)


def _short(number: float) -> float:
    """The number that was meant: files hold 0.001 as 0.0010000000474974513."""
    return float(str(np.float32(number)))
