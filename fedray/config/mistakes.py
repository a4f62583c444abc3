"""Error messages of config keys: what was got, what is needed, the nearest known name.

pydantic finds what is wrong with a value; the sentences about it are made here, from
the key's declaration.
"""

import typing
from collections.abc import Collection, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fedray.config.declaration import Key, keys_of
from fedray.config.suggestions import nearest, suggest_key

MAX_TEXT = 10_000  # characters of a value: longer than any path or name
MAX_DEPTH = 20  # levels of mappings and lists in a config
MAX_NAME = 80  # characters of a name in a message
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


def describe_unknown(what: str, name: str, choices: Collection[str]) -> str:
    """Message about a name that does not exist: the nearest that does, and all.

    Many names are listed only where none is near.
    """
    near = nearest(name, choices)
    if near and len(choices) > MAX_LISTED:
        return f"unknown {what} {name!r}; did you mean {near!r}?"
    hint = f"; did you mean {near!r}?" if near else ";"
    listed = str(sorted(choices)[: 2 * MAX_LISTED])
    n_more = len(choices) - 2 * MAX_LISTED
    more = f" and {n_more} more" if n_more > 0 else ""
    return f"unknown {what} {name!r}{hint} choose from {listed}{more}"


def describe_unknown_key(
    name: str,
    place: str,
    root: type[BaseModel],
    allowed: Collection[str] = (),
    listing: str = "`fedray config` lists all keys",
) -> str:
    """Message about a key that does not exist: what to write instead, where to look.

    place, root, allowed : see `suggest_key`.
    listing : where all keys are found.
    """
    suggestion = suggest_key(name, place, root, allowed) or listing
    return f"unknown key {name[:MAX_NAME]!r}; {suggestion}"


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


def dotted(location: Sequence[str | int]) -> str:
    """``parties.data`` for ("parties", 0, "data")."""
    return ".".join(part for part in location if isinstance(part, str))


def _message(detail: ErrorDetails, model: type[BaseModel]) -> str:
    location, kind, value = detail["loc"], detail["type"], detail["input"]
    name = _path(location)
    if kind == "extra_forbidden":
        place = name.removesuffix(str(location[-1]))
        return describe_unknown_key(name, place, model)
    if kind == "missing":
        return f"{name} is missing"
    key = key_at(location, model)
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


def key_at(location: Sequence[str | int], model: type[BaseModel]) -> Key | None:
    """The key that a place in a config's data belongs to; None if there is none."""
    names = [part for part in location if isinstance(part, str)]
    key, owner = None, typing.cast(type[BaseModel] | None, model)
    for name in names:
        if owner is None or name not in keys_of(owner):
            return None
        key = keys_of(owner)[name]
        owner = key.nested
    return key
