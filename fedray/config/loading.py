"""Read settings from YAML, command-line words and plain data, telling every mistake."""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from fedray.config.settings import FederationConfig
from fedray.config.specs import PartySpec, unknown
from fedray.errors import ConfigError

MAX_FILE_BYTES = 4 << 20
MAX_VALUES = 1_000_000  # a party takes about ten
MAX_DEPTH = 20
MAX_TEXT = 10_000  # characters: longer than any path or name
MAX_NUMBER = 10**30
PATHS = (
    "model_file",
    "architecture",
    "data_handler",
    "test_data",
    "distill",
    "distill_data",
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping of bounded size.

    Raises
    ------
    ConfigError
        If the file is missing, too large, not YAML, or not a mapping.
    """
    path = Path(path).expanduser()
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError([f"config {path} is larger than {MAX_FILE_BYTES} bytes"])
        data = _bounded(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError([f"cannot read config {path}: {error.strerror}"]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = " ".join(str(error).split())[:300]
        raise ConfigError([f"config {path} is not YAML: {first}"]) from None
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError([f"config {path} must be a mapping of keys to values"])
    return data


def _bounded(data: Any) -> Any:
    """The same data, if it is no more than a config may be once it is written out.

    A YAML alias costs a few letters and stands for everything it points to, itself
    included.
    """
    todo, n_values = [(data, 0)], 0
    while todo:
        value, depth = todo.pop()
        n_values += 1
        if n_values > MAX_VALUES or depth > MAX_DEPTH:
            most = f"more than {MAX_VALUES} values or {MAX_DEPTH} levels"
            raise ValueError(f"{most}, aliases written out")
        if isinstance(value, dict):
            todo += [(inner, depth + 1) for pair in value.items() for inner in pair]
        elif isinstance(value, list | tuple | set):
            todo += [(inner, depth + 1) for inner in value]
    return data


def read_overrides(words: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Turn words `key=value` into settings, values being YAML; and what is wrong."""
    values, found = {}, []
    for word in words:
        key, equals, value = word.partition("=")
        try:
            values[key] = _bounded(yaml.safe_load(value))
        except (yaml.YAMLError, ValueError, RecursionError):
            found.append(f"cannot read the value of {word!r}")
        if not equals:
            del values[key]
            found.append(f"{word!r} is not of the form key=value")
    return values, found


def parse(
    data: Mapping[str, Any], path: Path | None = None
) -> tuple[FederationConfig, list[str]]:
    """Build a config from plain data, and say everything that is wrong with it.

    What is wrong keeps its default, so that the rest can still be checked and all
    mistakes are told at once. `path` is the config file: it names the run and is where
    relative paths start.
    """
    values, found = _fields(FederationConfig, data, "")
    unread = set(data) - set(values)
    folder = path.expanduser().resolve().parent if path else Path.cwd()
    for key in PATHS:
        if values.get(key):
            values[key] = _absolute(values[key], folder, key == "data_handler")
    if path and values.get("name") is None:
        plain = re.sub(r"[^A-Za-z0-9._-]", "-", path.stem).lstrip("._-")
        values["name"] = plain[:64] or "federation"
    parties = values.get("parties", ())
    values["parties"] = tuple(_located(party, folder) for party in parties)
    if values.get("partition") and values["partition"].source != "mnist":
        source = _absolute(values["partition"].source, folder)
        values["partition"] = dataclasses.replace(values["partition"], source=source)
    config = FederationConfig(**values)
    return config, found + config.problems(unread)


def read_party(data: Mapping[str, Any]) -> PartySpec:
    """One party from plain data, as `parties` lists it; paths from the working folder.

    Raises
    ------
    ConfigError
        With every mistake that can be seen in it alone.
    """
    values, found = _fields(PartySpec, data, "")
    if found:
        raise ConfigError(found)
    return _located(PartySpec(**values), Path.cwd())


def _located(party: PartySpec, folder: Path) -> PartySpec:
    keys = ("model_file", "architecture")
    own = {key: getattr(party, key) for key in keys if getattr(party, key)}
    return dataclasses.replace(
        party,
        data=_absolute(party.data, folder),
        data_handler=_absolute(party.data_handler or "", folder, True) or None,
        **{key: _absolute(path, folder) for key, path in own.items()},
    )


def _absolute(path: str, folder: Path, may_be_name: bool = False) -> str:
    """Beside the config file, else in the working folder; names stay names."""
    if may_be_name and ".py:" not in path:
        return path
    file, colon, attribute = path.partition(":") if ".py:" in path else (path, "", "")
    beside = folder / Path(file).expanduser()
    found = beside if beside.exists() else Path(file).expanduser().absolute()
    return f"{found if found.exists() else beside}{colon}{attribute}"


def _fields(cls: type, data: Mapping[str, Any], where: str) -> tuple[dict, list[str]]:
    hints = typing.get_type_hints(cls)
    values, found = {}, []
    for key, value in data.items():
        if key not in hints:
            found.append(unknown("key", f"{where}{key}", [where + k for k in hints]))
            continue
        try:
            values[key] = _convert(value, hints[key], where + key)
        except ConfigError as error:
            found += error.problems
    for item in dataclasses.fields(cls):
        required = item.default is item.default_factory is dataclasses.MISSING
        if required and item.name not in data:
            found.append(f"{where}{item.name} is missing")
    return values, found


def _convert(value: Any, hint: Any, key: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(t for t in typing.get_args(hint) if t is not type(None))
    if hint in (int, float):
        return _number(value, hint, key)
    if hint is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if dataclasses.is_dataclass(hint):
        return _nested(value, hint, key)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError([f"{key} must be a list, got {_shown(value)}"])
        item = typing.get_args(hint)[0]
        return _many(value, item, key)
    if typing.get_origin(hint) is typing.Literal:
        word = str(value).lower()
        if isinstance(value, bool) and word in typing.get_args(hint):
            return word  # YAML reads true as a bool
        hint = str
    kind = typing.get_origin(hint) or hint
    if not isinstance(value, kind):
        needed = {str: "text", dict: "a mapping", bool: "true or false"}[kind]
        raise ConfigError([f"{key} must be {needed}, got {_shown(value)}"])
    if kind is str and (len(value) > MAX_TEXT or "\0" in value):
        needed = f"at most {MAX_TEXT} characters, none of them NUL"
        raise ConfigError([f"{key} must be {needed}, got {_shown(value)}"])
    if hint == dict[str, str]:
        return {str(name): str(text) for name, text in value.items()}
    return value


def _many(values: Iterable[Any], item: type, key: str) -> tuple:
    done, found = [], []
    for i, value in enumerate(values):
        try:
            done.append(_convert(value, item, f"{key}[{i}]"))
        except ConfigError as error:
            found += error.problems
    if found:
        raise ConfigError(found)
    return tuple(done)


def _nested(value: Any, hint: type, key: str) -> Any:
    if isinstance(value, hint):
        return value
    if not isinstance(value, dict):
        raise ConfigError([f"{key} must be a mapping, got {_shown(value)}"])
    values, found = _fields(hint, value, f"{key}.")
    if found:
        raise ConfigError(found)
    return hint(**values)


def _number(value: Any, kind: type, key: str) -> int | float:
    needed = "a whole number" if kind is int else "a finite number"
    wrong = ConfigError([f"{key} must be {needed}, got {_shown(value)}"])
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise wrong
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise wrong
    if kind is int and isinstance(value, int):
        return value
    try:
        number = float(value)  # YAML reads 1e-3 as text
    except (ValueError, OverflowError):
        raise wrong from None
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise wrong
    return kind(number)


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        return f"a number of {value.bit_length()} bits"
    text = repr(value[:100] if isinstance(value, str) else value)
    return text if len(text) <= 80 else text[:77] + "..."
