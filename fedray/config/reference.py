"""Reference of config keys, from their declarations: REST list, JSON schema, docs."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from fedray.config.conditions import KNOWN_NAMES
from fedray.config.declaration import (
    ANY_VALUE,
    MECHANISMS,
    SAFE,
    TYPE_NAMES,
    Key,
    Private,
    conditions,
    conditions_of,
    keys_of,
    to_plain,
)
from fedray.config.mistakes import describe_unknown_key
from fedray.config.settings import FederationConfig
from fedray.errors import ConfigError

WIDTH = 100  # columns of the docs page


def rest_settings() -> dict[str, Key]:
    """The keys that clients of the REST service may set, by name.

    A `Key` has name, json_type ("integer", "number", "string", "object"...), default,
    choices, is_optional, setting.help, setting.unit, setting.ge / gt / le, and
    `json_schema`: the whole OpenAPI property with type, bounds, enum, default and
    description. Values of json_type "object" come as JSON text in a form.
    """
    keys = keys_of(FederationConfig)
    return {name: key for name, key in keys.items() if key.setting.rest}


def resume_settings() -> frozenset[str]:
    """The keys that may differ when a run is resumed."""
    keys = keys_of(FederationConfig)
    return frozenset(name for name, key in keys.items() if key.setting.resume)


def nested_resume_settings() -> dict[str, frozenset[str]]:
    """By key that is a mapping: those of its keys that may differ on resume."""
    own: dict[str, frozenset[str]] = {}
    for name, key in keys_of(FederationConfig).items():
        inner = keys_of(key.nested) if key.nested and not key.is_list else {}
        may_change = frozenset(n for n, k in inner.items() if k.setting.resume)
        if may_change:
            own[name] = may_change
    return own


def split_by_default(
    values: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A config's plain values: those other than by default, and those by default."""
    keys = keys_of(FederationConfig)
    changed: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for name, value in values.items():
        is_default = name in keys and value == to_plain(keys[name].default)
        (defaults if is_default else changed)[name] = value
    return changed, defaults


def json_schema() -> dict[str, Any]:
    """JSON schema of a config file, for editors."""
    schema = FederationConfig.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["description"] = "Config of a fedray federation."
    models = {FederationConfig.__name__: FederationConfig}
    models |= {
        k.nested.__name__: k.nested
        for k in keys_of(FederationConfig).values()
        if k.nested
    }
    for name, model in models.items():
        properties = schema.get("$defs", {}).get(name, schema)["properties"]
        for key in keys_of(model).values():
            properties[key.name]["description"] = key.setting.full_help
            properties[key.name].pop("title", None)
    for spec in schema["properties"].values():
        if "true" in spec.get("enum", ()):
            spec["enum"] += [True, False]  # which YAML makes of the bare words
            spec.pop("type", None)
    return schema


def key_named(name: str) -> Key:
    """A key by name; ``partition.alpha`` is one within another.

    Raises
    ------
    ConfigError
        If there is no such key; says the nearest.
    """
    outer, _, inner = name.replace("[]", "").partition(".")
    keys, place = keys_of(FederationConfig), ""
    if inner and outer in keys and (nested := keys[outer].nested):
        place = f"{outer}."
        prefixed = {f"{outer}.{key}": value for key, value in keys_of(nested).items()}
        keys = keys | prefixed
    if name.replace("[]", "") not in keys:
        raise ConfigError([describe_unknown_key(name, place, FederationConfig)])
    return keys[name.replace("[]", "")]


def facts(key: Key) -> dict[str, Any]:
    """Everything that is declared of a key, as plain data."""
    nested = key.nested
    return {
        "name": key.name,
        "help": key.setting.help,
        "topic": key.topic,
        "type": type_text(key),
        "unit": key.setting.unit or None,
        "required": key.is_required,
        "default": to_plain(key.default),
        "unset": key.setting.unset or None,
        "allowed": allowed_text(key) or None,
        "applies": conditions_of(key) or None,
        "rest": key.setting.rest,
        "resume": key.setting.resume,
        "keys": [facts(one) for one in keys_of(nested).values()] if nested else [],
    }


def type_text(key: Key) -> str:
    """A key's type in words: "whole number", "list of mappings"."""
    word = TYPE_NAMES[key.json_type]
    if key.is_list:
        return f"{word} of {'mappings' if key.nested else 'texts'}"
    return word


def allowed_text(key: Key) -> str:
    """A key's choices or bounds in words; empty if it has none."""
    if key.choices:
        return ", ".join(key.choices)
    return key.setting.bounds


def default_text(key: Key) -> str:
    """A key's default in words."""
    if key.is_required:
        return "required"
    if key.default is None:
        unset = key.setting.unset
        return f"not set: {unset}" if unset else "not set"
    if isinstance(key.default, BaseModel):
        return "default: its keys' own"
    return f"default {_yaml(to_plain(key.default))}"


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def topics() -> dict[str, list[Key]]:
    """All keys by the heading they stand under."""
    by_topic: dict[str, list[Key]] = {}
    for key in keys_of(FederationConfig).values():
        by_topic.setdefault(key.topic, []).append(key)
    return by_topic


