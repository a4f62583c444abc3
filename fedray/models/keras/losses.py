"""Losses by the names of both worlds, and what targets and outputs each takes."""

import re
from typing import Any, NamedTuple

from fedray.config import unknown
from fedray.errors import ConfigError
from fedray.models.keras.backend import keras
from fedray.models.untrusted import Refused, shown

ONE_HOT = ("CategoricalCrossentropy", "CategoricalFocalCrossentropy")
LABELS = ("SparseCategoricalCrossentropy",)
YES_NO = ("BinaryCrossentropy", "BinaryFocalCrossentropy")
VALUES = (
    "MeanSquaredError",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquaredLogarithmicError",
    "Huber",
    "LogCosh",
    "Poisson",
    "KLDivergence",
    "CosineSimilarity",
    "Hinge",
    "SquaredHinge",
    "CategoricalHinge",
    "Dice",
    "Tversky",
)
SHORT = {
    "bce": "BinaryCrossentropy",
    "kld": "KLDivergence",
    "mae": "MeanAbsoluteError",
    "mape": "MeanAbsolutePercentageError",
    "mse": "MeanSquaredError",
    "msle": "MeanSquaredLogarithmicError",
}
TORCH = {  # of torch.nn.functional, where Keras has the same
    "cross_entropy": ("CategoricalCrossentropy", {"from_logits": True}),
    "nll_loss": ("CategoricalCrossentropy", {"from_logits": True}),
    "binary_cross_entropy": ("BinaryCrossentropy", {}),
    "binary_cross_entropy_with_logits": ("BinaryCrossentropy", {"from_logits": True}),
    "mse_loss": ("MeanSquaredError", {}),
    "l1_loss": ("MeanAbsoluteError", {}),
    "huber_loss": ("Huber", {}),
    "smooth_l1_loss": ("Huber", {}),
}
PLAIN = (int, float, bool, str, type(None))
ACCURACIES = ("accuracy", "acc")
MAX_BUCKETS = 10_000  # of a metric that counts in buckets
MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().replace("kldiv", "kl_div")


BY_NAME = {_snake(n): n for n in (*ONE_HOT, *LABELS, *YES_NO, *VALUES)} | SHORT
LOSSES = (*BY_NAME, *TORCH)


class Loss(NamedTuple):
    """One loss.

    function : (targets (N, ...), outputs (N, ...)) -> their mean loss.
    targets : one_hot (N, classes), labels (N,), yes_no or values as the outputs.
    outputs : what the model must give: probabilities, logits, log-probabilities, any.
    """

    name: str
    function: Any
    targets: str
    outputs: str


def named(name: str, args: dict[str, Any]) -> Loss:
    """Find ``categorical_crossentropy``, ``CategoricalCrossentropy`` or ``mse_loss``.

    Raises
    ------
    ConfigError
        If there is no such loss, or it does not take `args` (`loss_args`).
    """
    last = name.removeprefix("keras.").removeprefix("losses.")
    kind, own = TORCH.get(last, (BY_NAME.get(last, last), {}))
    if kind not in BY_NAME.values():
        raise ConfigError([unknown("loss", name, LOSSES)])
    try:
        function = getattr(keras.losses, kind)(**{**own, **args})
    except (TypeError, ValueError, AttributeError) as error:
        first = str(error).splitlines()[0][:300]
        raise ConfigError([f"{name} refuses loss_args {args}: {first}"]) from None
    if function.reduction not in MEANS:
        raise ConfigError(
            [f"loss_args: reduction {function.reduction!r} is no mean, leave it out"]
        )
    targets = next(
        (t for t, kinds in _TARGETS.items() if kind in kinds),
        "values",
    )
    outputs = "any"
    if targets != "values":
        from_logits = function.get_config().get("from_logits", False)
        outputs = "logits" if from_logits else "probabilities"
    if last == "nll_loss":
        outputs = "log-probabilities"
    return Loss(name, function, targets, outputs)


_TARGETS = {"one_hot": ONE_HOT, "labels": LABELS, "yes_no": YES_NO}


def from_file(given: Any) -> tuple[str, dict[str, Any]]:
    """A file's loss in the config's words: `loss` and `loss_args`.

    Raises
    ------
    Refused
        If it is none that fedray knows.
    """
    name, args = given, {}
    if type(given) is dict:
        name, args = given.get("class_name"), given.get("config")
        if name == "function":
            name, args = args, {}
    if type(name) is not str or type(args) is not dict:
        raise Refused(
            f"it was compiled with {shown(name)} for losses, one is read: give loss in "
            "the config"
        )
    if BY_NAME.get(name, name) not in BY_NAME.values():
        raise Refused(
            f"it was compiled with the loss {shown(name)}, which is not known to "
            "fedray: give loss in the config"
        )
    kind = BY_NAME.get(name, name)
    default = getattr(keras.losses, kind)().get_config()
    args = {key: args[key] for key in args if args[key] != default.get(key)}
    args.pop("name", None)
    if not all(type(value) in PLAIN for value in args.values()):
        raise Refused(f"its loss {kind} has arguments that are no plain numbers")
    return next(n for n, k in BY_NAME.items() if k == kind), args


def metrics_from_file(given: Any) -> tuple[list[Any], list[str]]:
    """Metrics of compile settings that a written file can have, and names of others."""
    known, unknown_ones, todo = [], [], [given]
    while todo:
        item = todo.pop(0)
        if isinstance(item, list | tuple):
            todo += item
        elif item in ACCURACIES or _is_known_metric(item):
            known.append(item)
        elif item is not None:
            name = item.get("class_name") if type(item) is dict else item
            unknown_ones.append(shown(name))
    return known, unknown_ones


def _is_known_metric(item: Any) -> bool:
    """Keras's own, by name or as an object with plain and small arguments."""
    args: Any = {}
    if type(item) is dict:
        own = item.get("registered_name") in (None, item.get("class_name"))
        if not own or item.get("module") != "keras.metrics":
            return False
        item, args = item.get("class_name"), item.get("config")
    metrics = [n for n, v in vars(keras.metrics).items() if isinstance(v, type)]
    plain = type(args) is dict and all(
        type(value) in PLAIN and not (isinstance(value, int) and value > MAX_BUCKETS)
        for value in args.values()
    )
    return plain and (item in metrics or item in map(_snake, metrics) or item in SHORT)
