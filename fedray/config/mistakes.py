"""Error messages of config keys: what was got, what is needed, the nearest known name.

pydantic finds what is wrong with a value; the sentences about it are made here, from
the key's declaration.
"""

import difflib
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fedray.config.declaration import Key, keys_of

MAX_TEXT = 10_000  # characters of a value: longer than any path or name
MAX_LISTED = 25  # names in a message that has a nearest one
MAX_NUMBER = 10**30  # larger ones are not written out in messages
NEEDED = {  # pydantic's type of an error: what the value has to be
    "bool_type": "true or false",
    "string_type": "text",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "tuple_type": "a list",
    "int_type": "a whole number",
    "float_type": "a finite number",
    "finite_number": "a finite number",
    "value_error": f"at most {MAX_TEXT} characters, none of them NUL",
}
BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


def describe_unknown(what: str, name: str, choices: Iterable[str]) -> str:
    """Message about a name that does not exist: the nearest that does, and all.

    Many names are listed only where none is near. Dotted names (``partition.alpha``)
    are compared by what follows the last dot.
    """
    names = {full.rpartition(".")[2]: full for full in choices}
    near = difflib.get_close_matches(str(name).rpartition(".")[2], list(names), 1)
    if near and len(names) > MAX_LISTED:
        return f"unknown {what} {name!r}; did you mean {names[near[0]]!r}?"
    hint = f"; did you mean {names[near[0]]!r}?" if near else ";"
    return f"unknown {what} {name!r}{hint} choose from {sorted(choices)}"


def describe_value(value: Any) -> str:
    """A value as error messages have it: at most 80 characters."""
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        return f"a number of {value.bit_length()} bits"
    text = repr(value[:100] if isinstance(value, str) else value)
    return text if len(text) <= 80 else text[:77] + "..."


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One message for each mistake that pydantic found in the values of a model."""
    details = error.errors(include_url=False)
    return list(dict.fromkeys(_message(detail, model) for detail in details))


def wrong_keys(error: ValidationError) -> set[str]:
    """The keys of the model itself that `problems_of` has messages about."""
    return {str(detail["loc"][0]) for detail in error.errors(include_url=False)}


def _message(detail: ErrorDetails, model: type[BaseModel]) -> str:
    location, kind, value = detail["loc"], detail["type"], detail["input"]
    name = _path(location)
    if kind == "extra_forbidden":
        owner = _model_at(location[:-1], model)
        prefix = name.removesuffix(str(location[-1]))
        keys = [f"{prefix}{key}" for key in keys_of(owner)] if owner else []
        return describe_unknown("key", name, keys)
    if kind == "missing":
        return f"{name} is missing"
    key = _key_at(location, model)
    if kind == "literal_error" and isinstance(value, str) and len(value) > MAX_TEXT:
        kind = "value_error"
    if kind == "literal_error" and key and isinstance(value, str):
        words = " ".join(part for part in location if isinstance(part, str))
        return describe_unknown(words, value, key.choices)
    if kind == "literal_error" and key:
        words = ", ".join(map(repr, key.choices))
        return f"{name} must be one of the words {words}, got {describe_value(value)}"
    if kind in BOUNDS and key:
        return f"{name} must be {key.setting.bounds}, got {describe_value(value)}"
    if kind in NEEDED:
        return f"{name} must be {NEEDED[kind]}, got {describe_value(value)}"
    return f"{name}: {detail['msg']}, got {describe_value(value)}"


def _path(location: Sequence[str | int]) -> str:
    """``parties[0].data`` for ("parties", 0, "data")."""
    steps = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(steps).removeprefix(".")


def _model_at(
    location: Sequence[str | int], model: type[BaseModel]
) -> type[BaseModel] | None:
    if not location:
        return model
    key = _key_at(location, model)
    return key.nested if key else None


def _key_at(location: Sequence[str | int], model: type[BaseModel]) -> Key | None:
    names = [part for part in location if isinstance(part, str)]
    key, owner = None, typing.cast(type[BaseModel] | None, model)
    for name in names:
        if owner is None or name not in keys_of(owner):
            return None
        key = keys_of(owner)[name]
        owner = key.nested
    return key
