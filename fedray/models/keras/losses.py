"""Keras losses by their Keras or PyTorch names; losses and metrics of model files."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from fedray import user_code
from fedray.config import describe_unknown
from fedray.errors import ConfigError
from fedray.models.keras.backend import keras, to_snake_case
from fedray.models.loss_domains import (
    ANYTHING,
    KERAS,
    NOT_USABLE,
    Domain,
    LossUse,
)
from fedray.models.loss_names import TORCH_CLASSES
from fedray.models.own_loss import make_loss
from fedray.models.untrusted import UnsafeFile, quote
from fedray.user_code import Source

SHORT_NAMES = {
    "bce": "BinaryCrossentropy",
    "kld": "KLDivergence",
    "mae": "MeanAbsoluteError",
    "mape": "MeanAbsolutePercentageError",
    "mse": "MeanSquaredError",
    "msle": "MeanSquaredLogarithmicError",
}
TORCH_NAMES: dict[str, tuple[str, dict[str, Any]]] = {  # of torch.nn.functional
    "cross_entropy": ("CategoricalCrossentropy", {"from_logits": True}),
    "nll_loss": ("CategoricalCrossentropy", {"from_logits": True}),
    "binary_cross_entropy": ("BinaryCrossentropy", {}),
    "binary_cross_entropy_with_logits": ("BinaryCrossentropy", {"from_logits": True}),
    "mse_loss": ("MeanSquaredError", {}),
    "l1_loss": ("MeanAbsoluteError", {}),
    "huber_loss": ("Huber", {}),
    "smooth_l1_loss": ("Huber", {}),
}
PLAIN_TYPES = (int, float, bool, str, type(None))
ACCURACIES = ("accuracy", "acc")
MAX_BUCKETS = 10_000  # of a metric that counts in buckets
MODELS_OWN = "model"  # as `loss`: of PyTorch alone
MEAN_REDUCTIONS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")
WHOLE_BATCH = ("Dice", "Tversky")  # losses that sum over a batch before they divide


CLASSES = {to_snake_case(name): name for name in KERAS} | SHORT_NAMES
LOSSES = (*CLASSES, *TORCH_NAMES)
CHOICES = (  # each by one name, for advice
    *map(to_snake_case, KERAS),
    *(name for name, (_, args) in TORCH_NAMES.items() if args and name != "nll_loss"),
)


class Loss(NamedTuple):
    """One loss.

    function : (targets (N, ...), outputs (N, ...)) -> their mean loss.
    use : its domain of targets and outputs.
    takes_rows : whether it takes classes as rows instead of numbers.
    is_by_sample : whether it is a mean of losses that each sample has.
    """

    function: Any
    use: LossUse
    takes_rows: bool
    is_by_sample: bool = False


@contextlib.contextmanager
def unreduced(function: Any) -> Iterator[None]:
    """Let a Keras loss give losses (N, ...) instead of their mean."""
    reduction, function.reduction = function.reduction, "none"
    try:
        yield
    finally:
        function.reduction = reduction


def named(name: str, args: dict[str, Any], is_default: bool = False) -> Loss:
    """Make a loss by name, such as ``categorical_crossentropy`` or ``mse_loss``.

    is_default : whether the config does not name it.

    Raises
    ------
    ConfigError
        If there is no such loss, or it does not take `args` (`loss_args`).
    """
    last = name.removeprefix("keras.").removeprefix("losses.")
    for module in ("torch.nn.", "nn."):
        last = last.removeprefix(module).removeprefix("functional.")
    if last not in KERAS:
        last = TORCH_CLASSES.get(last, last)
    kind, function = _make(name, last, args)
    if function.reduction not in MEAN_REDUCTIONS:
        raise ConfigError(
            [f"loss_args: reduction {function.reduction!r} is no mean, leave it out"]
        )
    settings = function.get_config()
    axis = settings.get("axis")
    use = LossUse(
        last,
        _domain(last, settings.get("from_logits", False)),
        {choice: _domain(choice) for choice in CHOICES},
        axis if isinstance(axis, int) else -1,  # dice sums over several, or none
        is_default,
        settings.get("ignore_class"),
    )
    takes_rows = kind != "SparseCategoricalCrossentropy"
    return Loss(function, use, takes_rows, kind not in WHOLE_BATCH)


class _FunctionLoss(keras.losses.Loss):  # type: ignore[name-defined]
    """The mean over a batch of what a function of targets and outputs gives."""

    def __init__(self, function: Callable[[Any, Any], Any]):
        super().__init__()
        self.function = function

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Losses of the samples, or their mean."""
        return self.function(y_true, y_pred)


def own(code: Source, args: dict[str, Any]) -> Loss:
    """The user's function of targets and outputs, or their class of a Keras loss.

    Raises
    ------
    ConfigError
        If the code fails, or does not take `args`.
    """
    function = make_loss(code, args)
    if not isinstance(function, keras.losses.Loss):
        function = _FunctionLoss(function)
    return Loss(function, LossUse(str(code), ANYTHING, {}), takes_rows=True)


def check_names(name: str, args: dict[str, Any]) -> None:
    """Raise ConfigError for an unknown loss or argument; code of the user's is read."""
    if user_code.is_source(name):
        user_code.read(name, "loss")
    else:
        named(name, args)


