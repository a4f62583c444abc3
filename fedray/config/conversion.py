"""Values of a config as their keys' types say: texts, numbers, lists, mappings.

Where text is expected a value stays as it is written (``name: on``), where a number is
expected ``"1e-3"`` or ``"5"`` becomes one, a list becomes a tuple, true a word where
"true" is one of the choices. What cannot be converted is left as it is: the strict
settings classes then say what is wrong with it.
"""

import math
import typing
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from fedray.config import yaml_text
from fedray.config.declaration import Key, bare_type, keys_of
from fedray.config.mistakes import MAX_DEPTH
from fedray.config.yaml_text import PlainText

MAX_DIGITS = 27  # of a whole number with an exponent; no key takes as many


def convert_values(data: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Values of a settings class, each converted to its key's type where possible."""
    keys = keys_of(model)
    return {
        str(name): _to_key(value, keys[name]) if name in keys else _settle(value)
        for name, value in data.items()
    }


def _to_key(value: Any, key: Key) -> Any:
    if isinstance(value, PlainText):
        if value == "" or (key.is_optional and value in yaml_text.NOTHING):
            return None
        if key.choices and value not in key.choices:
            word = _to_word(value)
            value = word if word in key.choices else str(value)
    if key.choices and isinstance(value, bool):
        word = str(value).lower()
        return word if word in key.choices else value
    return _to_type(value, key.type)


def _to_word(text: str) -> str:
    """The choice that an unquoted text means: ``on`` is true, nothing is none."""
    if text in (*yaml_text.NOTHING, "None"):
        return "none"
    is_true = yaml_text.to_bool(text)
    return text if is_true is None else str(is_true).lower()


def _to_type(value: Any, kind: Any) -> Any:
    kind, origin = bare_type(kind), typing.get_origin(bare_type(kind))
    if kind is str or origin is Literal:
        return str(value) if value and isinstance(value, PlainText) else _settle(value)
    if kind in (int, float):
        return _to_int(value) if kind is int else _to_float(value)
    if kind is bool and isinstance(value, str):
        is_true = yaml_text.to_bool(value)
        return str(value) if is_true is None else is_true
    if origin is tuple and isinstance(value, list | tuple):
        item = typing.get_args(kind)[0]
        return tuple(_to_type(one, item) for one in value)
    if origin is dict and isinstance(value, dict):
        read = VALUES_OF[typing.get_args(kind)[1]]
        return {str(name): read(inner) for name, inner in value.items()}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return (
            convert_values(value, kind) if isinstance(value, dict) else _settle(value)
        )
    return _settle(value)


def _settle(value: Any, depth: int = 0) -> Any:
    """Plain data where no type is declared: unquoted values as YAML reads them."""
    if isinstance(value, PlainText):
        return yaml_text.to_value(value)
    if isinstance(value, np.generic):
        return value.item()
    if depth < MAX_DEPTH and isinstance(value, list | tuple):
        return type(value)(_settle(inner, depth + 1) for inner in value)
    if depth < MAX_DEPTH and isinstance(value, dict):
        return {
            str(name) if isinstance(name, PlainText) else name: _settle(
                inner, depth + 1
            )
            for name, inner in value.items()
        }
    return value


def _to_argument(value: Any, depth: int = 0) -> Any:
    """An argument of an optimizer or loss: text that is a number becomes one."""
    if isinstance(value, list | tuple) and depth < MAX_DEPTH:
        return type(value)(_to_argument(inner, depth + 1) for inner in value)
    if isinstance(value, str) and not isinstance(value, PlainText):
        number = yaml_text.to_number(value)
        return value if number is None else number
    return _settle(value)


def _to_text(value: Any) -> Any:
    if isinstance(value, PlainText):
        return str(value) or None
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_number else value


def _to_int(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            pass
        if (whole := _whole_number(value)) is not None:
            return whole
    number = _to_float(value)
    if isinstance(number, float) and math.isfinite(number) and number.is_integer():
        return value if isinstance(value, int) else int(number)
    return number if isinstance(value, PlainText) else value


def _whole_number(text: str) -> int | None:
    """The whole number that is written with a point or exponent, to its last digit."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    if not number.is_finite() or number.adjusted() > MAX_DIGITS:
        return None
    return int(number) if number == number.to_integral_value() else None


def _to_float(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return _settle(value)
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if math.isfinite(number) or not isinstance(value, PlainText):
        return number if math.isfinite(number) else value
    read = yaml_text.to_number(value)
    return str(value) if read is None else read


# how the values of a mapping are read, by their declared type: texts, plain data, and
# arguments of libraries, most of which are numbers
VALUES_OF: dict[Any, Callable[[Any], Any]] = {
    str: _to_text,
    object: _settle,
    Any: _to_argument,
}
