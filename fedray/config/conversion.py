"""Converts YAML, command-line and REST values to the types that keys declare.

Text such as ``"1e-3"`` or ``"5"`` becomes a number where a number is declared, a list a
tuple, true a word where "true" is one of the choices. What cannot be converted is left
as it is: the strict settings classes then say what is wrong with it.
"""

import math
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from fedray.config.declaration import Key, keys_of


def convert_values(data: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Values of a settings class, each converted to its key's type where possible."""
    keys = keys_of(model)
    return {
        str(name): _to_key(value, keys[name]) if name in keys else value
        for name, value in data.items()
    }


def _to_key(value: Any, key: Key) -> Any:
    if key.choices and isinstance(value, bool):
        word = str(value).lower()
        return word if word in key.choices else value
    return _to_type(value, key.type)


def _to_type(value: Any, kind: Any) -> Any:
    if kind is int:
        return _to_int(value)
    if kind is float:
        return _to_float(value)
    if kind is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
        item = typing.get_args(kind)[0]
        return tuple(_to_type(one, item) for one in value)
    if typing.get_origin(kind) is dict and isinstance(value, dict):
        is_text = typing.get_args(kind)[1] is str
        return {str(k): str(v) if is_text else v for k, v in value.items()}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return convert_values(value, kind) if isinstance(value, dict) else value
    return value


def _to_int(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            pass
    number = _to_float(value)
    if isinstance(number, float) and math.isfinite(number) and number.is_integer():
        return value if isinstance(value, int) else int(number)
    return value


def _to_float(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return value
    return number if math.isfinite(number) else value