def markdown() -> str:
    """The page docs/configuration.md; a test holds the file to it."""
    lines = [
        "# Configuration",
        "",
        "<!-- made by `make docs` from fedray/config/keys.py -->",
        "",
        *_wrapped(ABOUT),
    ]
    for topic, keys in topics().items():
        lines += ["", f"## {topic}", ""]
        for key in keys:
            lines += _entry(key)
    for key in keys_of(FederationConfig).values():
        if key.nested:
            lines += ["", *_nested(key, key.nested)]
    lines += ["", *_model_types_table(), "", *_mechanisms_table()]
    return "\n".join(lines) + "\n"


def _nested(key: Key, model: type[BaseModel]) -> Iterator[str]:
    yield f"## Keys of {'each of ' if key.is_list else ''}`{key.name}`"
    yield ""
    yield from _wrapped((model.__doc__ or "").partition("\n")[0])
    yield ""
    for inner in keys_of(model).values():
        yield from _entry(inner)


def _model_types_table() -> Iterator[str]:
    """Which keys have an effect with which model type."""
    types = KNOWN_NAMES["model_type"]
    yield "## Keys by model type"
    yield ""
    yield from _wrapped(ABOUT_MODEL_TYPES)
    yield ""
    yield f"| key | {' | '.join(types)} |"
    yield "|---" * (len(types) + 1) + "|"
    for key in keys_of(FederationConfig).values():
        if condition := key.setting.applies.get("model_type"):
            marks = ("yes" if name in condition else "–" for name in types)
            yield f"| `{key.name}` | {' | '.join(marks)} |"


def _mechanisms_table() -> Iterator[str]:
    """Which keys may be given with which privacy mechanism."""
    yield "## Keys by privacy mechanism"
    yield ""
    yield from _wrapped(ABOUT_MECHANISMS)
    yield ""
    yield f"| key | {' | '.join(MECHANISMS)} |"
    yield "|---" * (len(MECHANISMS) + 1) + "|"
    keys = keys_of(FederationConfig).values()
    limited = [key for key in keys if key.setting.private != SAFE]
    for key in (key for key in limited if key.setting.private.values):
        marks = (_mark(key.setting.private, name) for name in MECHANISMS)
        yield f"| `{key.name}` | {' | '.join(marks)} |"
    denied = [f"`{key.name}`" for key in limited if not key.setting.private.values]
    yield ""
    yield from _wrapped(f"With none of them: {', '.join(denied)}.")


def _mark(private: Private, mechanism: str) -> str:
    """Whether a key may be given with a mechanism: yes, with conditions, or a dash."""
    values = private.values.get(mechanism)
    if values is None:
        return "–"
    needs = conditions(private.needs)
    some = "" if values == ANY_VALUE else "some values"
    return some or (f"with {needs.removesuffix(' given')}" if needs else "yes")


def _entry(key: Key) -> list[str]:
    """A key as an item of a list, its facts and then its help."""
    unit = f" of {key.setting.unit}" if key.setting.unit else ""
    what = [f"{type_text(key)}{unit}", default_text(key)]
    if key.choices:
        what[0] = " | ".join(f"`{choice}`" for choice in key.choices)
    elif allowed := allowed_text(key):
        what.append(allowed)
    marks = [
        *(["REST"] if key.setting.rest else []),
        *(["may change on resume"] if key.setting.resume else []),
    ]
    needs = conditions_of(key)
    text = f"- **`{key.name}`** ({', '.join(what)}): {key.setting.help}."
    anchor = f"keys-of-{'each-of-' if key.is_list else ''}{key.name}"
    text += f" [Its keys](#{anchor})." if key.nested else ""
    text += f" Has an effect only with {needs}." if needs else ""
    text += f" *{', '.join(marks)}.*" if marks else ""
    return _wrapped(text, "  ")


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


ABOUT_MODEL_TYPES = (
    "Keys that are not in the table have an effect with every model type. One that is "
    "given where it has none is an error that says what it is for; so is a value that "
    "is for another type, such as `loss: model` (PyTorch's) with Keras."
)
ABOUT_MECHANISMS = (
    "The columns are `privacy.mechanism: central` and `distributed`, `dp_sgd` and "
    "`secure_aggregation`. Keys that are not named here may be given with each of "
    "them. One that has a dash, or a value that is not allowed, is an error that says "
    "why: something would leave the parties that the guarantee does not cover."
)
ABOUT = (
    "A federation is described by flat keys, the same in a YAML file, on the command "
    "line (`fedray run config.yaml rounds=10`), in Python (`fedray.FederationConfig`) "
    "and, where marked *REST*, as form fields of `/start-aggregator`. A key that is "
    "unknown, given twice, or without effect beside the other keys is an error, and "
    "every mistake is reported at once. Relative paths start in the config file's "
    "folder. In YAML, on the command line and over REST a key's type says how a value "
    "is read: text stays as it is written (`name: on`, `1.10`, `2024-01-01`), and what "
    "is needed as a number may be written `1e-3`, also within `optimizer_args` and "
    "`loss_args`; `fedray.FederationConfig` takes numbers only. "
    "Keys marked *may change on resume* may differ when a run goes on with "
    "`--resume`; all others have to stay as they were. `fedray config KEY` explains a "
    "key in the terminal; `fedray config --json-schema` prints a schema for editors."
)
