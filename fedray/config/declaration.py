"""Declares one config key: help, bounds, unit, where it may be set, what it affects.

``epochs: Annotated[int, setting("passes per round", ge=1, rest=True)] = 1`` is all that
is said of a key. Validation, text conversion, REST, the resume check, the command
line's help and docs/configuration.md are made from it.
"""

import functools
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedray.user_code import is_source

MAX_COUNT = 10_000_000  # rounds, epochs, parties: a larger number is a typing error
JSON_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}
TYPE_NAMES = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "array": "list",
    "object": "mapping",
}


@dataclass(frozen=True)
class OtherThan:
    """Condition of `applies`: any value but these."""

    values: tuple[Any, ...]

    def __contains__(self, value: Any) -> bool:
        return value not in self.values


Condition = tuple[Any, ...] | OtherThan
GIVEN = OtherThan((None,))  # the other key has to be set at all
CUSTOM = "file.py:ClassName"  # how conditions name code of the user's own


# what may protect a run's parties or their samples; a run may have several
MECHANISMS = ("central", "distributed", "dp_sgd", "secure_aggregation")
ANY_VALUE = OtherThan(())
UNDECLARED = "nothing says that the guarantee holds with it: leave it out"


@dataclass(frozen=True)
class Private:
    """With which privacy mechanisms a key may have another value than its default.

    values : by mechanism the values that keep its guarantee; of a mechanism that is
        not named none does.
    why : what leaves, or breaks, with other values; and what to do.
    needs : other keys and the values they must have, whatever the mechanism.
    """

    values: Mapping[str, Condition] = field(default_factory=dict)
    why: str = UNDECLARED
    needs: Mapping[str, Condition] = field(default_factory=dict)

    def allows(self, mechanism: str, value: Any) -> bool:
        """Whether the key may have this value with a mechanism."""
        return mechanism in self.values and name_of(value) in self.values[mechanism]


def private_with(
    *mechanisms: str,
    why: str = UNDECLARED,
    needs: Mapping[str, Condition] | None = None,
) -> Private:
    """Any value keeps the guarantee of these mechanisms; see `Private`."""
    return Private(dict.fromkeys(mechanisms, ANY_VALUE), why, needs or {})


DENIED = Private()  # what does not say otherwise
SAFE = private_with(*MECHANISMS)  # any value, with every mechanism


@dataclass(frozen=True)
class Setting(annotated_types.GroupedMetadata):
    """Everything a key declares beside its name, type and default; see `setting`."""

    help: str
    unit: str
    unset: str
    ge: float | None
    gt: float | None
    le: float | None
    rest: bool
    resume: bool
    path: Literal["", "file", "code"]
    applies: Mapping[str, Condition]
    examples: tuple[Any, ...]
    topic: str
    private: Private
    or_with: Mapping[str, Condition]

    def __iter__(self) -> Iterator[object]:
        """Bounds as pydantic takes them."""
        if self.ge is not None:
            yield annotated_types.Ge(self.ge)
        if self.gt is not None:
            yield annotated_types.Gt(self.gt)
        if self.le is not None:
            yield annotated_types.Le(self.le)

    @property
    def full_help(self) -> str:
        """Help with the unit and what is used where the key is not set."""
        unit = f" ({self.unit})" if self.unit else ""
        unset = f"; not set: {self.unset}" if self.unset else ""
        return f"{self.help}{unit}{unset}"

    @property
    def bounds(self) -> str:
        """Bounds in words, as error messages and the docs have them; may be empty."""
        if self.gt is not None:
            most = "" if self.le is None else f" and at most {self.le:g}"
            return f"above {self.gt:g}{most}"
        if self.ge is not None:
            if self.le is None:
                return f"at least {self.ge:g}"
            return f"between {self.ge} and {self.le}"
        return ""


def setting(  # noqa: PLR0913  (a declaration: all by keyword, most left out)
    help: str,
    *,
    unit: str = "",
    unset: str = "",
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    rest: bool = False,
    resume: bool = False,
    path: Literal["", "file", "code"] = "",
    applies: Mapping[str, Condition] | None = None,
    examples: tuple[Any, ...] = (),
    topic: str = "",
    private: Private = DENIED,
    or_with: Mapping[str, Condition] | None = None,
) -> Setting:
    """Declare a config key, within the ``Annotated`` type of its field.

    Parameters
    ----------
    help : one line for users.
    unit : such as "s"; empty for a pure number or text.
    unset : what is used where the key is not set (default None).
    ge, gt, le : bounds of a number.
    rest : may clients of the REST service set it?
    resume : may it differ when a run is resumed?
    path : "file": relative paths start beside the config file; "code": the same for
        ``file.py:name``, while other values are names that stay as they are.
    applies : other keys and the values they must have for this one to have an effect;
        without it, or where all conditions hold, the key has an effect. Given where it
        has none, it is a mistake.
    examples : values beside the default that tests play with those of all other keys;
        without them, what follows from choices and bounds.
    topic : heading in the docs for this key and those after it.
    private : with which privacy mechanisms it may have another value than its default;
        without it with none.
    or_with : other keys and values, each of which suffices instead of `applies`.
    """
    return Setting(
        help, unit, unset, ge, gt, le, rest, resume, path, applies or {}, examples,
        topic, private, or_with or {},
    )  # fmt: skip


