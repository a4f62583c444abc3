"""Reads configs from YAML, command-line words and plain data; reports all mistakes.

Text such as ``"1e-3"`` or ``"5"`` becomes a number where a key declares a number, a
list a tuple, true a word where "true" is one of the choices. What cannot be converted
is left as it is: the strict settings classes then say what is wrong with it.
"""

import math
import os
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from fedray.config.declaration import Key, keys_of
from fedray.config.mistakes import problems_of, wrong_keys
from fedray.config.settings import FederationConfig
from fedray.config.specs import PartySpec, is_uri
from fedray.errors import ConfigError
from fedray.untrusted_text import name_of_file
from fedray.user_code import is_source

MAX_FILE_BYTES = 4 << 20
MAX_VALUES = 1_000_000  # a party takes about ten
MAX_DEPTH = 20
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
UNKNOWN_HANDLER = ".py:"  # of a run: it may be the user's own
PATH_KEYS = tuple(
    name for name, key in keys_of(FederationConfig).items() if key.setting.path
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
        data = _check_size(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError([f"cannot read config {path}: {error.strerror}"]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = " ".join(str(error).split())[:300]
        raise ConfigError([f"config {path} is not YAML: {first}"]) from None
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError([f"config {path} must be a mapping of keys to values"])
    return data


def _check_size(data: Any) -> Any:
    """The same data, if it is not larger than a config may be, aliases written out.

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
    values, problems = {}, []
    for word in words:
        key, equals, value = word.partition("=")
        try:
            values[key] = _check_size(yaml.safe_load(value))
        except (yaml.YAMLError, ValueError, RecursionError):
            problems.append(f"cannot read the value of {word!r}")
        if not equals:
            del values[key]
            problems.append(f"{word!r} is not of the form key=value")
    return values, problems


def parse(
    data: Mapping[str, Any], path: Path | None = None
) -> tuple[FederationConfig, list[str]]:
    """Build a config from plain data, and say everything that is wrong with it.

    What is wrong keeps its default, so that the rest can still be checked and all
    mistakes are reported at once. `path` is the config file: it names the run, and
    relative paths start there.
    """
    values = convert_values(data, FederationConfig)
    if path and values.get("name") is None:
        values["name"] = name_of_file(path.stem) or "federation"
    problems, unread = [], set()
    try:
        config = FederationConfig.model_validate(values)
    except ValidationError as error:
        problems, unread = problems_of(error, FederationConfig), wrong_keys(error)
        right = {key: value for key, value in values.items() if key not in unread}
        config = FederationConfig.model_validate(right)
    folder = path.expanduser().resolve().parent if path else Path.cwd()
    return _absolute_paths(config, folder), problems + config.problems(unread)


def read_party(data: Mapping[str, Any]) -> PartySpec:
    """One party from plain data, as `parties` lists it; paths from the working folder.

    Raises
    ------
    ConfigError
        With every mistake that can be seen in it alone.
    """
    party = PartySpec(**convert_values(data, PartySpec))
    return _absolute_party(party, Path.cwd(), UNKNOWN_HANDLER)


def _absolute_paths(config: FederationConfig, folder: Path) -> FederationConfig:
    """The config with absolute paths; relative ones start in the folder."""
    changes: dict[str, Any] = {
        key: _absolute_path(getattr(config, key), folder, key == "data_handler")
        for key in PATH_KEYS
        if getattr(config, key)
    }
    handler = config.data_handler
    if config.test_data:
        changes["test_data"] = _source(config.test_data, folder, handler)
    if config.parties:
        parties = (_absolute_party(party, folder, handler) for party in config.parties)
        changes["parties"] = tuple(parties)
    if config.partition and config.partition.source != "mnist":
        source = _source(config.partition.source, folder, handler)
        changes["partition"] = config.partition.with_changes(source=source)
    return config.model_copy(update=changes)


def _absolute_party(party: PartySpec, folder: Path, handler: str) -> PartySpec:
    changes = {
        key: _absolute_path(getattr(party, key), folder)
        for key in ("model_file", "architecture")
        if getattr(party, key)
    }
    changes["data"] = _source(party.data, folder, party.data_handler or handler)
    own = _absolute_path(party.data_handler or "", folder, may_be_name=True)
    return party.model_copy(update={**changes, "data_handler": own or None})


def _source(source: str, folder: Path, handler: str) -> str:
    """What a data handler is given: an absolute path, or a URI or name as written.

    Only a handler of one's own reads other things than files: it is given as written
    what is no file here, and is like `table` or `scheme:rest`.
    """
    if is_uri(source):
        return source
    is_name = "/" not in source or SCHEME.match(source)
    is_file_here = any(map(os.path.exists, _candidates(source, folder)))
    if is_source(handler) and is_name and not is_file_here and source[:1] != "~":
        return source
    return _absolute_path(source, folder)


def _absolute_path(path: str, folder: Path, may_be_name: bool = False) -> str:
    """Beside the config file, else in the working folder; names stay names."""
    if may_be_name and ".py:" not in path:
        return path
    file, colon, attribute = path.partition(":") if ".py:" in path else (path, "", "")
    beside, here = _candidates(file, folder)
    is_only_here = os.path.exists(here) and not os.path.exists(beside)
    return f"{here if is_only_here else beside}{colon}{attribute}"


def _candidates(file: str, folder: Path) -> tuple[Path, Path]:
    """A relative path beside the config file, and in the working folder."""
    path = Path(os.path.expanduser(file))
    return folder / path, path.absolute()


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
