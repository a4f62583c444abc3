"""How a module is called, and what counts of the value that it returns.

``model(x)``, ``model(*x)`` or ``model(**x)``: the inputs of a sample are an array, a
tuple or a dict. Modules return a tensor, a tuple, a dict or an object such as Hugging
Face's ModelOutput: one output of it is compared with the targets, or it has the model's
own loss.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fedray.errors import DataError
from fedray.nested import Nested, arguments, call

LOGITS, LOSS = "logits", "loss"
NAMES = (LOGITS, "out")  # entries that count; torchvision's segmentation returns "out"


def call_module(module: nn.Module, x: Nested, labels: Nested = None) -> Any:
    """Call a module with inputs of its samples, and with labels if it is given them.

    labels : go in as `labels`, a dict of them under its own names.
    """
    if labels is None:
        return call(module, x)
    args, kwargs = call_arguments(x, labels)
    return module(*args, **kwargs)


def call_arguments(x: Nested, labels: Nested = None) -> tuple[Any, dict[str, Any]]:
    """Arguments that a module is called with: see `call_module`."""
    args, kwargs = arguments(x)
    if labels is None:
        return args, kwargs
    named = labels if isinstance(labels, Mapping) else {"labels": labels}
    return args, {**kwargs, **named}


def main_output(
    returned: Any, entry: str | int | None = None, source: str = "of the model"
) -> torch.Tensor:
    """The output that a loss and accuracy take of what a module returned.

    A tensor as it is, the first of a tuple or list, `logits` or else `out` of a dict
    or object, or a dict's only entry beside `loss`.

    Parameters
    ----------
    entry : name or place of another one.
    source : what an error names.

    Raises
    ------
    DataError
        If there is no such tensor.
    """
    if isinstance(returned, torch.Tensor):
        return returned
    names = _names(returned)
    place = _default_entry(returned, names) if entry is None else entry
    value = None if place is None else _get(returned, place)
    if isinstance(value, torch.Tensor):
        return value
    got, has = f"a model that returns {_describe(returned)}", ", ".join(names)
    if place is not None:
        got += f", whose {_entry_name(place)} is {_describe(value)}"
    elif isinstance(returned, Mapping):
        got += f" of {has or 'nothing'}"
    needed = (
        "a tensor; of a tuple or list the first counts, of a dict or object `logits`; "
        "loss_args: {output: ...} names another entry"
    )
    raise DataError(source, got, needed)


def output_beside_loss(returned: Any) -> torch.Tensor:
    """The output that counts, of what a module returned with its own loss.

    Of a tuple the first that is not the loss.

    Raises
    ------
    DataError
        If there is none.
    """
    if isinstance(returned, tuple | list):
        rest = [one for one in returned if not _is_number(one)]
        return main_output(rest)
    return main_output(returned)


def own_loss(returned: Any, source: str = "of the model") -> torch.Tensor:
    """The loss that a module computed itself, one number.

    `loss` of a dict or object, the one number of a tuple, or all that it returned.

    Raises
    ------
    DataError
        If there is none.
    """
    value = returned
    if LOSS in _names(returned):
        value = _get(returned, LOSS)
    elif isinstance(returned, tuple | list):
        value = next((one for one in returned if _is_number(one)), None)
    if _is_number(value):
        return value.reshape(())
    got = f"a model that returns {_describe(returned)}"
    got += f", whose loss is {_describe(value)}" * (value is not returned)
    needed = (
        "its own loss, one number, when it is called with labels: as `loss` of a dict "
        "or object, in a tuple, or alone (loss: model)"
    )
    raise DataError(source, got, needed)


def has_classes_last(returned: Any) -> bool:
    """Whether classes are the last axis of an output where its shape does not tell.

    By convention they are in dicts and objects.
    """
    return bool(_names(returned))


def _default_entry(returned: Any, names: list[str]) -> str | int | None:
    for name in NAMES:
        if name in names:
            return name
    if isinstance(returned, Mapping):
        others = [name for name in names if name != LOSS]
        return others[0] if len(others) == 1 else None
    return 0 if isinstance(returned, tuple | list) and returned else None


def _names(returned: Any) -> list[str]:
    """Names of a dict's entries; of an object those of `logits`, `out`, `loss`."""
    if isinstance(returned, torch.Tensor):
        return []
    if isinstance(returned, Mapping):
        return [name for name in returned if isinstance(name, str)]
    return [
        name for name in (*NAMES, LOSS) if getattr(returned, name, None) is not None
    ]


def _get(returned: Any, entry: str | int) -> Any:
    """An entry, or an attribute; None if there is none."""
    if isinstance(entry, str):
        is_dict = isinstance(returned, Mapping)
        return returned.get(entry) if is_dict else getattr(returned, entry, None)
    is_long = isinstance(returned, tuple | list) and -len(returned) <= entry
    return returned[entry] if is_long and entry < len(returned) else None


def _entry_name(entry: str | int) -> str:
    return f"{entry!r}" if isinstance(entry, str) else f"entry {entry}"


def _is_number(value: Any) -> bool:
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return is_float and value.numel() == 1


def _describe(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