@dataclass(frozen=True)
class Key:
    """One key of a settings class: name, type, default and declaration."""

    name: str
    type: Any  # without Optional and Annotated
    is_optional: bool  # None is allowed
    is_required: bool
    default: Any  # None if required
    setting: Setting
    topic: str

    @property
    def choices(self) -> tuple[str, ...]:
        """Allowed words; empty if the key is not one of a fixed list."""
        is_literal = typing.get_origin(self.type) is Literal
        return typing.get_args(self.type) if is_literal else ()

    @property
    def nested(self) -> type[BaseModel] | None:
        """Settings class of a mapping, or of a list's mappings; else None."""
        kind = typing.get_args(self.type)[0] if self.is_list else self.type
        is_nested = isinstance(kind, type) and issubclass(kind, BaseModel)
        return kind if is_nested else None

    @property
    def is_list(self) -> bool:
        """Is the value a list?"""
        return typing.get_origin(self.type) is tuple

    @property
    def json_type(self) -> str:
        """Type by JSON's names: integer, number, boolean, string, array or object."""
        if self.choices:
            return "string"
        return JSON_TYPES.get(self.type, "array" if self.is_list else "object")

    @property
    def json_schema(self) -> dict[str, Any]:
        """JSON schema of this key alone: type, bounds, choices, default, help."""
        schema: dict[str, Any] = {"type": self.json_type}
        limits = {
            "minimum": self.setting.ge,
            "exclusiveMinimum": self.setting.gt,
            "maximum": self.setting.le,
            "enum": list(self.choices) or None,
            "default": to_plain(self.default),
            "description": self.setting.full_help,
        }
        return schema | {k: v for k, v in limits.items() if v is not None}


def to_plain(value: Any) -> Any:
    """A default value as JSON and YAML have it."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    return list(value) if isinstance(value, tuple) else value


@functools.cache
def keys_of(model: type[BaseModel]) -> dict[str, Key]:
    """All keys of a settings class by name, in the order of their declaration."""
    keys, topic = {}, ""
    for name, info in model.model_fields.items():
        declared = _declaration(name, info)
        topic = declared.topic or topic
        arms = _union(info.annotation)
        keys[name] = Key(
            name=name,
            type=bare_type(next(arm for arm in arms if arm is not type(None))),
            is_optional=type(None) in arms,
            is_required=info.is_required(),
            default=None if info.is_required() else info.get_default(),
            setting=declared,
            topic=topic,
        )
    return keys


def _declaration(name: str, field: FieldInfo) -> Setting:
    for item in field.metadata:
        if isinstance(item, Setting):
            return item
    raise TypeError(f"{name} has no setting(...) in its annotation")


def _union(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def bare_type(annotation: Any) -> Any:
    """A type without what `Annotated` says of it."""
    is_annotated = typing.get_origin(annotation) is typing.Annotated
    return typing.get_args(annotation)[0] if is_annotated else annotation


def conditions(applies: Mapping[str, Condition]) -> str:
    """`applies` in words: ``aggregation: adaptive; partition given``."""
    words = []
    for key, condition in applies.items():
        if condition == GIVEN:
            words.append(f"{key} given")
        elif condition == (None,):
            words.append(f"no {key}")
        elif isinstance(condition, OtherThan):
            values = " or ".join(map(word_of, condition.values))
            words.append(f"{key} other than {values}")
        else:
            values = ", ".join(map(word_of, condition))
            words.append(f"{key}: {values}")
    return "; ".join(words)


def conditions_of(key: Key) -> str:
    """When a key has an effect, in words; empty: always."""
    either = [conditions({k: v}) for k, v in key.setting.or_with.items()]
    return "; or with ".join(filter(None, [conditions(key.setting.applies), *either]))


def word_of(value: Any) -> str:
    """A value as YAML has it: ``true``."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def unmet(
    key: Key, settings: Any, unread: Collection[str] = ()
) -> dict[str, Condition]:
    """The conditions of a key's effect that settings do not meet.

    unread : keys that could not be read: conditions on them are met.
    """
    applies, or_with = key.setting.applies, key.setting.or_with
    if or_with and len(unmet_values(or_with, settings)) < len(or_with):
        return {}
    return unmet_values(applies, settings, unread)


def unmet_values(
    applies: Mapping[str, Condition], settings: Any, unread: Collection[str] = ()
) -> dict[str, Condition]:
    """The conditions on other keys that settings do not meet; see `unmet`."""
    return {
        key: condition
        for key, condition in applies.items()
        if key not in unread and name_of(getattr(settings, key)) not in condition
    }


def name_of(value: Any) -> Any:
    """A value as conditions name it: any code of the user's own is `CUSTOM`."""
    return CUSTOM if isinstance(value, str) and is_source(value) else value


def describe_unmet(needs: Mapping[str, Condition], settings: Any) -> str:
    """What settings have instead: ``with fusion_algorithm: fedavg``, ``without x``."""
    values = {key: getattr(settings, key) for key in needs}
    missing = [key for key, value in values.items() if value is None]
    others = [
        f"{key}: {word_of(value)}" if isinstance(value, str | int | float) else key
        for key, value in values.items()
        if value is not None
    ]
    words = [f"with {' and '.join(others)}"] if others else []
    return " ".join(words + ([f"without {' and '.join(missing)}"] if missing else []))