def _make(name: str, last: str, args: dict[str, Any]) -> tuple[str, Any]:
    """Keras's class of a loss, and the loss itself."""
    if last == MODELS_OWN:
        raise ConfigError(
            [
                "loss: model is for model_type: pytorch; a Keras model gives a loss of "
                "its own by add_loss, beside one of the config's"
            ]
        )
    kind, torch_args = TORCH_NAMES.get(last, (CLASSES.get(last, last), {}))
    if last in NOT_USABLE:
        choices = ", ".join(LOSSES)
        reason = f"{NOT_USABLE[last]}; choose from {choices}"
        raise ConfigError([f"loss {name} cannot be used: {reason}"])
    if kind not in KERAS:
        raise ConfigError([describe_unknown("loss", name, LOSSES)])
    try:
        return kind, getattr(keras.losses, kind)(**{**torch_args, **args})
    except (TypeError, ValueError, AttributeError) as error:
        first_line = str(error).splitlines()[0][:300]
        raise ConfigError([f"{name} refuses loss_args {args}: {first_line}"]) from None


def _domain(name: str, from_logits: bool = False) -> Domain:
    kind, args = TORCH_NAMES.get(name, (CLASSES.get(name, name), {}))
    domain = KERAS[kind]
    if name == "nll_loss":
        return domain._replace(outputs="log-probabilities")
    if from_logits or args.get("from_logits"):
        is_binary = domain.threshold is not None
        threshold = 0.0 if is_binary else None
        return domain._replace(outputs="logits", threshold=threshold)
    return domain


def loss_from_file(compiled: Any) -> tuple[str, dict[str, Any]]:
    """`loss` and `loss_args` of the config for the loss of a file's compile settings.

    Arguments that are Keras's defaults are left out.

    Raises
    ------
    UnsafeFile
        If it is not one of `LOSSES`.
    """
    name: Any = compiled
    args: Any = {}
    if type(compiled) is dict:
        name, args = compiled.get("class_name"), compiled.get("config")
        check_own(compiled, "loss")
        if name == "function":
            name, args = args, {}
    if type(name) is not str or type(args) is not dict:
        raise UnsafeFile(
            f"it was compiled with {quote(name)} for losses, one is read: give loss in "
            "the config"
        )
    kind = CLASSES.get(name, name)
    if kind not in KERAS:
        raise UnsafeFile(
            f"it was compiled with the loss {quote(name)}, which is not known to "
            "fedray: give loss in the config"
        )
    defaults = getattr(keras.losses, kind)().get_config()
    args = {key: args[key] for key in args if args[key] != defaults.get(key)}
    args.pop("name", None)
    if args.get("reduction") == "auto":  # of Keras 2: the mean
        del args["reduction"]
    _check_arguments(kind, args)
    return next(n for n, k in CLASSES.items() if k == kind), args


def check_own(compiled: dict[str, Any], key: str) -> None:
    """Refuse a loss or optimizer of another module, even one of a name of Keras's.

    key : of the config, which has to be given instead.
    """
    module, name = compiled.get("module"), compiled.get("class_name")
    is_keras = module in (None, "builtins") or str(module).split(".")[0] == "keras"
    if not is_keras or compiled.get("registered_name") not in (None, name):
        raise UnsafeFile(
            f"its {key} {quote(name)} is not Keras's own but code of {quote(module)}: "
            f"give {key} in the config"
        )


def _check_arguments(kind: str, args: dict[str, Any]) -> None:
    """Refuse a file's arguments of a loss that today's Keras does not take."""
    if not all(type(value) in PLAIN_TYPES for value in args.values()):
        raise UnsafeFile(f"its loss {kind} has arguments that are no plain numbers")
    try:
        getattr(keras.losses, kind)(**args)
    except (TypeError, ValueError, AttributeError):
        raise UnsafeFile(
            f"its loss {kind} has settings {', '.join(map(quote, args))} that this "
            "version of Keras does not take: give loss in the config"
        ) from None


def metrics_from_file(compiled: Any) -> tuple[list[Any], list[str]]:
    """Keras's own metrics of a file's compile settings, and the names of all others."""
    metrics, other_names, pending = [], [], [compiled]
    while pending:
        item = pending.pop(0)
        if isinstance(item, list | tuple):
            pending += item
        elif item in ACCURACIES or _is_keras_metric(item):
            metrics.append(item)
        elif item is not None:
            name = item.get("class_name") if type(item) is dict else item
            other_names.append(quote(name))
    return metrics, other_names


def _is_keras_metric(item: Any) -> bool:
    """Whether it is Keras's own: a name, or an object with plain, small arguments."""
    args: Any = {}
    if type(item) is dict:
        is_own = item.get("registered_name") in (None, item.get("class_name"))
        if not is_own or item.get("module") != "keras.metrics":
            return False
        item, args = item.get("class_name"), item.get("config")
    metrics = [n for n, v in vars(keras.metrics).items() if isinstance(v, type)]
    is_plain = type(args) is dict and all(
        type(value) in PLAIN_TYPES
        and not (isinstance(value, int) and value > MAX_BUCKETS)
        for value in args.values()
    )
    names = (*metrics, *map(to_snake_case, metrics), *SHORT_NAMES)
    return is_plain and item in names
