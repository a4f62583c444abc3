"""What the user's get_weights() gives, as named arrays, and back again in its form."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedray.errors import ModelClassError
from fedray.untrusted_text import is_harmless
from fedray.weights import KINDS, MAX_DIMENSIONS, Schema, Weights, mismatch

MAX_NAME = 200  # characters of a tensor's name
MAX_ITEM_BYTES = 8  # of one number
GET, NEEDED = "get_weights()", "a dict or a list of arrays"


class WeightsForm(NamedTuple):
    """The form in which get_weights() gives weights, and set_weights() gets them.

    is_list : a list, not a dict.
    tensors : names of those that are torch tensors, not numpy arrays.
    """

    is_list: bool
    tensors: frozenset[str]


DICT = WeightsForm(False, frozenset())


def to_arrays(value: Any, owner: str) -> tuple[Weights, WeightsForm]:
    """Named arrays of what get_weights() gave, views where possible; and its form.

    owner : the class, as errors call it.

    Raises
    ------
    ModelClassError
        If they cannot travel, saying which and why.
    """
    is_list = isinstance(value, list | tuple)
    if not is_list and not isinstance(value, Mapping):
        raise ModelClassError(owner, GET, f"a {_kind(value)}", NEEDED)
    items = [(f"arr_{i}", one) for i, one in enumerate(value)] if is_list else value
    named = dict(items)
    if not named:
        raise ModelClassError(owner, GET, "no arrays at all", NEEDED)
    for name in named:
        if problem := _name_problem(name):
            needed = f"text of 1 to {MAX_NAME} printable characters"
            raise ModelClassError(owner, GET, f"a name {problem}", needed)
    arrays = {name: _to_array(name, one, owner) for name, one in named.items()}
    tensors = frozenset(name for name, one in named.items() if _is_tensor(one))
    return arrays, WeightsForm(is_list, tensors)


def from_arrays(weights: Weights, form: WeightsForm, copies: bool = True) -> Any:
    """Weights in the form that get_weights() gave them in.

    copies : writable copies, which the user's object may keep; else read-only views,
        but for tensors, which torch could not protect.
    """
    values: dict[str, Any] = {}
    for name, array in weights.items():
        if name in form.tensors:
            import torch

            values[name] = torch.from_numpy(array.copy())
        elif copies:
            values[name] = array.copy()
        else:
            values[name] = array.view()
            values[name].flags.writeable = False
    return list(values.values()) if form.is_list else values


def fit_schema(weights: Weights, needed: Schema, owner: str, call: str) -> Weights:
    """The arrays in the schema's order; floats and integers in its dtypes.

    Raises
    ------
    ModelClassError
        If names, shapes or kinds of numbers are others than before.
    """
    cast = {
        name: _same_kind(array, needed[name].dtype) if name in needed else array
        for name, array in weights.items()
    }
    if difference := mismatch(cast, needed):
        rule = "the same names, shapes and kinds of numbers every time"
        raise ModelClassError(owner, f"{GET} {call}", difference, rule)
    return {name: cast[name] for name in needed}


def _same_kind(array: np.ndarray, dtype: str) -> np.ndarray:
    """The array in a dtype of its own kind: float64 sums go back to float32."""
    needed = np.dtype(dtype)
    if array.dtype == needed or array.dtype.kind != needed.kind:
        return array
    with np.errstate(over="ignore"):
        same = array.astype(needed)
    is_exact = array.dtype.kind == "f" or np.array_equal(same, array)
    return same if is_exact else array


def _name_problem(name: Any) -> str:
    """What is wrong with a tensor's name; empty if nothing is."""
    if not isinstance(name, str):
        return f"of type {type(name).__name__}"
    if not name:
        return "that is empty"
    if len(name) > MAX_NAME:
        return f"of {len(name)} characters"
    if not (name.isprintable() and is_harmless(name)):
        return f"with a character that cannot be printed, {ascii(name)[:60]}"
    if name == "__metadata__":
        return "__metadata__, which .safetensors files have for themselves"
    return ""


def _is_tensor(value: Any) -> bool:
    """Whether it is a torch tensor, of a process that has imported torch."""
    return hasattr(value, "detach") and hasattr(value, "cpu")


def _to_array(name: str, value: Any, owner: str) -> np.ndarray:
    needed = "an array of numbers"
    what = f"{name!r} as a {_kind(value)}"
    if isinstance(value, Mapping):
        needed += ": a dict in a dict is to be one, with names such as 'layer/kernel'"
        raise ModelClassError(owner, GET, what, needed)
    if value is None or isinstance(value, str | bytes | list | tuple | set | complex):
        raise ModelClassError(owner, GET, what, f"{needed} (np.asarray)")
    try:
        array = _detach(value) if _is_tensor(value) else np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        dtype = getattr(value, "dtype", "")
        got = f"{what}{f' of {dtype}' if dtype else ''}, which numpy cannot hold"
        raise ModelClassError(owner, GET, got, f"{needed}, such as float32") from None
    is_wide = array.dtype.itemsize > MAX_ITEM_BYTES
    if array.dtype.kind not in KINDS or is_wide:
        got = f"{name!r} of {array.dtype}"
        raise ModelClassError(owner, GET, got, "floats, integers or bools of 1-64 bits")
    if array.ndim > MAX_DIMENSIONS:
        got = f"{name!r} of {array.ndim} dimensions"
        raise ModelClassError(owner, GET, got, f"at most {MAX_DIMENSIONS}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _detach(tensor: Any) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().numpy()
    return array


def _kind(value: Any) -> str:
    return type(value).__name__


def unlike(a: Weights, b: Weights, tolerance: float = 0.0) -> list[str]:
    """Names of tensors that differ, by more than a share of the largest number.

    a, b : of one schema; NaN equals NaN.
    """
    return [name for name in a if not _is_like(a[name], b[name], tolerance)]


def _is_like(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    if np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
        return True
    if not tolerance:
        return False
    scale = float(np.max(np.abs(b.astype(np.float64)), initial=0.0))
    step = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return bool((step <= tolerance * scale).all())


def describe_names(names: Iterable[str], n_all: int) -> str:
    """Some names of tensors for a message: ``'fc.weight', 'fc.bias' (2 of 3)``."""
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:5])
    return f"{shown}{', ...' if len(names) > 5 else ''} ({len(names)} of {n_all})"
