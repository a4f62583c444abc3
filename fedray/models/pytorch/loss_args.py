"""Arguments of PyTorch losses in a config (`loss_args`): names, types and bounds."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from fedray.config import describe_unknown
from fedray.errors import ConfigError
from fedray.models.loss_domains import Domain

CLASS_AXIS, OUTPUT = "class_axis", "output"  # what of the model's output a loss takes
DEPRECATED = ("size_average", "reduce")  # torch's older names of reduction
MAX_AXIS = 8


class Kind(NamedTuple):
    """Which values an argument may have.

    needed : in words.
    """

    needed: str
    fits: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    is_plain = isinstance(value, int | float) and not isinstance(value, bool)
    return is_plain and math.isfinite(value)


def _are_weights(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_are_weights, value)) and _is_even(value)
    return _is_number(value) and value >= 0


def _is_even(value: list[Any] | tuple[Any, ...]) -> bool:
    """Whether lists within a list are of one length, as rows of a tensor are."""
    return len({len(v) if isinstance(v, list | tuple) else -1 for v in value}) == 1


def _has_some(value: Any) -> bool:
    return any(map(_has_some, value)) if isinstance(value, list | tuple) else value > 0


WEIGHTS = Kind(
    "a list of finite numbers from 0, not all of them 0",
    lambda v: isinstance(v, list | tuple) and _are_weights(v) and _has_some(v),
)
FLAG = Kind("true or false", lambda v: isinstance(v, bool))
POSITIVE = Kind("a number above 0", lambda v: _is_number(v) and v > 0)
KINDS = {
    "weight": WEIGHTS,
    "pos_weight": Kind(
        "a number, or a list of numbers, from 0", lambda v: _are_weights(v)
    ),
    "ignore_index": Kind("a whole number, the label that is left out", _is_whole),
    "label_smoothing": Kind(
        "a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1
    ),
    "p": Kind("1 or 2", lambda v: v in (1, 2) and not isinstance(v, bool)),
    "margin": Kind("a finite number", _is_number),
    "beta": Kind("a number from 0", lambda v: _is_number(v) and v >= 0),
    "delta": POSITIVE,
    "eps": POSITIVE,
    "log_input": FLAG,
    "full": FLAG,
    CLASS_AXIS: Kind(
        "a whole number other than 0, the axis of samples: 1, or -1 for the last",
        lambda v: _is_whole(v) and v != 0 and abs(v) < MAX_AXIS,
    ),
    OUTPUT: Kind(
        "the name or place of what the model returns, such as logits or 0",
        lambda v: _is_whole(v) or (isinstance(v, str) and bool(v)),
    ),
}


def names_of(function: Callable[..., Any], domain: Domain) -> tuple[str, ...]:
    """Arguments that a loss of torch.nn.functional may be given in a config."""
    parameters = [*inspect.signature(function).parameters][2:]
    own = [name for name in parameters if name in KINDS]
    return (*own, *[CLASS_AXIS] * domain.has_classes, OUTPUT)


def check(name: str, args: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    """Compare `loss_args` with what a loss takes.

    Raises
    ------
    ConfigError
        With every mistake in them.
    """
    problems = []
    for key, value in args.items():
        if key in ("reduction", *DEPRECATED):
            if (key, value) != ("reduction", "mean"):
                got = f"{key}: {value}"
                line = f"{got} is none of fedray's, which takes means: leave it out"
                problems.append(f"loss_args: {line}")
        elif key not in allowed:
            problems.append(
                describe_unknown(f"argument of {name} in loss_args", key, allowed)
            )
        elif not KINDS[key].fits(value):
            needed = KINDS[key].needed
            problems.append(f"loss_args: {key} must be {needed}, got {value!r:.80}")
    if problems:
        raise ConfigError(problems)


def to_tensors(args: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Arguments as torch takes them: weights as tensors on the device."""
    return {
        key: torch.tensor(value, dtype=torch.float64, device=device)
        if key.endswith("weight")
        else value
        for key, value in args.items()
        if key != "reduction"
    }
